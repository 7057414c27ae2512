"""Let every engine report to the meter. Stands in for calls of `meter.count` in `lepton_rl/engine.py`."""

import functools
from collections.abc import Callable
from typing import Any

from lepton_rl import engine, meter


def _counting(method: Callable[..., Any], amount: Callable[..., tuple[int, int]]) -> Callable[..., Any]:
    @functools.wraps(method)
    def counted(self: engine.Engine, first: Any, *rest: Any, **words: Any) -> Any:  # noqa: ANN401
        result = method(self, first, *rest, **words)
        meter.count(*amount(first, *rest, **words))
        return result

    return counted


def _steps(controls: object, steps: list[int]) -> tuple[int, int]:
    del controls
    return sum(steps), 0


def _images(images: Any, *rest: Any, **words: Any) -> tuple[int, int]:  # noqa: ANN401
    del rest, words
    return 0, int(images.shape[0] * images.shape[1])


def attach() -> None:
    """Wrap the engine's methods, once; nothing is done when the engine reports by itself."""
    if hasattr(engine, "meter") or hasattr(engine.Engine.train, "__wrapped__"):
        return
    for name, amount in (("train", _steps), ("predict", _images), ("_predict_rows", _images)):
        setattr(engine.Engine, name, _counting(getattr(engine.Engine, name), amount))
