"""Batch normalisation statistics of both domains for one network.

Each domain normalises apart: source batches never touch the statistics that target inference uses
(AdaBN, Li et al. 2017; domain-specific batch normalisation, Chang et al. 2019, without its own scale).
"""

from typing import Literal

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
        named = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        ]
        self.layers = [module for _, module in named]
        self.groups = [plan.group_of(name) for name, _ in named]
        self.sides: dict[Side, list[tuple[Tensor, Tensor]]] = {
            side: [(_mean(layer).clone(), _var(layer).clone()) for layer in self.layers]
            for side in ("source", "target")
        }
        self._counters = [layer.num_batches_tracked for layer in self.layers]
        self._used: tuple[object, ...] = ()

    def use(self, side: Side, live: list[bool], momentum: float) -> None:
        """Point every layer at one domain's statistics.

        Args:
            side: Which domain.
            live: For each of the five layer groups, whether it normalises by the batch.
            momentum: Share of the batch in the stored statistics; 0 leaves them alone, 1 replaces them.
        """
        wanted = (side, tuple(live), momentum)
        if wanted == self._used:
            return
        self._used = wanted
        layers = zip(self.layers, self.groups, self.sides[side], self._counters, strict=True)
        for layer, group, (mean, var), counter in layers:
            apart = live[group] and momentum == 0.0  # normalise by the batch and store nothing, not even 0 x nan
            # Straight into the dictionaries: Module.__setattr__ would take 3 % of the time of a small network's step.
            layer._buffers["running_mean"] = None if apart else mean
            layer._buffers["running_var"] = None if apart else var
            # Counting batches says nothing under a fixed momentum and costs a call per layer.
            layer._buffers["num_batches_tracked"] = None if live[group] else counter
            layer.__dict__["training"] = live[group]
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


def _mean(layer: _BatchNorm) -> Tensor:
    assert layer.running_mean is not None
    return layer.running_mean


def _var(layer: _BatchNorm) -> Tensor:
    assert layer.running_var is not None
    return layer.running_var
