"""Count gradient steps and evaluated images, whatever the code that takes them says about itself.

`Engine` reports to whoever measures; steps of any other torch optimizer are counted by a hook of torch's own, so
that training by hand is seen too. Counting costs nothing while nobody measures.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook


@dataclass
class Meter:
    """What was counted.

    Attributes:
        engine_steps: Gradient steps of all engines, summed over their lanes.
        optimizer_steps: Calls of `step` of any torch optimizer.
        images: Images that engines evaluated outside of training steps: signals, validation, predictions.
    """

    engine_steps: int = 0
    optimizer_steps: int = 0
    images: int = 0

    @property
    def steps(self) -> int:
        """Gradient steps: the larger count, as an engine may have an optimizer of its own making, or torch's."""
        return max(self.engine_steps, self.optimizer_steps)


_open: ContextVar[tuple[Meter, ...]] = ContextVar("open meters", default=())


def count(steps: int, images: int = 0) -> None:
    """Report gradient steps and evaluated images to every open meter."""
    for meter in _open.get():
        meter.engine_steps += steps
        meter.images += images


@contextmanager
def measuring() -> Iterator[Meter]:
    """Count what happens inside; meters may be nested, and each counts all that is inside of it."""
    meter = Meter()

    def stepped(*_: Any) -> None:  # noqa: ANN401
        meter.optimizer_steps += 1

    hook = register_optimizer_step_post_hook(stepped)
    token = _open.set((*_open.get(), meter))
    try:
        yield meter
    finally:
        _open.reset(token)
        hook.remove()
