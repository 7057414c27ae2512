"""Parametric changes of a domain: a kind, a severity and a random stream of its own."""

from __future__ import annotations

import difflib
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.shifts import geometric, photometric, texture
from lepton_rl.shifts.kernel import Kernel, Streams

__all__ = ["HELD_OUT_KINDS", "KERNELS", "SHIFT_KINDS", "TRAIN_KINDS", "Shift", "compose"]

KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "background": texture.background,
        "blur": texture.blur,
        "brightness": photometric.brightness,
        "contrast": photometric.contrast,
        "elastic": geometric.elastic,
        "gamma": photometric.gamma,
        "gaussian_noise": texture.gaussian_noise,
        "illumination": photometric.illumination,
        "invert": photometric.invert,
        "motion_blur": geometric.motion_blur,
        "occlusion": texture.occlusion,
        "perspective": geometric.perspective,
        "pixelate": texture.pixelate,
        "posterize": photometric.posterize,
        "rotate": geometric.rotate,
        "salt_and_pepper": texture.salt_and_pepper,
        "scale": geometric.scale,
        "shear": geometric.shear,
        "stripes": texture.stripes,
        "stroke_thick": texture.stroke_thick,
        "stroke_thin": texture.stroke_thin,
        "tint": photometric.tint,
        "translate": geometric.translate,
    }
)
SHIFT_KINDS: tuple[str, ...] = tuple(KERNELS)
HELD_OUT_KINDS: tuple[str, ...] = ("background", "elastic", "pixelate", "stripes")
"""Kinds that no policy is trained on; each differs in nature from the others, not only in its numbers."""
TRAIN_KINDS: tuple[str, ...] = tuple(kind for kind in SHIFT_KINDS if kind not in HELD_OUT_KINDS)

_PART_VALUES = 2**22  # pixel values worked on at once, so that large domains do not fill the memory with floats


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Change every image of a domain in one way; labels stay.

    What the domain shares (an angle, a colour) depends on kind and seed only, so separately shifted splits of
    one domain agree. Shift before splitting if the noise of single images must differ between splits.

    Attributes:
        kind: One of `SHIFT_KINDS`.
        severity: 0 (the identical images) .. 1 (severe, though people still recognise most of it).
        seed: 0 or more; the random stream depends on kind and seed alone.
    """

    kind: str
    severity: float
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown kinds and values out of range."""
        if self.kind not in KERNELS:
            near = difflib.get_close_matches(str(self.kind), SHIFT_KINDS, n=1, cutoff=0.0)[0]
            raise InputError(
                f"shift kind {self.kind!r} is not known: did you mean {near!r}? "
                f"Expected one of {', '.join(SHIFT_KINDS)}"
            )
        if isinstance(self.severity, bool) or not isinstance(self.severity, (int, float, np.floating)):
            raise TypeError(f"severity is {self.severity!r}: expected a number in 0..1")
        if not (math.isfinite(self.severity) and 0 <= self.severity <= 1):
            raise InputError(f"severity is {self.severity!r}: expected a number in 0..1; 0 changes nothing")
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, np.integer)):
            raise TypeError(f"seed is {self.seed!r}: expected an integer of 0 or more")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed!r}: expected an integer of 0 or more")

    def __call__(self, domain: Domain) -> Domain:
        """Return the shifted domain; its name ends in `+kind` and the severity."""
        name = f"{domain.name}+{self.kind}{float(self.severity):g}"
        if self.severity == 0 or len(domain) == 0:
            return domain.renamed(name)
        return replace(domain, images=self._shifted(domain.images), name=name)

    def _shifted(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        shared, own = np.random.SeedSequence((int(self.seed), zlib.crc32(self.kind.encode()))).spawn(2)
        rng = np.random.default_rng(own)
        out = np.empty_like(images)
        part = max(1, _PART_VALUES // images[0].size)
        for start in range(0, len(images), part):
            streams = Streams(domain=np.random.default_rng(shared), image=rng)
            floats = images[start : start + part].astype(np.float32)
            floats = KERNELS[self.kind](floats, float(self.severity), streams)
            out[start : start + part] = np.clip(np.rint(floats), 0, 255).astype(np.uint8)
        return out


def compose(domain: Domain, shifts: Iterable[Shift]) -> Domain:
    """Apply `shifts` one after the other."""
    for shift in shifts:
        domain = shift(domain)
    return domain
