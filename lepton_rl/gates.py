"""Run a network from the middle: what lies below a stage is skipped and its output put in.

Nothing is known of a network but the order of its layer groups, so every unit of a stage gets a gate. On the way
*down* to a cut the gate of the first unit above it takes the unit's input and ends the pass. On the way *up* the
gates below return blanks of the right shape at little cost, and that first unit is given the kept input. Where a
network is no chain of its units (a long skip connection, say) the blanks reach the output, and `prefix.SplitNetwork`
does not cut there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lepton_rl.stages import HEAD, StagePlan


class _Reached(Exception):
    """Ends a pass at the cut, and carries the input of the first unit above it."""

    def __init__(self, value: Tensor) -> None:
        super().__init__("the cut is reached")
        self.value = value


class Gates:
    """Gates on the units of a network, which is changed in place.

    Args:
        model: In evaluation mode; the caller's own copy.
        plan: Its layer groups.
        example: Normalised images `[n, c, h, w]`, from which the shapes between units are learnt.
    """

    def __init__(self, model: nn.Module, plan: StagePlan, example: Tensor) -> None:
        self.model = model
        self._first = {stage: names[0] for stage, names in enumerate(plan.stages) if names}
        self._stage = {name: stage for stage, names in enumerate(plan.stages) for name in names}
        self._image = tuple(example.shape[1:])
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._cut = 0
        self._put_in: Tensor | None = None
        self._filling = 0.0
        for stage, names in enumerate(plan.stages):
            for name in names:
                unit = model.get_submodule(name)
                unit.forward = self._gate(name, stage, unit.forward)
        self._measure(example)

    def can_enter(self, cut: int) -> bool:
        """Return whether every unit below a cut gives one tensor, and the first above it takes one."""
        below = [name for name, stage in self._stage.items() if stage < cut]
        entry = self.entry(cut)
        return entry is not None and f"{entry} in" in self._shapes and all(name in self._shapes for name in below)

    def entry(self, cut: int) -> str | None:
        """Return the unit at which a pass from a cut begins; None if nothing but the head lies above."""
        return next((self._first[stage] for stage in range(cut, HEAD) if stage in self._first), None)

    def lower(self, x: Tensor, cut: int) -> Tensor:
        """Return the input of the first unit above the cut."""
        self._cut, self._put_in = cut, None
        try:
            self.model(x)
        except _Reached as reached:
            return reached.value
        finally:
            self._cut = 0
        raise RuntimeError(f"no unit above the cut at stage {cut} is ever run")

    def upper(self, x: Tensor, cut: int, blank: float = 0.0) -> object:
        """Return what the model puts out when the first unit above the cut is given `x`.

        Args:
            x: What `lower` gave.
            cut: The same cut.
            blank: What blanks are filled with; nan shows whether the output depends on them, however little.
        """
        self._cut, self._put_in, self._filling = cut, x, blank
        rows = len(x) * self._example_rows // self._shapes[f"{self.entry(cut)} in"][0]
        try:
            return self.model(x.new_full((rows, *self._image), blank))
        finally:
            self._cut, self._put_in = 0, None

    @torch.no_grad()
    def _measure(self, example: Tensor) -> None:
        """Learn the shapes that units take and give."""
        self._example_rows = len(example)
        self._cut = -1
        try:
            self.model(example)
        finally:
            self._cut = 0

    def _gate(self, name: str, stage: int, inner: Callable[..., Any]) -> Callable[..., Any]:
        def gate(*inputs: Any, **named: Any) -> Any:  # noqa: ANN401 - a unit may take and give anything
            if self._cut == 0:
                return inner(*inputs, **named)
            if self._cut < 0:
                return self._seen(name, inputs, inner(*inputs, **named))
            if name == self.entry(self._cut):
                if self._put_in is None:
                    raise _Reached(inputs[0])
                return inner(self._put_in, *inputs[1:], **named)
            if stage < self._cut and self._put_in is not None:
                return self._blank(name)
            return inner(*inputs, **named)

        return gate

    def _seen(self, name: str, inputs: tuple[Any, ...], output: Any) -> Any:  # noqa: ANN401
        if inputs and isinstance(inputs[0], Tensor):
            self._shapes[f"{name} in"] = tuple(inputs[0].shape)
        if isinstance(output, Tensor):
            self._shapes[name] = tuple(output.shape)
        return output

    def _blank(self, name: str) -> Tensor:
        """Return a blank in the shape of a unit's output; not an expanded one, as activations may write into it."""
        assert self._put_in is not None
        n, *rest = self._shapes[name]
        kept = self._shapes[f"{self.entry(self._cut)} in"][0]
        return self._put_in.new_full((len(self._put_in) * n // kept, *rest), self._filling)
