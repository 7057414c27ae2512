"""What tuners search: the knobs a run starts with, over the ranges that the policy moves them in."""

from typing import TYPE_CHECKING

from lepton_rl.controls import LOSS_TERMS, WEIGHT_RANGE, ControlSettings
from lepton_rl.stages import N_STAGES

if TYPE_CHECKING:
    import optuna

LEARNING_RATES = (1e-4, 3e-2)


def suggest(trial: "optuna.Trial") -> ControlSettings:
    """Draw settings: each loss term is on or off, and has a weight on a log scale when it is on."""
    weights = {}
    for term in LOSS_TERMS:
        on = trial.suggest_categorical(f"{term}_on", [True, False])
        weights[term] = trial.suggest_float(term, *WEIGHT_RANGE, log=True) if on else 0.0
    return ControlSettings(
        learning_rate=trial.suggest_float("learning_rate", *LEARNING_RATES, log=True),
        unfrozen_stages=trial.suggest_int("unfrozen_stages", 0, N_STAGES),
        weights=weights,
        augmentation=trial.suggest_float("augmentation", 0.0, 1.0),
    )


def parameters_of(settings: ControlSettings) -> dict[str, float | int | bool]:
    """Return the parameters under which `suggest` draws the given settings, for warm starts."""
    parameters: dict[str, float | int | bool] = {
        "learning_rate": settings.learning_rate,
        "unfrozen_stages": settings.unfrozen_stages,
        "augmentation": settings.augmentation,
    }
    for term, weight in settings.weights.items():
        parameters[f"{term}_on"] = weight > 0
        if weight > 0:
            parameters[term] = weight
    return parameters
