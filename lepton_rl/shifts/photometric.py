"""Shifts that change values where they stand: light, exposure, film, ink and paper."""

from __future__ import annotations

import numpy as np

from lepton_rl.shifts.kernel import FloatImages, Streams, jitter, plane, sign


def brightness(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Expose the whole domain longer (up to 110 added) or shorter (down to a quarter of the light)."""
    own = 1 + 0.1 * jitter(images, streams.image)
    if sign(streams.domain) > 0:
        return np.asarray(images + np.float32(110 * severity) * own, dtype=np.float32)
    return np.asarray(images * (1 - np.clip(0.75 * severity * own, 0, 0.9)), dtype=np.float32)


def contrast(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Pull every image towards its mean until a fifth of the contrast is left."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    left = 1 - 0.8 * severity * (1 + 0.05 * jitter(images, streams.image))
    return np.asarray(mean + (images - mean) * left, dtype=np.float32)


def gamma(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Raise to a power between 1/3 and 3, one way for the domain."""
    power = np.exp(severity * (1.1 * sign(streams.domain) + 0.1 * jitter(images, streams.image)))
    return np.asarray(255 * (images / 255) ** power, dtype=np.float32)


def invert(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Go from the image to its negative.

    The factor on (x - 127.5) falls from 1 to 0.4, then from -0.4 to -1: between them all would be flat grey.
    """
    del streams  # nothing is random here
    factor = 1 - 1.2 * severity if severity < 0.5 else 0.2 - 1.2 * severity
    return np.asarray(127.5 + np.float32(factor) * (images - 127.5), dtype=np.float32)


def illumination(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Light from one side for the domain: down to 0.2 of the light there, up to 1.3 here."""
    ramp = plane(images, streams.domain.uniform(0, 2 * np.pi))
    own = 1 + 0.1 * jitter(images, streams.image)
    gain = 1 + severity * (0.55 * ramp - 0.25) * own
    return np.asarray(images * np.clip(gain, 0.1, None), dtype=np.float32)


def posterize(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Keep between 32 and 2 levels of every channel."""
    del streams  # nothing is random here
    steps = np.float32(round(1 + 30 * (1 - severity) ** 2))
    return np.asarray(np.rint(images / 255 * steps) * (255 / steps), dtype=np.float32)


def tint(images: FloatImages, severity: float, streams: Streams) -> FloatImages:
    """Lay a veil of one colour over the domain (one grey on grey images), up to 55 % opaque."""
    colour = streams.domain.uniform(40, 215, (1, images.shape[1], 1, 1))
    weight = 0.5 * severity * (1 + 0.05 * jitter(images, streams.image))
    return np.asarray(images + weight * (colour - images), dtype=np.float32)
