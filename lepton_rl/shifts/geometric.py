"""Shifts that move pixels: pose, camera and handwriting. The border pixel continues outside the image."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_rl.shifts.kernel import FloatImages, Streams, jitter, side, sign, smooth_noise


def sample(images: FloatImages, grid: FloatImages) -> FloatImages:
    """Sample bilinearly at `grid`, `[n, h, w, 2]` of (x, y), where -1..1 spans the image edge to edge."""
    return np.asarray(
        torch.nn.functional.grid_sample(
            torch.from_numpy(images),
            torch.from_numpy(np.array(grid, dtype=np.float32, order="C")),  # a view may be read-only
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        ).numpy()
    )


def identity_grid(images: FloatImages) -> FloatImages:
    """Return the `[h, w, 2]` grid that leaves an image as it is."""
    height, width = images.shape[2:]
    y = (2 * np.arange(height, dtype=np.float32) + 1) / height - 1
    x = (2 * np.arange(width, dtype=np.float32) + 1) / width - 1
    return np.stack(np.broadcast_arrays(x[None], y[:, None]), axis=-1)


def warp(images: FloatImages, matrices: NDArray[np.floating], offsets: NDArray[np.floating]) -> FloatImages:
    """Show at every place p what was at `A p + t`.

    Args:
        images: `[n, c, h, w]`.
        matrices: `[n, 2, 2]`, A, on (x, y) in pixels from the centre.
        offsets: `[n, 2]`, t, (x, y) as a share of the image's width and height.
    """
    height, width = images.shape[2:]
    aspect = np.array([[1, height / width], [width / height, 1]])  # pixels to edge-to-edge coordinates
    turned = np.swapaxes(matrices * aspect, 1, 2).astype(np.float32)
    grid = identity_grid(images).reshape(1, -1, 2) @ turned + 2 * offsets[:, None].astype(np.float32)
    return sample(images, grid.reshape(len(images), height, width, 2))


def _linear(images: FloatImages, rows: list[list[NDArray[np.floating] | float]]) -> FloatImages:
    """Warp by matrices given as two rows of two numbers, each `[n]` or one for all."""
    n = len(images)
    matrices = np.stack([np.stack([np.broadcast_to(v, n) for v in row], axis=-1) for row in rows], axis=1)
    return warp(images, matrices, np.zeros((n, 2)))


def rotate(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Turn by up to 35 degrees one way for the domain, with up to 10 degrees from image to image."""
    noise = jitter(images, streams.image)[:, 0, 0, 0]
    angle = np.deg2rad(severity * (35 * sign(streams.domain) + 5 * noise))
    return _linear(images, [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def scale(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Shrink to 60 % or enlarge to 135 %, one of the two for the domain."""
    limit = np.log(0.6) if sign(streams.domain) < 0 else np.log(1.35)
    size = np.exp(severity * (limit + 0.04 * jitter(images, streams.image)[:, 0, 0, 0]))
    return _linear(images, [[1 / size, 0.0], [0.0, 1 / size]])


def translate(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Move by up to 15 % of the size in one direction for the domain, with 5 % from image to image."""
    angle = streams.domain.uniform(0, 2 * np.pi)
    common = 0.15 * np.array([np.cos(angle), np.sin(angle)])
    own = streams.image.uniform(-0.05, 0.05, (len(images), 2))
    matrices = np.broadcast_to(np.eye(2), (len(images), 2, 2))
    return warp(images, matrices, severity * (common + own))


def shear(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Slant by up to 0.6 of the height one way for the domain, like leaning handwriting."""
    noise = jitter(images, streams.image)[:, 0, 0, 0]
    return _linear(images, [[1.0, severity * (0.6 * sign(streams.domain) + 0.07 * noise)], [0.0, 1.0]])


def perspective(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Tilt the image plane: (x, y) is taken from (x, y) / (1 + a x + b y), with a^2 + b^2 up to 0.45^2."""
    angle = streams.domain.uniform(0, 2 * np.pi) + 0.2 * jitter(images, streams.image)[..., 0]
    grid = identity_grid(images)[None]
    depth = 1 + 0.45 * severity * (np.cos(angle) * grid[..., 0] + np.sin(angle) * grid[..., 1])
    return sample(images, grid / depth[..., None])


def elastic(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Bend every image by its own smooth field, standard deviation up to about 5 % of the size.

    Source: Simard, Steinkraus & Platt (2003), Best practices for convolutional neural networks, section 2.
    """
    n, _, height, width = images.shape
    field = smooth_noise((n, 2, height, width), 4, streams.image)
    move = 2 * 0.07 * severity * np.clip(field, -2, 2)
    return sample(images, identity_grid(images) + np.moveaxis(move, 1, -1))


def motion_blur(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Average along one direction for the domain, over up to 2.1 pixels of 8, 3.7 of 28, 19 of 224."""
    angle = streams.domain.uniform(0, np.pi)
    length = severity * (1.5 + 0.08 * side(images))
    steps = np.linspace(-0.5, 0.5, max(3, int(np.ceil(length)) + 1))
    direction = length * np.array([np.cos(angle) / images.shape[3], np.sin(angle) / images.shape[2]])
    grid = identity_grid(images)
    total = np.zeros_like(images)
    for step in steps:
        moved = (grid + 2 * step * direction).astype(np.float32)
        total += sample(images, np.broadcast_to(moved, (len(images), *moved.shape)))
    return total / np.float32(len(steps))
