"""From the head downwards, one stage per decision."""

from lepton_rl.agents.arm import PolicyArm
from lepton_rl.agents.arms.lp_ft import UNFREEZE
from lepton_rl.agents.arms.settings import LEARNING_RATE, cross_entropy_only
from lepton_rl.controls import KEEP
from lepton_rl.policy import Policy, SchedulePolicy
from lepton_rl.stages import N_STAGES
from lepton_rl.task import VisibleTask


def _downwards(task: VisibleTask) -> Policy:
    """Train the head until the second decision, then open one stage at each."""
    del task
    start = cross_entropy_only(learning_rate=LEARNING_RATE, unfrozen_stages=0)
    return SchedulePolicy(actions=(KEEP,) + (UNFREEZE,) * N_STAGES, settings=start)


ARM = PolicyArm(
    name="gradual-unfreezing",
    source="Howard and Ruder 2018, Universal language model fine-tuning for text classification",
    policy_for=_downwards,
)
