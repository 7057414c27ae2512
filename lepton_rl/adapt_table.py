"""The figures of an adaptation as the tables that `lepton adapt` prints."""

import math
from collections.abc import Iterator

from lepton_rl.adapt import AdaptResult
from lepton_rl.metrics import PER_CLASS, Comparison

SHOWN_CLASSES = 20  # more are in the report only

Lines = list[list[str]]


def before_and_after(result: AdaptResult) -> Iterator[tuple[list[str], Lines]]:
    """Give titles and lines of the tables: all figures, those of every class, those of the cross-validation."""
    lines = [
        [readable(name), f"{result.before[name]:.3f}", f"{after:.3f}", f"{after - result.before[name]:+.3f}", ""]
        for name, after in result.after.items()
        if name != "test_accuracy"
    ]
    if result.metrics is not None:
        lines += _scores(result.metrics, "test ")
    if lines:
        yield ["", "before", "after", "change", "95 % of it"], lines
    if result.metrics is not None and len(result.classes) <= SHOWN_CLASSES:
        yield ["test images by class", "", *PER_CLASS], _classes(result.metrics)
    if result.cross_validation is not None:
        folds, pooled = result.cross_validation.folds, result.cross_validation.pooled
        titles = [f"{folds}-fold over {pooled.before.images} labelled images", "before", "after", "change"]
        yield [*titles, "95 % of it"], _scores(pooled, "")


def readable(score: str) -> str:
    """Write the name of a figure for people."""
    return {"ece": "calibration error", "f1": "F1"}.get(score, score.replace("_", " "))


def _scores(comparison: Comparison, prefix: str) -> Lines:
    return [
        [
            prefix + readable(name),
            f"{comparison.before.scores[name].value:.3f}",
            f"{comparison.after.scores[name].value:.3f}",
            f"{change.value:+.3f}",
            f"{change.low:+.3f} .. {change.high:+.3f}",
        ]
        for name, change in comparison.change.items()
    ]


def _classes(comparison: Comparison) -> Lines:
    before, after = comparison.before, comparison.after
    return [
        [
            name,
            str(sum(before.confusion[i])),
            *(f"{_figure(was[score].value)} > {_figure(after.per_class[name][score].value)}" for score in PER_CLASS),
        ]
        for i, (name, was) in enumerate(before.per_class.items())
    ]


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
