"""Batch normalisation statistics of both domains for one network.

Each domain normalises apart: source batches never touch the statistics that target inference uses
(AdaBN, Li et al. 2017; domain-specific batch normalisation, Chang et al. 2019, without its own scale).
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lepton_rl.stages import StagePlan

MOMENTUM = 0.1
Side = Literal["source", "target"]


class DomainStatistics:
    """Two sets of running statistics for the batch normalisation layers of a network.

    Args:
        model: The network; its own statistics are the source's at the start.
        plan: Which stage a layer belongs to.
    """

    def __init__(self, model: nn.Module, plan: StagePlan) -> None:
        named = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        self.layers = [module for _, module in named if module.running_mean is not None]
        self.groups = [plan.group_of(name) for name, module in named if module.running_mean is not None]
        self.sides: dict[Side, list[tuple[Tensor, Tensor]]] = {
            side: [(_mean(layer).clone(), _var(layer).clone()) for layer in self.layers]
            for side in ("source", "target")
        }

    def use(self, side: Side, live: list[bool], momentum: float) -> None:
        """Point every layer at one domain's statistics.

        Args:
            side: Which domain.
            live: For each of the five layer groups, whether it normalises by the batch.
            momentum: Share of the batch in the stored statistics; 0 leaves them alone, 1 replaces them.
        """
        for layer, group, (mean, var) in zip(self.layers, self.groups, self.sides[side], strict=True):
            layer.running_mean, layer.running_var = mean, var
            layer.train(live[group])
            layer.momentum = momentum

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

    def finite(self) -> Tensor:
        """Return whether every statistic is finite, bool scalar."""
        checks = [torch.isfinite(value).all() for _, value in self._named()]
        return torch.stack(checks).all() if checks else torch.tensor(True)


def _mean(layer: _BatchNorm) -> Tensor:
    assert layer.running_mean is not None
    return layer.running_mean


def _var(layer: _BatchNorm) -> Tensor:
    assert layer.running_var is not None
    return layer.running_var
