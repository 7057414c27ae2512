"""Surgical fine-tuning by relative gradient norms, as far as the policy's actions can do it.

Lee et al. weigh the learning rate of every layer by its relative gradient norm |g| / |w|, scaled so that the
largest is 1 (Auto-RGN). A run here has one learning rate and trains a contiguous block of stages from the head
downwards, so what is left of the weights is which stages train: at every decision the lowest trained stage is
frozen when its relative gradient norm is below `LOW` of the largest, and the next one below is opened when it is
above `HIGH`. The norms are those of the signals `gradient_*`, which are 0 for frozen stages.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lepton_rl.agents.arm import PolicyArm
from lepton_rl.agents.arms.settings import LEARNING_RATE, cross_entropy_only
from lepton_rl.controls import KEEP, ControlSettings
from lepton_rl.policy import Policy
from lepton_rl.signals import GROUP_NAMES, SIGNAL_NAMES
from lepton_rl.stages import N_STAGES
from lepton_rl.task import VisibleTask

LOW, HIGH = 0.1, 0.5
_GRADIENTS = [SIGNAL_NAMES.index(f"gradient_{group}") for group in GROUP_NAMES]
_DEPTH = SIGNAL_NAMES.index("unfrozen_stages")


def _everything() -> ControlSettings:
    return cross_entropy_only(learning_rate=LEARNING_RATE)


@dataclass(frozen=True, kw_only=True)
class AutoRGN:
    """Freeze the lowest stage while it hardly moves, open one more while it moves most."""

    settings: ControlSettings = field(default_factory=_everything)

    def act(self, observations: Tensor, decisions: Tensor, seeds: Tensor) -> Tensor:
        """Keep all knobs but the number of unfrozen stages."""
        del seeds
        actions = torch.tensor(KEEP).repeat(observations.shape[0], 1)
        for lane, seen in enumerate(observations):
            if int(decisions[lane]) > 0:  # before the first window there is no gradient
                actions[lane, 0] = 1 + _move(relative_gradient_norms(seen), round(float(seen[_DEPTH]) * N_STAGES))
        return actions


def relative_gradient_norms(observation: Tensor) -> list[float]:
    """Undo the signals' scale, (log10(|g| / |w|) + 6) / 8, for the four stages and the head."""
    return [10 ** (8 * float(observation[i]) - 6) for i in _GRADIENTS]


def _move(norms: list[float], depth: int) -> int:
    if depth == 0:
        return 0  # only the head trains: there is no stage to compare
    share = norms[N_STAGES - depth] / max(norms[N_STAGES - depth :])
    return -1 if share < LOW else int(share > HIGH and depth < N_STAGES)


def _surgical(task: VisibleTask) -> Policy:
    del task
    return AutoRGN()


ARM = PolicyArm(
    name="auto-rgn",
    source="Lee et al. 2023, Surgical fine-tuning improves adaptation to distribution shifts",
    policy_for=_surgical,
)
