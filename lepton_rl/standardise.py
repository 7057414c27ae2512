"""Inputs of small networks, brought to one scale and kept inside of what training has seen."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

MIN_STD = 0.05  # inputs that hardly move in training must not explode on a task where they do


@dataclass(frozen=True, kw_only=True, eq=False)
class Standardiser:
    """Clip to the range of the training, subtract its mean, divide by its standard deviation.

    A network's answer to what it has never seen anything like is arbitrary; clipped, the nearest that it has seen
    answers. A network a thousand times the size of those of the training suites, for example, counts as a large one.

    Attributes:
        mean: `[n]`.
        std: Above 0, `[n]`.
        low: Least value let through, `[n]`.
        high: Greatest value let through, at least `low`, `[n]`.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """Take the statistics and the range of rows, `[m, n]`."""
        return cls(
            mean=rows.mean(0), std=rows.std(0).clamp(min=MIN_STD), low=rows.min(0).values, high=rows.max(0).values
        )

    @classmethod
    def unchanged(cls, n: int) -> Self:
        """Let everything through as it is."""
        most = torch.full((n,), torch.finfo(torch.float32).max)
        return cls(mean=torch.zeros(n), std=torch.ones(n), low=-most, high=most)

    def __call__(self, x: Tensor) -> Tensor:
        """Standardise, `[..., n]`."""
        return (x.clamp(self.low, self.high) - self.mean) / self.std
