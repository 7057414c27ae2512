"""Whether new images are still those that a model was adapted to, by the gap of their features.

A gap between two samples is never 0. How large it is among random splits of the run's own target images says what is
usual; the threshold is the level that the largest of all gap signals, each in its own standard deviations, exceeds in
one split out of a hundred (the maximum statistic of Westfall and Young 1993, "Resampling-based multiple testing").
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lepton_rl import discrepancy

SPLITS, DRAWS = 400, 50
TOGETHER = 50
LEVEL = 0.99
LEAST_IMAGES, LEAST_REFERENCE = 20, 40
WIDEST = 128
"""Longer feature vectors are projected at random onto so many directions, which keeps distances (Johnson and
Lindenstrauss 1984) and the covariances small."""

GAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mmd": discrepancy.mmd2_ratio,
    "coral": discrepancy.coral_distance,
    "a_distance": discrepancy.proxy_a_distance,
    "mean_shift": discrepancy.mean_shift,
    "variance_shift": discrepancy.variance_shift,
}


@dataclass(frozen=True, kw_only=True)
class Drift:
    """New images against those of the run.

    Attributes:
        gaps: Per signal: the new images' `gap`, the mean among splits (`usual`), the `limit` that 99 in 100 splits
            stay below in all signals at once, and the `score`, the gap in standard deviations above the usual.
        threshold: Scores above it are rarer than one in a hundred.
    """

    gaps: dict[str, dict[str, float]]
    threshold: float

    @property
    def loudest(self) -> str:
        """The signal with the highest score."""
        return max(self.gaps, key=lambda name: self.gaps[name]["score"])

    @property
    def drifted(self) -> bool:
        """Whether the new images differ by more than chance explains."""
        return self.gaps[self.loudest]["score"] > self.threshold

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"drifted": self.drifted, "loudest": self.loudest, "threshold": self.threshold, "signals": self.gaps}


def measure_drift(reference: Tensor, new: Tensor, seed: int = 0) -> Drift:
    """Compare features of new images with those of the run's own target images.

    Args:
        reference: Features `[n, d]`, n >= 40.
        new: Features `[m, d]` under the same weights, m >= 20.
        seed: Of the splits.
    """
    rng = np.random.default_rng(seed)
    reference, new = _narrow(reference, new)
    half = len(reference) // 2
    size = min(half, len(new))

    def split() -> tuple[Tensor, Tensor]:
        order = torch.from_numpy(rng.permutation(len(reference)))
        return reference[order[:half]], reference[order[half : half + size]]

    def draw() -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(rng.permutation(len(new))[:size])
        return split()[0], new[rows]

    usual, found = _gaps(split, SPLITS), _gaps(draw, DRAWS).mean(0)
    mean, spread = usual.mean(0), np.maximum(usual.std(0), 1e-9)
    threshold = float(np.quantile(((usual - mean) / spread).max(1), LEVEL))
    score, limit = (found - mean) / spread, mean + threshold * spread
    columns = zip(GAPS, found.tolist(), mean.tolist(), limit.tolist(), score.tolist(), strict=True)
    return Drift(
        gaps={name: {"gap": g, "usual": u, "limit": at, "score": s} for name, g, u, at, s in columns},
        threshold=threshold,
    )


def _gaps(pair: Callable[[], tuple[Tensor, Tensor]], n: int) -> NDArray[np.float64]:
    """Return all gaps of n pairs of samples, `[n, signals]`; pairs are measured together, as lanes."""
    parts = []
    for start in range(0, n, TOGETHER):
        pairs = [pair() for _ in range(min(TOGETHER, n - start))]
        one, other = (torch.stack(side) for side in zip(*pairs, strict=True))
        parts.append(torch.stack([gap(one, other) for gap in GAPS.values()], dim=1).double().numpy())
    return np.concatenate(parts)


def _narrow(reference: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    d = reference.shape[1]
    if d <= WIDEST:
        return reference, new
    directions = torch.randn(d, WIDEST, generator=torch.Generator().manual_seed(0)) / WIDEST**0.5
    return reference @ directions, new @ directions
