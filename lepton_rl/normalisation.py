"""Batch normalisation statistics of both domains for one network.

Each domain normalises apart: source batches never touch the statistics that target inference uses
(AdaBN, Li et al. 2017; domain-specific batch normalisation, Chang et al. 2019, without its own scale).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lepton_rl.stages import StagePlan

MOMENTUM = 0.1
Side = Literal["source", "target"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive images of a batch that are normalised together, and apart from the rest of it.

    Attributes:
        side: Whose stored statistics they use.
        size: Number of images.
        update: bool `[lanes]`, whose stored statistics they may change; None = nobody's.
    """

    side: Side
    size: int
    update: Tensor | None = None


class DomainStatistics:
    """Two sets of running statistics for the batch normalisation layers of a network.

    Args:
        model: The network; its own statistics are the source's at the start. The `forward` of its layers is
            wrapped, so that a batch of several parts is normalised part by part.
        plan: Which stage a layer belongs to.
    """

    def __init__(self, model: nn.Module, plan: StagePlan) -> None:
        norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        named = [(name, module) for name, module in norms if module.running_mean is not None]
        self.layers = [module for _, module in named]
        self.groups = [plan.group_of(name) for name, _ in named]
        self.sides: dict[Side, list[tuple[Tensor, Tensor]]] = {
            side: [(_mean(layer).clone(), _var(layer).clone()) for layer in self.layers]
            for side in ("source", "target")
        }
        self._counters = [layer.num_batches_tracked for layer in self.layers]
        self._used: tuple[object, ...] = ()
        self._parts: tuple[Part, ...] = ()
        self._live: Sequence[bool] = ()
        numbers = {id(layer): number for number, layer in enumerate(self.layers)}
        for _, layer in norms:  # those without statistics too: they know nothing but the batch
            layer.__dict__["forward"] = partial(self._by_part, layer.forward, numbers.get(id(layer)))

    def use(self, side: Side, live: list[bool], momentum: float) -> None:
        """Point every layer at one domain's statistics.

        Args:
            side: Which domain.
            live: For each of the five layer groups, whether it normalises by the batch.
            momentum: Share of the batch in the stored statistics; 0 leaves them alone, 1 replaces them.
        """
        self._parts = ()
        wanted = (side, tuple(live), momentum)
        if wanted == self._used:
            return
        self._used = wanted
        for number, group in enumerate(self.groups):
            self._point(number, side, live[group], momentum)

    def use_parts(self, parts: tuple[Part, ...], live: list[bool]) -> None:
        """Make every layer normalise the parts of the next batches one by one.

        Args:
            parts: Of the batch; with an `update` they move the statistics.
            live: For each of the five layer groups, whether it normalises by the batch.
        """
        if len(parts) == 1:
            self.use(parts[0].side, live, _momentum(parts[0]))
        else:
            self._parts, self._live, self._used = parts, live, ()

    def _by_part(self, forward: Callable[[Tensor], Tensor], number: int | None, x: Tensor) -> Tensor:
        """Run a layer on each part of a batch."""
        if not self._parts:
            return forward(x)
        each = len(x) // sum(part.size for part in self._parts)  # a network may cut images into pieces
        outputs = []
        for part, rows in zip(self._parts, x.split([each * part.size for part in self._parts]), strict=True):
            if number is not None:
                self._point(number, part.side, self._live[self.groups[number]], _momentum(part))
            outputs.append(forward(rows))
        return torch.cat(outputs)

    def _point(self, number: int, side: Side, live: bool, momentum: float) -> None:
        layer, (mean, var) = self.layers[number], self.sides[side][number]
        apart = live and momentum == 0.0  # normalise by the batch and store nothing, not even 0 x nan
        # Straight into the dictionaries: Module.__setattr__ would take 3 % of the time of a small network's step.
        layer._buffers["running_mean"] = None if apart else mean
        layer._buffers["running_var"] = None if apart else var
        # Counting batches says nothing under a fixed momentum and costs a call per layer.
        layer._buffers["num_batches_tracked"] = None if live else self._counters[number]
        layer.__dict__["training"] = live
        layer.__dict__["momentum"] = momentum

    def snapshot(self) -> dict[str, Tensor]:
        """Copy both sets, by name."""
        return {name: value.clone() for name, value in self._named()}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Put a copy back."""
        for name, value in self._named():
            value.copy_(saved[name])

    def _named(self) -> list[tuple[str, Tensor]]:
        return [
            (f"{side}.{i}.{what}", value)
            for side, pairs in self.sides.items()
            for i, pair in enumerate(pairs)
            for what, value in zip(("mean", "var"), pair, strict=True)
        ]

    def tensors(self) -> list[Tensor]:
        """List all statistics of both domains."""
        return [value for _, value in self._named()]


def _momentum(part: Part) -> float:
    # With a single lane, a part whose statistics must not be stored is one that asks for none.
    return MOMENTUM if part.update is not None else 0.0


def _mean(layer: _BatchNorm) -> Tensor:
    assert layer.running_mean is not None
    return layer.running_mean


def _var(layer: _BatchNorm) -> Tensor:
    assert layer.running_var is not None
    return layer.running_var
