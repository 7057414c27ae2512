"""The head alone, on labelled images."""

from lepton_rl.agents.arm import PolicyArm
from lepton_rl.agents.arms.settings import HEAD_LEARNING_RATE, cross_entropy_only
from lepton_rl.policy import KeepPolicy, Policy
from lepton_rl.task import VisibleTask


def _head_alone(task: VisibleTask) -> Policy:
    del task
    return KeepPolicy(settings=cross_entropy_only(learning_rate=HEAD_LEARNING_RATE, unfrozen_stages=0))


ARM = PolicyArm(
    name="linear-probe",
    source="Alain and Bengio 2016, Understanding intermediate layers using linear classifier probes",
    policy_for=_head_alone,
)
