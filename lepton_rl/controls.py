"""The knobs of a run, the actions that move them, and the tuned default they start from.

Every sub-action is relative and its middle means *keep*, so that keeping everything is the tuned default.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import resources

import torch
from torch import Tensor

from lepton_rl.errors import InputError
from lepton_rl.stages import N_STAGES

LOSS_TERMS = ("source", "alignment", "adversarial", "entropy", "diversity", "self_training", "auxiliary")
KNOBS = ("unfreeze", "learning_rate", *LOSS_TERMS, "transfer", "augmentation", "stop")
FACTORS = (1 / 6, 1 / 2.5, 1.0, 2.5, 6.0)
ACTION_SIZES = (3, 5, *(5 for _ in LOSS_TERMS), 2, 3, 2)
KEEP = (1, 2, *(2 for _ in LOSS_TERMS), 0, 1, 0)

LEARNING_RATE_RANGE = (1e-5, 3e-2)
WEIGHT_RANGE = (0.01, 10.0)  # below the lower end a loss term is off (weight 0)
ENTRY_WEIGHT = 0.1  # what "up" scales where a term is off: one decision then suffices to make it count
AUGMENTATION_STEP = 0.25
PULL_BACK = 0.5  # theta <- theta_0 + PULL_BACK (theta - theta_0), the transfer coefficient


def _default_weights() -> dict[str, float]:
    return {"source": 1.0} | dict.fromkeys(LOSS_TERMS[1:], 0.0)


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """Knobs of one run at its start; what a tuner searches and what the package's defaults are.

    Attributes:
        learning_rate: Peak of the cosine schedule, within `LEARNING_RATE_RANGE`; wide layers get less of it.
        unfrozen_stages: 0 (head only) .. 4 (all).
        weights: Weight of each loss term of `LOSS_TERMS`, 0 (off) or within `WEIGHT_RANGE`. The loss on the
            labelled target images always has weight 1.
        augmentation: Strength of the augmentation of labelled images, 0..1.
    """

    learning_rate: float = 2e-3
    unfrozen_stages: int = N_STAGES
    weights: dict[str, float] = field(default_factory=_default_weights)
    augmentation: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside of their ranges."""
        low, high = LEARNING_RATE_RANGE
        if not low <= self.learning_rate <= high:
            raise InputError(f"learning_rate {self.learning_rate} is out of range: expected {low} to {high}")
        if self.unfrozen_stages not in range(N_STAGES + 1):
            raise InputError(f"unfrozen_stages {self.unfrozen_stages} is out of range: expected 0 to {N_STAGES}")
        if set(self.weights) != set(LOSS_TERMS):
            raise InputError(f"weights name {sorted(self.weights)}: expected exactly {', '.join(LOSS_TERMS)}")
        for term, weight in self.weights.items():
            if weight != 0 and not WEIGHT_RANGE[0] <= weight <= WEIGHT_RANGE[1]:
                raise InputError(f"weight {weight} of {term!r}: expected 0, or {WEIGHT_RANGE[0]} to {WEIGHT_RANGE[1]}")
        if not 0 <= self.augmentation <= 1:
            raise InputError(f"augmentation {self.augmentation} is out of range: expected 0 to 1")

    def to_json(self) -> str:
        """Return the settings as sorted JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ControlSettings":
        """Read settings; extra keys are refused."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"control settings {text[:80]!r} cannot be read ({error}): expected its JSON fields"
            ) from None


def tuned_default() -> ControlSettings:
    """Return the best static setting that Optuna found over the training tasks (`defaults/tuned-default.json`)."""
    text = resources.files("lepton_rl").joinpath("defaults/tuned-default.json").read_text(encoding="utf-8")
    return ControlSettings(**json.loads(text)["settings"])


@dataclass(frozen=True, kw_only=True)
class Controls:
    """The knobs of N lanes at one moment.

    Attributes:
        learning_rate: `[lanes]`, before the cosine schedule.
        unfrozen_stages: int64 `[lanes]`, 0..4.
        weights: `[lanes, 7]` in the order of `LOSS_TERMS`.
        augmentation: `[lanes]`, 0..1.
    """

    learning_rate: Tensor
    unfrozen_stages: Tensor
    weights: Tensor
    augmentation: Tensor

    @classmethod
    def start(cls, settings: list[ControlSettings], device: torch.device) -> "Controls":
        """Stack one setting per lane."""
        return cls(
            learning_rate=torch.tensor([s.learning_rate for s in settings], dtype=torch.float64, device=device),
            unfrozen_stages=torch.tensor([s.unfrozen_stages for s in settings], device=device),
            weights=torch.tensor(
                [[s.weights[t] for t in LOSS_TERMS] for s in settings], dtype=torch.float64, device=device
            ),
            augmentation=torch.tensor([s.augmentation for s in settings], dtype=torch.float64, device=device),
        )

    def put(self, settings: Mapping[int, ControlSettings]) -> "Controls":
        """Return controls in which some lanes start anew; the other lanes stay as they are."""
        fresh = Controls.start(list(settings.values()), self.learning_rate.device)
        index = torch.tensor(list(settings), device=self.learning_rate.device)
        return Controls(
            learning_rate=self.learning_rate.index_copy(0, index, fresh.learning_rate),
            unfrozen_stages=self.unfrozen_stages.index_copy(0, index, fresh.unfrozen_stages),
            weights=self.weights.index_copy(0, index, fresh.weights),
            augmentation=self.augmentation.index_copy(0, index, fresh.augmentation),
        )

    def apply(self, actions: Tensor) -> "Controls":
        """Move the knobs.

        Args:
            actions: int64 `[lanes, 12]` in the order of `KNOBS`; `transfer` and `stop` are the run's business.
        """
        factors = torch.tensor(FACTORS, dtype=torch.float64, device=actions.device)
        n_terms = len(LOSS_TERMS)
        return replace(
            self,
            unfrozen_stages=(self.unfrozen_stages + actions[:, 0] - 1).clamp(0, N_STAGES),
            learning_rate=(self.learning_rate * factors[actions[:, 1]]).clamp(*LEARNING_RATE_RANGE),
            weights=_move_weights(self.weights, factors[actions[:, 2 : 2 + n_terms]]),
            augmentation=(self.augmentation + AUGMENTATION_STEP * (actions[:, 3 + n_terms] - 1)).clamp(0, 1),
        )

    def row(self, lane: int) -> dict[str, float]:
        """Return one lane's knobs by name, for histories."""
        return {
            "unfrozen_stages": float(self.unfrozen_stages[lane]),
            "learning_rate": float(self.learning_rate[lane]),
            **{term: float(self.weights[lane, i]) for i, term in enumerate(LOSS_TERMS)},
            "augmentation": float(self.augmentation[lane]),
        }


def _move_weights(weights: Tensor, factors: Tensor) -> Tensor:
    """Scale on a log scale with an off position: up from off starts at `ENTRY_WEIGHT`, down past the low end is off."""
    low, high = WEIGHT_RANGE
    start = torch.where((weights == 0) & (factors > 1), torch.full_like(weights, ENTRY_WEIGHT), weights)
    moved = (start * factors).clamp(max=high)
    return torch.where(moved < low, torch.zeros_like(moved), moved)


def cosine(step: Tensor, budget: Tensor) -> Tensor:
    """Return the cosine schedule's factor, 1 at step 0, towards 0 at the budget (Loshchilov and Hutter 2017, eq. 5)."""
    return 0.5 * (1 + torch.cos(math.pi * step / budget))
