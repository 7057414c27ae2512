"""Adam over lanes: one learning rate, one step count and one freezing mask per lane and layer group."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPS = 1e-8
FULL_RATE_INPUTS = 288
"""Inputs that a unit may have to train at the full learning rate: as many as any has in the training suites."""


def rate_factor(name: str, shape: Sequence[int]) -> float:
    """Return the share of the learning rate that a parameter trains at, above 0 and at most 1.

    A step of Adam moves every weight alike, so that what it does to a unit grows with its inputs; a learning rate
    found on narrow networks is too high for wide ones. Weights of layers with more than `FULL_RATE_INPUTS` inputs get
    less in proportion; biases, normalisation and narrow layers all of it.

    Args:
        name: Dotted name of the parameter.
        shape: Its shape, outputs first.

    Source: Yang et al. 2021, "Tuning large neural networks via zero-shot hyperparameter transfer", table 3 (Adam).
    """
    if len(shape) < 2 or not name.endswith("weight"):
        return 1.0
    return min(1.0, FULL_RATE_INPUTS / math.prod(shape[1:]))


class LaneAdam:
    """Adam for one parameter block `[lanes, p]`, lane by lane as `torch.optim.Adam` would do it.

    A lane that is not trained keeps its weights and its moments; `forget` drops them, as a frozen layer leaves
    an optimizer. All state is changed in place, so that a captured graph of a step stays valid.

    Args:
        parameter: The block.
        factors: Share of the learning rate for each of its weights, `[p]`; None = all of it.

    Source: Kingma and Ba 2015, "Adam", algorithm 1.
    """

    def __init__(self, parameter: Tensor, factors: Tensor | None = None) -> None:
        self.parameter, self.factors = parameter, factors
        self.first = torch.zeros_like(parameter, requires_grad=False)
        self.second = torch.zeros_like(parameter, requires_grad=False)
        self.count = torch.zeros(parameter.shape[0], dtype=torch.float64, device=parameter.device)

    @torch.no_grad()
    def forget(self, lanes: Tensor) -> None:
        """Drop the moments of the lanes marked in a bool mask `[lanes]`."""
        # Filled, not multiplied by 0: a diverged lane's moments may be nan, which a product would keep.
        self.first.masked_fill_(lanes[:, None], 0.0)
        self.second.masked_fill_(lanes[:, None], 0.0)
        self.count.masked_fill_(lanes, 0.0)

    @torch.no_grad()
    def step(self, gradient: Tensor, learning_rate: Tensor, trained: Tensor | None) -> None:
        """Take one step.

        Args:
            gradient: `[lanes, p]`.
            learning_rate: `[lanes]`.
            trained: bool `[lanes]`, other lanes do not move; None = all lanes move.
        """
        if trained is None:
            self.count += 1
            self.first.lerp_(gradient, 1 - BETAS[0])
            self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            self.parameter.sub_(self._update(learning_rate))
            return
        mask = trained[:, None]
        self.count += trained
        self.first.copy_(torch.where(mask, torch.lerp(self.first, gradient, 1 - BETAS[0]), self.first))
        squared = self.second.mul(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        self.second.copy_(torch.where(mask, squared, self.second))
        self.parameter.sub_(self._update(learning_rate).masked_fill_(~mask, 0.0))

    def _update(self, learning_rate: Tensor) -> Tensor:
        count = self.count.clamp(min=1)
        # Per lane numbers are combined in float64 first: one pass over the weights less, and no rounding of 1 - 0.999.
        size = learning_rate / (1 - BETAS[0] ** count)
        root = (1 - BETAS[1] ** count).sqrt()
        denominator = self.second.sqrt().div_(root[:, None].to(self.second.dtype)).add_(EPS)
        update = (self.first / denominator).mul_(size[:, None].to(self.first.dtype))
        return update if self.factors is None else update.mul_(self.factors)
