"""Actions drawn uniformly: what the action space gives without a policy."""

from lepton_rl.agents.arm import PolicyArm
from lepton_rl.policy import Policy, RandomPolicy
from lepton_rl.task import VisibleTask


def _draw(task: VisibleTask) -> Policy:
    del task
    return RandomPolicy()


ARM = PolicyArm(name="random-policy", source="control: uniform actions", policy_for=_draw)
