"""What every shift kernel is given, and the linear maps that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatImages = NDArray[np.float32]
"""float32 `[n, c, h, w]`, nominally 0..255; a kernel may leave the range, `Shift` clips and rounds."""


class Streams(NamedTuple):
    """Random streams of one shift.

    Attributes:
        domain: What all images share, such as the angle; starts afresh for every part of a large domain, so
            that it is the same for all parts and for separately shifted splits.
        image: What differs from image to image; goes on from part to part.
    """

    domain: np.random.Generator
    image: np.random.Generator


Kernel = Callable[[FloatImages, float, Streams], FloatImages]
"""`kernel(images, severity in (0, 1], streams)` returns images of the same shape, its input left as is."""


def side(images: FloatImages) -> int:
    """Return the shorter image side in pixels, by which lengths scale."""
    return int(min(images.shape[2:]))


def sign(rng: np.random.Generator) -> float:
    """Draw -1 or 1."""
    return float(rng.integers(2)) * 2.0 - 1.0


def jitter(images: FloatImages, rng: np.random.Generator) -> FloatImages:
    """Draw one standard normal number an image, cut at +-2, as `[n, 1, 1, 1]`."""
    draws = rng.standard_normal((len(images), 1, 1, 1), dtype=np.float32)
    return np.clip(draws, -2, 2)


def apply_rows_columns(images: FloatImages, rows: FloatImages, columns: FloatImages) -> FloatImages:
    """Apply a separable linear map: `rows @ image @ columns.T` for every image and channel."""
    return np.asarray(rows @ images @ columns.T, dtype=np.float32)


def blur_matrix(n: int, sigma: float) -> FloatImages:
    """Return the `[n, n]` Gaussian filter of width `sigma` pixels; the border pixel continues outside."""
    radius = int(np.ceil(3 * sigma))
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    matrix = np.zeros((n, n))
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        matrix[np.arange(n), np.clip(np.arange(n) + offset, 0, n - 1)] += weight
    return matrix.astype(np.float32)


def interpolation_matrix(n_out: int, n_in: int) -> FloatImages:
    """Return the `[n_out, n_in]` linear interpolation between the centres of pixels."""
    position = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    low = np.floor(position).astype(np.int64)
    matrix = np.zeros((n_out, n_in))
    matrix[np.arange(n_out), low] += 1 - (position - low)
    matrix[np.arange(n_out), np.minimum(low + 1, n_in - 1)] += position - low
    return matrix.astype(np.float32)


def smooth_noise(shape: Sequence[int], cells: int, rng: np.random.Generator) -> FloatImages:
    """Draw smooth standard normal fields `[n, c, h, w]` that vary over about 1/`cells` of the image."""
    coarse = rng.standard_normal((shape[0], shape[1], cells, cells), dtype=np.float32)
    return apply_rows_columns(coarse, interpolation_matrix(shape[2], cells), interpolation_matrix(shape[3], cells))


def plane(images: FloatImages, angle: float) -> FloatImages:
    """Return `[h, w]` coordinates along `angle` (radians), -1..1 between the image's outermost pixels."""
    height, width = images.shape[2:]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    raw = np.cos(angle) * x + np.sin(angle) * y
    return np.asarray(raw / max(1e-6, float(np.abs(raw).max())), dtype=np.float32)
