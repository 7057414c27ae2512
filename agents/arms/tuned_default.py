"""The best static setting over the training tasks: the arm to beat."""

from lepton_rl.agents.arm import PolicyArm
from lepton_rl.policy import KeepPolicy, Policy
from lepton_rl.task import VisibleTask


def _keep(task: VisibleTask) -> Policy:
    del task
    return KeepPolicy()


ARM = PolicyArm(
    name="tuned-default",
    source="found by Optuna over the training tasks (lepton_rl/defaults/tuned-default.json)",
    policy_for=_keep,
)
