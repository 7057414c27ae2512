"""N networks of one architecture as one network that is N times as wide.

Activations are `[b, lanes * channels, h, w]`: a lane is a block of channels. A convolution over lanes is then a
grouped convolution, batch normalisation needs no change at all, group normalisation has N times the groups,
and whatever works element by element or channel by channel (activations, pooling, residual sums) is used as
it is. `stack_lanes` replaces the few layers that differ and leaves the network's own `forward` alone. The layers
take the number of lanes from their weights: with the rows of some lanes the network is one of these lanes.

Source: horizontally fused training arrays (HFTA), Wang et al. 2021; here without the fusion by hand.
"""

import copy
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lepton_rl.errors import InputError
from lepton_rl.normalisation import MOMENTUM, Part
from lepton_rl.stages import N_GROUPS

Implementation = Literal["auto", "grouped", "matmul"]

CHANNELWISE = (
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Identity,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
)


@dataclass
class LaneMode:
    """How the normalisation layers of all lanes behave in the next forward pass.

    Attributes:
        parts: Of the batch, each normalised on its own.
        live: Which lane and layer group normalises by the batch, bool `[lanes, 5]`; None = none does.
        momentum: Share of the batch in the changed statistics.
        everyone: For each part whether the host knows that its `update` marks all lanes.
        all_live: For each layer group whether the host knows that all lanes are live in it.
        any_live: For each layer group whether any lane is.
    """

    parts: tuple[Part, ...] = (Part(side="target", size=1),)
    live: Tensor | None = None
    momentum: float = MOMENTUM
    everyone: list[bool] = field(default_factory=lambda: [False])
    all_live: list[bool] = field(default_factory=lambda: [False] * N_GROUPS)
    any_live: list[bool] = field(default_factory=lambda: [True] * N_GROUPS)


class LaneConv2d(nn.Module):
    """Convolution with one weight per lane.

    Args:
        conv: Its weights are every lane's at the start.
        lanes: Number of lanes.
        implementation: `grouped`, one convolution with a group per lane; `matmul`, patches unfolded and one
            batched matrix product, which needs more memory; `auto`, see `choose_convolution`.
    """

    def __init__(self, conv: nn.Conv2d, lanes: int, implementation: Implementation = "auto") -> None:
        super().__init__()
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise InputError(f"convolution {conv} cannot be stacked: expected zero padding by numbers; use SoloEngine")
        self.groups, self.implementation = conv.groups, implementation
        self.kernel, self.stride, self.padding, self.dilation = (
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
        )
        self.weight = nn.Parameter(conv.weight.detach().expand(lanes, *conv.weight.shape).clone())
        self.bias: nn.Parameter | None = None
        if conv.bias is not None:
            self.bias = nn.Parameter(conv.bias.detach().expand(lanes, -1).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, lanes * c, h, w]` to `[b, lanes * c', h', w']`."""
        how, lanes = self.implementation, len(self.weight)
        if how == "auto":
            how = choose_convolution(x.device.type, lanes)
        if how == "matmul":
            return self._matmul(x)
        weight = self.weight.flatten(0, 1)
        bias = None if self.bias is None else self.bias.flatten()
        out: Tensor = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, lanes * self.groups)
        return out

    def _matmul(self, x: Tensor) -> Tensor:
        b, products = x.shape[0], len(self.weight) * self.groups
        patches = F.unfold(x, self.kernel, self.dilation, self.padding, self.stride)
        columns = patches.unflatten(1, (products, -1)).permute(1, 2, 0, 3).flatten(2)
        weight = self.weight.reshape(products, -1, columns.shape[1])
        out: Tensor = torch.bmm(weight, columns).unflatten(2, (b, -1)).permute(2, 0, 1, 3)
        out = out.reshape(b, -1, *self._size(x.shape[2:]))
        if self.bias is not None:
            out = out + self.bias.flatten()[:, None, None]
        return out

    def _size(self, shape: torch.Size) -> list[int]:
        settings = zip(shape, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [(n + 2 * int(pad) - far * (k - 1) - 1) // step + 1 for n, k, step, pad, far in settings]


def choose_convolution(device: str, lanes: int) -> Implementation:
    """Return how to convolve: a recorded rule, not a measurement at run time, so that runs can be repeated exactly."""
    if lanes == 1 or device == "cpu":
        return "grouped"
    return "matmul"


class LaneLinear(nn.Module):
    """Linear layer with one weight per lane."""

    def __init__(self, linear: nn.Linear, lanes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().expand(lanes, -1, -1).clone())
        self.bias: nn.Parameter | None = None
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach().expand(lanes, -1).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, lanes * d]` to `[b, lanes * k]`."""
        by_lane = x.unflatten(1, (len(self.weight), -1)).transpose(0, 1)
        out: Tensor = by_lane @ self.weight.mT
        if self.bias is not None:
            out = out + self.bias[:, None]
        return out.transpose(0, 1).flatten(1)


class LaneBatchNorm2d(nn.Module):
    """Batch normalisation with statistics per lane and domain, each lane live or frozen on its own.

    Attributes:
        group: Layer group of the network that the layer belongs to; the fleet sets it.
        mode: Shared by all layers of a network; the fleet sets it before a pass.
    """

    group: int
    mode: LaneMode

    def __init__(self, norm: nn.BatchNorm2d, lanes: int) -> None:
        super().__init__()
        if norm.running_mean is None or norm.running_var is None or norm.weight is None:
            raise InputError(f"{norm} cannot be stacked: expected running statistics and a scale; use SoloEngine")
        self.eps = norm.eps
        self.weight = nn.Parameter(norm.weight.detach().expand(lanes, -1).clone())
        self.bias = nn.Parameter(norm.bias.detach().expand(lanes, -1).clone())
        for side in ("source", "target"):
            self.register_buffer(f"{side}_mean", norm.running_mean.expand(lanes, -1).clone())
            self.register_buffer(f"{side}_var", norm.running_var.expand(lanes, -1).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, lanes * c, h, w]` to the same shape."""
        parts, everyone = self.mode.parts, self.mode.everyone
        if len(parts) == 1:
            return self._part(x, parts[0], everyone[0])
        pieces = zip(x.split([part.size for part in parts]), parts, everyone, strict=True)
        return torch.cat([self._part(piece, part, all_lanes) for piece, part, all_lanes in pieces])

    def _part(self, x: Tensor, part: Part, everyone: bool) -> Tensor:
        """Normalise what belongs together."""
        mode = self.mode
        mean, var = self._stored(part)
        if mode.live is None or not mode.any_live[self.group]:
            return self._native(x, mean, var, batch=False)
        if mode.all_live[self.group] and part.update is None:
            return self._native(x, None, None, batch=True)
        if mode.all_live[self.group] and everyone:
            return self._native(x, mean, var, batch=True)
        live = mode.live[:, self.group, None]
        batch_var, batch_mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        batch_mean, batch_var = (value.view_as(mean) for value in (batch_mean, batch_var))
        if part.update is not None:
            self._store(part, batch_mean, batch_var, x.numel() // x.shape[1], part.update[:, None] & live)
        scale = self.weight * torch.rsqrt(torch.where(live, batch_var, var) + self.eps)
        offset = self.bias - torch.where(live, batch_mean, mean) * scale
        return x * scale.flatten()[None, :, None, None] + offset.flatten()[None, :, None, None]

    def _native(self, x: Tensor, mean: Tensor | None, var: Tensor | None, *, batch: bool) -> Tensor:
        """Normalise lanes that all do the same: as lanes are channels, the usual operation does. Moves mean and var."""
        mean, var = (None if value is None else value.view(-1) for value in (mean, var))
        weight, bias = self.weight.flatten(), self.bias.flatten()
        return F.batch_norm(x, mean, var, weight, bias, batch, self.mode.momentum, self.eps)

    def _stored(self, part: Part) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"{part.side}_mean"), self.get_buffer(f"{part.side}_var")

    @torch.no_grad()
    def _store(self, part: Part, batch_mean: Tensor, batch_var: Tensor, n: int, lanes: Tensor) -> None:
        unbiased = batch_var * (n / max(n - 1, 1))
        for stored, batch in zip(self._stored(part), (batch_mean, unbiased), strict=True):
            stored.copy_(torch.where(lanes, stored.lerp(batch, self.mode.momentum), stored))


class LaneGroupNorm(nn.Module):
    """Group normalisation with one scale and shift per lane."""

    def __init__(self, norm: nn.GroupNorm, lanes: int) -> None:
        super().__init__()
        if norm.weight is None:
            raise InputError(f"{norm} cannot be stacked: expected a scale; use SoloEngine")
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight = nn.Parameter(norm.weight.detach().expand(lanes, -1).clone())
        self.bias = nn.Parameter(norm.bias.detach().expand(lanes, -1).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, lanes * c, h, w]` to the same shape."""
        return F.group_norm(x, len(self.weight) * self.groups, self.weight.flatten(), self.bias.flatten(), self.eps)


def stack_lanes(model: nn.Module, lanes: int, implementation: Implementation = "auto") -> nn.Module:
    """Return a copy of a network whose parameters and statistics have a leading lane dimension.

    Args:
        model: A network made of the layers above and of channel-wise ones; its `forward` may add and chain
            them but not mix channels in other ways.
        lanes: Number of lanes; all start with the model's own weights.
        implementation: Of the convolutions.

    Raises:
        InputError: If a layer is not supported.
    """
    stacked = copy.deepcopy(model)
    for name, layer in list(stacked.named_modules()):
        replacement = _lane_layer(layer, lanes, implementation)
        if replacement is not None:
            parent, _, child = name.rpartition(".")
            setattr(stacked.get_submodule(parent), child, replacement)
    return stacked


def _lane_layer(layer: nn.Module, lanes: int, implementation: Implementation) -> nn.Module | None:
    match layer:
        case nn.Conv2d():
            return LaneConv2d(layer, lanes, implementation)
        case nn.Linear():
            return LaneLinear(layer, lanes)
        case nn.BatchNorm2d():
            return LaneBatchNorm2d(layer, lanes)
        case nn.GroupNorm():
            return LaneGroupNorm(layer, lanes)
    if not list(layer.children()) and not isinstance(layer, CHANNELWISE):
        raise InputError(
            f"layer {type(layer).__name__} cannot be stacked: expected convolutions, linear layers, batch or group "
            "normalisation and channel-wise layers; use SoloEngine"
        )
    return None
