"""Every layer, on labelled images, at the usual learning rate."""

from lepton_rl.agents.arm import PolicyArm
from lepton_rl.agents.arms.settings import LEARNING_RATE, cross_entropy_only
from lepton_rl.policy import KeepPolicy, Policy
from lepton_rl.task import VisibleTask


def _everything(task: VisibleTask) -> Policy:
    del task
    return KeepPolicy(settings=cross_entropy_only(learning_rate=LEARNING_RATE))


ARM = PolicyArm(
    name="full-finetune",
    source="Yosinski et al. 2014, How transferable are features in deep neural networks?",
    policy_for=_everything,
)
