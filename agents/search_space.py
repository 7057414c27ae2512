"""What tuners search: the knobs a run starts with, and one later change of them, over the policy's own ranges."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lepton_rl.controls import ACTION_SIZES, KEEP, KNOBS, LOSS_TERMS, WEIGHT_RANGE, ControlSettings
from lepton_rl.objective import NEEDS_SOURCE
from lepton_rl.policy import KeepPolicy, Policy, SchedulePolicy
from lepton_rl.run import decisions_of
from lepton_rl.stages import N_STAGES
from lepton_rl.task import VisibleTask

if TYPE_CHECKING:
    import optuna

    AnyTrial = optuna.Trial | optuna.trial.FixedTrial

LEARNING_RATES = (1e-4, 3e-2)
OFF = WEIGHT_RANGE[0] / 3  # a flat space has a stretch of the log scale, a seventh of it, in which a term is off

Parameters = dict[str, float | int | bool]


@dataclass(frozen=True, kw_only=True)
class Space:
    """A search space for one task; without source data a tuner wastes nothing on weights that do nothing.

    Attributes:
        source_free: Whether the losses on source images are left out.
        decisions: Of a run; with two or more of them a later change is searched as well, 0 = settings alone.
        flat: Whether every parameter exists in every trial, as Gaussian processes want it; otherwise each loss
            term is on or off, and has a weight when it is on.
    """

    source_free: bool = False
    decisions: int = 0
    flat: bool = False

    @classmethod
    def of(cls, task: VisibleTask, *, schedule: bool = False, flat: bool = False) -> "Space":
        """Return the space for a task."""
        return cls(source_free=task.source_free, decisions=decisions_of(task.budget) if schedule else 0, flat=flat)

    def policy(self, trial: "AnyTrial") -> Policy:
        """Draw what a trial runs."""
        settings, change = self.settings(trial), self._change(trial)
        return SchedulePolicy(actions=change, settings=settings) if change else KeepPolicy(settings=settings)

    def settings(self, trial: "AnyTrial") -> ControlSettings:
        """Draw the knobs at the start."""
        weights = dict.fromkeys(LOSS_TERMS, 0.0) | {term: self._weight(trial, term) for term in self._terms()}
        return ControlSettings(
            learning_rate=trial.suggest_float("learning_rate", *LEARNING_RATES, log=True),
            unfrozen_stages=trial.suggest_int("unfrozen_stages", 0, N_STAGES),
            weights=weights,
            augmentation=trial.suggest_float("augmentation", 0.0, 1.0),
        )

    def parameters(self, settings: ControlSettings) -> Parameters:
        """Return the parameters under which the given settings, and no later change, are drawn: for warm starts."""
        found: Parameters = {
            "learning_rate": settings.learning_rate,
            "unfrozen_stages": settings.unfrozen_stages,
            "augmentation": settings.augmentation,
        }
        for term in self._terms():
            weight = settings.weights[term]
            if self.flat:
                found[term] = weight or OFF
            else:
                found |= {f"{term}_on": weight > 0} | ({term: weight} if weight > 0 else {})
        if self.decisions > 1:
            found |= {"change_at": 1} | {f"change_{knob}": KEEP[KNOBS.index(knob)] for knob in self._moved()}
        return found

    def _terms(self) -> Iterable[str]:
        return (term for term in LOSS_TERMS if not (self.source_free and term in NEEDS_SOURCE))

    def _weight(self, trial: "AnyTrial", term: str) -> float:
        if self.flat:
            weight = trial.suggest_float(term, OFF, WEIGHT_RANGE[1], log=True)
            return weight if weight >= WEIGHT_RANGE[0] else 0.0
        on = trial.suggest_categorical(f"{term}_on", [True, False])
        return trial.suggest_float(term, *WEIGHT_RANGE, log=True) if on else 0.0

    def _moved(self) -> list[str]:
        terms = set(self._terms())
        return [knob for knob in KNOBS if knob != "stop" and (knob in terms or knob not in LOSS_TERMS)]

    def _change(self, trial: "AnyTrial") -> tuple[tuple[int, ...], ...]:
        """Draw one action of the policy's and the decision at which it is taken; none for a static space."""
        if self.decisions < 2:
            return ()
        at = trial.suggest_int("change_at", 1, self.decisions - 1)
        action = dict(zip(KNOBS, KEEP, strict=True))
        for knob in self._moved():
            action[knob] = trial.suggest_int(f"change_{knob}", 0, ACTION_SIZES[KNOBS.index(knob)] - 1)
        return (KEEP,) * at + (tuple(action.values()),)


def suggest(trial: "AnyTrial") -> ControlSettings:
    """Draw settings from the whole static space."""
    return Space().settings(trial)


def parameters_of(settings: ControlSettings) -> Parameters:
    """Return the parameters under which `suggest` draws the given settings."""
    return Space().parameters(settings)
