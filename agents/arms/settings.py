"""Hand-set knobs that the classical arms start from; nothing here was searched for."""

from lepton_rl.controls import LOSS_TERMS, ControlSettings
from lepton_rl.stages import N_STAGES

HEAD_LEARNING_RATE = 5e-3  # a new linear head needs larger steps than pretrained layers
LEARNING_RATE = 1e-3  # Adam's usual one


def cross_entropy_only(*, learning_rate: float, unfrozen_stages: int = N_STAGES) -> ControlSettings:
    """Return knobs with the losses on labelled images, source and target, and nothing else."""
    weights = dict.fromkeys(LOSS_TERMS, 0.0) | {"source": 1.0}
    return ControlSettings(learning_rate=learning_rate, unfrozen_stages=unfrozen_stages, weights=weights)
