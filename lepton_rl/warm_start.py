"""`--warm-start RUN`: adapt again from the weights that a run ended with, when new data have arrived."""

from dataclasses import replace
from typing import TYPE_CHECKING

from lepton_rl.errors import InputError
from lepton_rl.saved_run import WEIGHTS, SavedRun

if TYPE_CHECKING:
    from lepton_rl.apply import ApplyConfig


def filled_in(config: "ApplyConfig") -> "ApplyConfig":
    """Return what was typed, completed by what the run named as `--warm-start` knows.

    Its weights take the place of the original: the guard compares with them, and gives them back where nothing
    visible shows a gain.

    Raises:
        InputError: If there is neither a model nor a run, or what was typed does not go with the run.
    """
    if config.warm_start is None:
        if not config.model:
            raise InputError("no model is named: expected --model, or --warm-start RUN; see lepton adapt --help")
        return config
    run = SavedRun.read(config.warm_start)
    if config.weights is not None:
        raise InputError(
            f"weights {str(config.weights)!r} beside --warm-start: expected one of them, as a run has its own; drop one"
        )
    if config.classes and config.classes != run.classes:
        raise InputError(
            f"classes {list(config.classes)} beside --warm-start: expected those of the run, {list(run.classes)}; "
            "leave them out, or adapt anew with --weights"
        )
    way = run.preprocessing
    return replace(
        config,
        model=run.name_of(config.model or None),
        weights=config.warm_start / WEIGHTS,
        classes=run.classes,
        mean=config.mean or way.mean,
        std=config.std or way.std,
        head=config.head or run.head or None,
    )


def image_size(config: "ApplyConfig") -> tuple[int, int] | None:
    """Return height and width that were typed, or those of the run that is gone on from."""
    if config.image_size is not None:
        return config.image_size, config.image_size
    if config.warm_start is None:
        return None
    way = SavedRun.read(config.warm_start).preprocessing
    return way.height, way.width
