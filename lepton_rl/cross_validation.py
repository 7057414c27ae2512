"""k-fold cross-validation over the few labels: an honest figure where no labelled image can be spared for a test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.metrics import Comparison, Floats, compare

Once = Callable[[int, Domain, Domain], tuple[NDArray[np.int64], Floats, Floats]]
"""One run: number of the fold, its target, the images held out -> their labels, probabilities before and after."""


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """What k further runs, each without its share of the labelled images, did with that share.

    Attributes:
        folds: Number of shares.
        pooled: Metrics over all labelled images, each judged by the run that had not seen it.
        accuracies: Per fold, accuracy before and after.
    """

    folds: int
    pooled: Comparison
    accuracies: tuple[tuple[float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"folds": self.folds, "pooled": self.pooled.to_json(), "accuracies": [list(a) for a in self.accuracies]}


def cross_validate(target: Domain, folds: int, seed: int, classes: Sequence[str], once: Once) -> CrossValidation:
    """Adapt k times, each time without one k-th of the labelled images, and judge on that.

    The images of a share are taken out of the target altogether, also as unlabelled ones: the figure is for new
    images. It is that of the method, not of the one model that is saved, which has seen all labels.

    Args:
        target: With labels.
        folds: Number of shares; as `check_folds`.
        seed: Of the shares.
        classes: Names of the model's outputs.
        once: Does a run.
    """
    share = shares(target, folds, seed)
    parts = [once(fold, target.take(share != fold), target.take(share == fold)) for fold in range(folds)]
    labels, before, after = (np.concatenate(column) for column in zip(*parts, strict=True))
    return CrossValidation(
        folds=folds,
        pooled=compare(labels, before, after, classes),
        accuracies=tuple(
            (float((one.argmax(1) == y).mean()), float((other.argmax(1) == y).mean())) for y, one, other in parts
        ),
    )


def check_folds(target: Domain, folds: int) -> None:
    """Refuse a number of folds that the labels do not allow; 0 stands for no cross-validation.

    Raises:
        TypeError: If it is no integer.
        InputError: If it is 1, negative, or above the number of labelled images.
    """
    if isinstance(folds, bool) or not isinstance(folds, int):
        raise TypeError(f"folds is {folds!r}: expected an integer")
    labelled = len(target.labelled())
    if folds != 0 and not 2 <= folds <= labelled:
        raise InputError(
            f"folds {folds} with {labelled} labelled target images: expected 0 (none), or 2 to the number of labelled "
            "images; choose fewer, or label more"
        )


def shares(target: Domain, folds: int, seed: int) -> NDArray[np.int64]:
    """Return the share, 0..folds-1, of every image, evenly over the classes; -1 for images without a label."""
    labelled = np.flatnonzero(target.labels >= 0)
    shuffled = np.random.default_rng((seed, 3)).permutation(labelled)
    by_class = shuffled[np.argsort(target.labels[shuffled], kind="stable")]
    share = np.full(len(target), -1, dtype=np.int64)
    share[by_class] = np.arange(len(by_class)) % folds
    return share
