"""The small CNN family the controller is trained on.

Each network has four stages and a head, `StagedNet.stages[0..3]` and `StagedNet.head`: what the knob
*unfrozen stages* counts. Networks come from the caller's own `nn.Module` as well (see `stages.py`);
these are the ones that need no download and train in milliseconds.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lepton_rl.errors import InputError

CHANNEL_FACTORS = (1, 2, 2, 4)
STRIDES = (1, 2, 1, 2)


class StagedNet(nn.Module):
    """Four stages, global average pooling, a linear head.

    Args:
        stages: Four modules, each `[n, c, h, w] -> [n, c', h', w']`.
        width: Channels that the last stage puts out; the length of a feature vector.
        n_classes: Outputs of the head.
    """

    def __init__(self, stages: list[nn.Module], width: int, n_classes: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[n, c, h, w]` to logits `[n, k]`."""
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(self.flatten(self.pool(x)))
        return logits


def _conv(n_in: int, n_out: int, stride: int, norm: Callable[[int], nn.Module]) -> list[nn.Module]:
    # No bias before a normalisation layer: it would have no effect and a gradient of pure rounding noise.
    return [nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False), norm(n_out)]


class ResidualBlock(nn.Module):
    """Two convolutions and a short cut (He et al. 2016, "Deep residual learning", figure 2)."""

    def __init__(self, n_in: int, n_out: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(n_in, n_out, stride, norm), nn.ReLU(), *_conv(n_out, n_out, 1, norm))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False), norm(n_out))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, c, h, w]` to `[n, c', h', w']`."""
        out: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return out


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(4, channels)


def _stage_shapes(channels: int, width: int) -> list[tuple[int, int, int]]:
    """List input channels, output channels and stride of the four stages."""
    n_out = [width * factor for factor in CHANNEL_FACTORS]
    return list(zip([channels, *n_out[:-1]], n_out, STRIDES, strict=True))


def _plain(channels: int, n_classes: int, width: int, norm: Callable[[int], nn.Module]) -> StagedNet:
    shapes = _stage_shapes(channels, width)
    stages: list[nn.Module] = [nn.Sequential(*_conv(i, o, s, norm), nn.ReLU()) for i, o, s in shapes]
    return StagedNet(stages, shapes[-1][1], n_classes)


def _residual(channels: int, n_classes: int, width: int, norm: Callable[[int], nn.Module]) -> StagedNet:
    (n_in, n_out, stride), *shapes = _stage_shapes(channels, width)
    stem = nn.Sequential(*_conv(n_in, n_out, stride, norm), nn.ReLU())
    return StagedNet([stem, *(ResidualBlock(i, o, s, norm) for i, o, s in shapes)], shapes[-1][1], n_classes)


def vgg(channels: int, n_classes: int, width: int) -> StagedNet:
    """Build a VGG-style network with batch normalisation (Simonyan and Zisserman 2015)."""
    return _plain(channels, n_classes, width, nn.BatchNorm2d)


def resnet(channels: int, n_classes: int, width: int) -> StagedNet:
    """Build a residual network with batch normalisation (He et al. 2016)."""
    return _residual(channels, n_classes, width, nn.BatchNorm2d)


def vgg_gn(channels: int, n_classes: int, width: int) -> StagedNet:
    """Build the VGG-style network with group normalisation (Wu and He 2018): no batch statistics."""
    return _plain(channels, n_classes, width, _group_norm)


def resnet_gn(channels: int, n_classes: int, width: int) -> StagedNet:
    """Build the residual network with group normalisation; held out from meta-training."""
    return _residual(channels, n_classes, width, _group_norm)


ARCHITECTURES: dict[str, Callable[[int, int, int], StagedNet]] = {
    "vgg": vgg,
    "resnet": resnet,
    "vgg-gn": vgg_gn,
    "resnet-gn": resnet_gn,
}
TRAIN_ARCHITECTURES = ("vgg", "resnet", "vgg-gn")
HELD_OUT_ARCHITECTURES = ("resnet-gn",)


def build_model(name: str, *, channels: int, n_classes: int, width: int = 16, seed: int = 0) -> StagedNet:
    """Build a network of the family with weights drawn from `seed`, leaving global random state alone.

    Args:
        name: One of `ARCHITECTURES`.
        channels: Image channels, 1 or 3.
        n_classes: Outputs of the head.
        width: Channels of the first stage, a multiple of 4; the last stage has four times as many.
        seed: Seed of the initial weights.

    Raises:
        InputError: If the name is unknown.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"architecture {name!r} is unknown: expected one of {', '.join(ARCHITECTURES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[name](channels, n_classes, width)
