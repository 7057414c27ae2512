"""Shifts that add or remove structure: sensor, print, strokes, backgrounds and things in the way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lepton_rl.shifts.kernel import (
    FloatImages,
    Streams,
    apply_rows_columns,
    blur_matrix,
    plane,
    side,
    smooth_noise,
)


def gaussian_noise(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Add noise of standard deviation up to 70 of 255."""
    return images + np.float32(70 * severity) * streams.image.standard_normal(images.shape, dtype=np.float32)


def salt_and_pepper(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Set up to 16 % of the pixels, over all channels, to 0 or 255."""
    n, _, height, width = images.shape
    draw = streams.image.random((n, 1, height, width), dtype=np.float32)
    share = 0.08 * severity
    out = np.where(draw < share, np.float32(0), images)
    return np.where(draw > 1 - share, np.float32(255), out)


def blur(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Defocus with a Gaussian of up to 0.8 pixels of 8, 1.5 of 28, 8 of 224."""
    del streams  # nothing is random here
    sigma = 0.25 + severity * (0.25 + 0.035 * side(images))  # narrower ones change no pixel
    height, width = images.shape[2:]
    return apply_rows_columns(images, blur_matrix(height, sigma), blur_matrix(width, sigma))


def pixelate(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Average over blocks of up to 1.6 pixels of 8, 2.7 of 28, 12 of 224."""
    del streams  # nothing is random here
    block = 1 + severity * (0.25 + 0.05 * side(images))
    return apply_rows_columns(images, *(_block_matrix(n, block) for n in images.shape[2:]))


def _block_matrix(n: int, block: float) -> FloatImages:
    """Return the `[n, n]` map of every pixel to the mean of its block."""
    cells = max(2, min(n - 1, round(n / block)))
    cell = np.arange(n) * cells // n
    same = (cell[:, None] == cell[None]).astype(np.float32)
    return np.asarray(same / same.sum(axis=1, keepdims=True), dtype=np.float32)


def occlusion(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Cover up to 16 % of every image, somewhere, with a rectangle of the domain's colour."""
    n, channels, height, width = images.shape
    colour = streams.domain.uniform(60, 195, (1, channels, 1, 1)).astype(np.float32)
    share = 0.4 * np.sqrt(severity)
    y, x = (_span(n, length, share, streams.image) for length in (height, width))
    return np.where(y[:, None, :, None] & x[:, None, None, :], colour, images)


def _span(n: int, length: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw `[n, length]` masks of one run of pixels each, `share` of the length and at least one."""
    run = max(1, round(share * length))
    start = rng.integers(0, length - run + 1, (n, 1))
    place = np.arange(length)[None]
    mask: NDArray[np.bool_] = (place >= start) & (place < start + run)
    return mask


def stroke_thin(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Erode bright strokes by up to 0.4 pixels of 8, 0.8 of 28, 4 of 224."""
    del streams  # nothing is random here
    return -_grow(-images, severity * (0.3 + 0.018 * side(images)))


def stroke_thick(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Dilate bright strokes by up to 0.6 pixels of 8, 1.4 of 28, 9 of 224."""
    del streams  # nothing is random here
    return _grow(images, severity * (0.25 + 0.04 * side(images)))


def _grow(images: FloatImages, radius: float) -> FloatImages:
    """Dilate by whole cross-shaped steps, and blend in the last part of a step."""
    for weight in [1.0] * int(radius) + [radius % 1]:
        grown = images.copy()
        np.maximum(grown[..., 1:, :], images[..., :-1, :], out=grown[..., 1:, :])
        np.maximum(grown[..., :-1, :], images[..., 1:, :], out=grown[..., :-1, :])
        np.maximum(grown[..., 1:], images[..., :-1], out=grown[..., 1:])
        np.maximum(grown[..., :-1], images[..., 1:], out=grown[..., :-1])
        images = images + np.float32(weight) * (grown - images)
    return images


def stripes(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Print half-transparent stripes of the domain's angle, width and colour; each image has its phase."""
    angle = streams.domain.uniform(0, np.pi)
    waves = streams.domain.uniform(2.0, max(2.5, min(5.0, side(images) / 4)))
    colour = streams.domain.uniform(90, 200, (1, images.shape[1], 1, 1))
    phase = streams.image.uniform(0, 2 * np.pi, (len(images), 1, 1, 1))
    cover = 0.3 * severity * (1 + np.sin(np.pi * waves * plane(images, angle) + phase))
    return np.asarray(images + cover * (colour - images), dtype=np.float32)


def background(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Put a smooth texture behind the foreground; the background is as dark or light as the image's rim."""
    rim = (images[..., [0, -1], :].mean(axis=(1, 2, 3)) + images[..., [0, -1]].mean(axis=(1, 2, 3))) / 2
    light = (rim > 127.5)[:, None, None, None]
    dark = np.where(light, 255 - images, images)
    texture = 0.5 + 0.25 * smooth_noise(images.shape, 4, streams.image)
    texture += 0.2 * smooth_noise(images.shape, max(5, side(images) // 4), streams.image)
    dark = dark + np.float32(severity * 0.75) * np.clip(texture, 0, 1) * (255 - dark)
    return np.asarray(np.where(light, 255 - dark, dark), dtype=np.float32)
