"""How good a classifier is on labelled images: per class, over all, and how sure that is.

Nothing here may be read by a run: metrics are taken once, after it, on images that it has not seen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
BINS = 15
SCORES = ("accuracy", "balanced_accuracy", "precision", "f1", "ece")
"""Over all classes; balanced accuracy is the mean recall, `precision` and `f1` are means over the classes too."""
PER_CLASS = ("recall", "precision", "f1")

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval, from a bootstrap over the images; NaN where undefined.

    The interval holds the percentiles of the bootstrap samples, moved by their bias: a calibration error is larger in
    a sample of a sample (Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 10).
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """Return the figures, None for NaN, which JSON lacks."""
        return {name: None if math.isnan(x) else x for name, x in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What a model does with labelled images.

    Means over classes are over those with at least one image. Recall is undefined for a class without images,
    precision and F1 for one that is neither there nor predicted; precision is 0 for a class that is never predicted.

    Attributes:
        images: Their number.
        scores: One estimate for each of `SCORES`.
        per_class: For every class, one estimate for each of `PER_CLASS`.
        confusion: `[k][k]` counts: row = true class, column = predicted class.
        reliability: For each of 15 equal ranges of the largest probability: images, their mean largest
            probability and their accuracy (0 without images).
    """

    images: int
    scores: dict[str, Estimate]
    per_class: dict[str, dict[str, Estimate]]
    confusion: list[list[int]]
    reliability: list[tuple[int, float, float]]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "images": self.images,
            "scores": {name: estimate.to_json() for name, estimate in self.scores.items()},
            "per_class": {
                name: {score: estimate.to_json() for score, estimate in row.items()}
                for name, row in self.per_class.items()
            },
            "confusion": self.confusion,
            "reliability": [list(row) for row in self.reliability],
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model before and after, on the same images.

    Attributes:
        before: Of the original.
        after: Of what came out.
        change: For each of `SCORES`, after minus before; the interval is of the paired difference.
    """

    before: Metrics
    after: Metrics
    change: dict[str, Estimate]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "change": {name: estimate.to_json() for name, estimate in self.change.items()},
        }


def compare(labels: NDArray[np.int64], before: Floats, after: Floats, classes: Sequence[str]) -> Comparison:
    """Measure two models on the same images.

    Args:
        labels: True classes `[n]`, n >= 1.
        before: Probabilities `[n, k]` of the original.
        after: Probabilities `[n, k]` of the other model.
        classes: Names of the k classes.
    """
    one, other = _Sample(labels, before), _Sample(labels, after)
    draws_one, draws_other = one.resampled(), other.resampled()
    gaps = draws_other[0] - draws_one[0]
    values = other.scores() - one.scores()
    return Comparison(
        before=one.metrics(classes, *draws_one),
        after=other.metrics(classes, *draws_other),
        change=dict(zip(SCORES, _estimates(values, gaps, -1.0), strict=True)),
    )


class _Sample:
    """Labels and probabilities, reduced to what all figures are made of."""

    def __init__(self, labels: NDArray[np.int64], probabilities: Floats) -> None:
        self.labels, self.k = labels, probabilities.shape[1]
        self.predicted = probabilities.argmax(1)
        self.confidence = probabilities.max(1)
        self.hit = (self.predicted == labels).astype(np.float64)
        self.bin = np.minimum((self.confidence * BINS).astype(np.int64), BINS - 1)

    def scores(self, rows: NDArray[np.int64] | None = None) -> Floats:
        """Return the figures of `SCORES` on some rows, by default all, `[5]`."""
        return self._both(np.arange(len(self.labels)) if rows is None else rows)[0]

    def resampled(self) -> tuple[Floats, Floats]:
        """Return the figures of bootstrap samples, `[1000, 5]` and `[1000, 3, k]`; the draws depend on n alone."""
        rng, n = np.random.default_rng(0), len(self.labels)
        both = [self._both(rng.integers(0, n, n)) for _ in range(RESAMPLES)]
        return np.stack([scores for scores, _ in both]), np.stack([per_class for _, per_class in both])

    def metrics(self, classes: Sequence[str], scores: Floats, per_class: Floats) -> Metrics:
        """Put figures and their bootstrap samples together."""
        n = len(self.labels)
        value, class_value = self._both(np.arange(n))
        estimates = [_estimates(class_value[i], per_class[:, i]) for i in range(len(PER_CLASS))]
        confusion = np.bincount(self.labels * self.k + self.predicted, minlength=self.k**2).reshape(self.k, self.k)
        return Metrics(
            images=n,
            scores=dict(zip(SCORES, _estimates(value, scores), strict=True)),
            per_class={
                name: {score: estimates[i][j] for i, score in enumerate(PER_CLASS)} for j, name in enumerate(classes)
            },
            confusion=confusion.tolist(),
            reliability=self._reliability(),
        )

    def _both(self, rows: NDArray[np.int64]) -> tuple[Floats, Floats]:
        true = np.bincount(self.labels[rows], minlength=self.k).astype(np.float64)
        predicted = np.bincount(self.predicted[rows], minlength=self.k).astype(np.float64)
        correct = np.bincount(self.labels[rows], weights=self.hit[rows], minlength=self.k).astype(np.float64)
        known = true + predicted > 0
        recall = _ratio(correct, true, true > 0)
        precision = np.where(known, _ratio(correct, predicted, predicted > 0, 0.0), np.nan)
        f1 = _ratio(2 * correct, true + predicted, known)
        there = true > 0
        gap = np.bincount(self.bin[rows], weights=(self.confidence - self.hit)[rows], minlength=BINS)
        means = [float(values[there].mean()) for values in (recall, precision, f1)]
        ece = float(np.abs(gap).sum() / len(rows))  # Guo et al. 2017, "On calibration of modern networks", equation 3
        return np.array([correct.sum() / len(rows), *means, ece]), np.stack([recall, precision, f1])

    def _reliability(self) -> list[tuple[int, float, float]]:
        count = np.bincount(self.bin, minlength=BINS)
        sums = (np.bincount(self.bin, weights=w, minlength=BINS) for w in (self.confidence, self.hit))
        confidence, accuracy = (total / np.maximum(count, 1) for total in sums)
        return list(zip(count.tolist(), confidence.tolist(), accuracy.tolist(), strict=True))


def _ratio(top: Floats, bottom: Floats, where: NDArray[np.bool_], otherwise: float = np.nan) -> Floats:
    return np.divide(top, bottom, out=np.full_like(top, otherwise), where=where)


def _estimates(values: Floats, draws: Floats, least: float = 0.0) -> list[Estimate]:
    """Return one estimate per column, in `least`..1; draws `[1000, m]` in which a figure is undefined do not count."""
    edge = 100 * (1 - LEVEL) / 2
    found = []
    for value, column in zip(values.tolist(), draws.T, strict=True):
        defined = column[~np.isnan(column)]
        if math.isnan(value) or len(defined) == 0:
            found.append(Estimate(value=value, low=math.nan, high=math.nan))
            continue
        ends = np.percentile(defined, [edge, 100 - edge]) - (defined.mean() - value)
        # The value lies inside, also where most draws are equal and rounding is all that differs.
        low, high = np.clip([min(ends[0], value), max(ends[1], value)], least, 1.0).tolist()
        found.append(Estimate(value=value, low=low, high=high))
    return found
