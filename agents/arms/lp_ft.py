"""Linear probing, then fine-tuning: a good head first keeps the features from being distorted.

The actions unfreeze one stage per decision, so fine-tuning opens the network over up to four decisions
instead of at once; its smaller learning rate (the action /2.5) comes with the first of them, as in the paper.
"""

from lepton_rl.agents.arm import PolicyArm
from lepton_rl.agents.arms.settings import HEAD_LEARNING_RATE, cross_entropy_only
from lepton_rl.controls import KEEP
from lepton_rl.policy import Policy, SchedulePolicy
from lepton_rl.run import decisions_of
from lepton_rl.stages import N_STAGES
from lepton_rl.task import VisibleTask

UNFREEZE = (2, *KEEP[1:])
UNFREEZE_SLOWER = (2, 1, *KEEP[2:])


def _probe_then_tune(task: VisibleTask) -> Policy:
    probing = decisions_of(task.budget) // 2
    actions = (KEEP,) * probing + (UNFREEZE_SLOWER,) + (UNFREEZE,) * (N_STAGES - 1)
    start = cross_entropy_only(learning_rate=HEAD_LEARNING_RATE, unfrozen_stages=0)
    return SchedulePolicy(actions=actions, settings=start)


ARM = PolicyArm(
    name="lp-ft",
    source="Kumar et al. 2022, Fine-tuning can distort pretrained features",
    policy_for=_probe_then_tune,
)
