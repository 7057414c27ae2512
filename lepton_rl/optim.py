"""Adam over lanes: one learning rate, one step count and one freezing mask per lane and layer group."""

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPS = 1e-8


class LaneAdam:
    """Adam for one parameter block `[lanes, p]`, lane by lane as `torch.optim.Adam` would do it.

    A lane that is not trained keeps its weights and forgets its moments, as a frozen layer leaves an optimizer.

    Source: Kingma and Ba 2015, "Adam", algorithm 1.
    """

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.first = torch.zeros_like(parameter)
        self.second = torch.zeros_like(parameter)
        self.count = torch.zeros(parameter.shape[0], dtype=torch.float64, device=parameter.device)

    def forget(self, lanes: Tensor) -> None:
        """Drop the moments of the lanes marked in a bool mask `[lanes]`."""
        keep = (~lanes).to(self.first.dtype)[:, None]
        # A diverged lane's moments may be nan, which a product would keep.
        self.first = torch.nan_to_num(self.first, 0.0, 0.0, 0.0).mul_(keep)
        self.second = torch.nan_to_num(self.second, 0.0, 0.0, 0.0).mul_(keep)
        self.count = self.count * (~lanes)

    @torch.no_grad()
    def step(self, gradient: Tensor, learning_rate: Tensor, trained: Tensor) -> None:
        """Take one step.

        Args:
            gradient: `[lanes, p]`.
            learning_rate: `[lanes]`.
            trained: bool `[lanes]`; other lanes do not move.
        """
        mask = trained[:, None]
        self.count += trained
        self.first = torch.where(mask, torch.lerp(self.first, gradient, 1 - BETAS[0]), self.first)
        squared = self.second.mul(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        self.second = torch.where(mask, squared, self.second)
        count = self.count.clamp(min=1)
        correction_1 = (1 - BETAS[0] ** count)[:, None].to(gradient.dtype)
        correction_2 = (1 - BETAS[1] ** count)[:, None].to(gradient.dtype)
        denominator = (self.second / correction_2).sqrt_().add_(EPS)
        update = learning_rate[:, None].to(gradient.dtype) * (self.first / correction_1) / denominator
        self.parameter.sub_(torch.where(mask, update, torch.zeros_like(update)))
