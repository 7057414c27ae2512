"""Augmentation of labelled images, per lane strength, drawn from the lane's own stream."""

import torch
from torch import Tensor

from lepton_rl import streams

MAX_TRANSLATION = 0.125  # share of the image side, at strength 1
MAX_CONTRAST = 0.5
MAX_BRIGHTNESS = 0.25


def augment(images: Tensor, strength: Tensor, seeds: Tensor, step: Tensor) -> Tensor:
    """Translate, and change contrast and brightness; strength 0 returns the images.

    Args:
        images: In 0..1, `[lanes, b, c, h, w]`.
        strength: 0..1, `[lanes]`.
        seeds: Lane seeds, int64 `[lanes]`.
        step: Gradient step, int64 `[lanes]`.

    Returns:
        Images `[lanes, b, c, h, w]`, not clamped.
    """
    b, (h, w) = images.shape[1], images.shape[-2:]
    scale = strength.to(images.dtype)[:, None]

    def symmetric(stream: int) -> Tensor:
        return streams.uniform(seeds, stream, step[:, None], b)[:, 0].to(images.dtype) * 2 - 1

    dy = (symmetric(streams.SHIFT_Y) * scale * max(1.0, MAX_TRANSLATION * h)).round().long()
    dx = (symmetric(streams.SHIFT_X) * scale * max(1.0, MAX_TRANSLATION * w)).round().long()
    rows = (torch.arange(h, device=images.device) + dy[..., None]).clamp(0, h - 1)
    columns = (torch.arange(w, device=images.device) + dx[..., None]).clamp(0, w - 1)
    moved = images.gather(3, rows[:, :, None, :, None].expand(-1, -1, images.shape[2], -1, w))
    moved = moved.gather(4, columns[:, :, None, None, :].expand(-1, -1, images.shape[2], h, -1))
    contrast = 1 + MAX_CONTRAST * scale * symmetric(streams.CONTRAST)
    brightness = MAX_BRIGHTNESS * scale * symmetric(streams.BRIGHTNESS)
    centre = moved.mean(dim=(2, 3, 4), keepdim=True)
    return (moved - centre) * contrast[..., None, None, None] + centre + brightness[..., None, None, None]
