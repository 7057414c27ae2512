"""The splits of a user's images: even over the classes, and dependent on the seed alone."""

import numpy as np
from numpy.typing import NDArray

from lepton_rl.domain import Domain
from lepton_rl.errors import InputError

VAL_SHARE = 5  # one source image in five is kept out of training
PROBE_SHARE = 3  # one labelled target image in three validates


def split_source(source: Domain, seed: int) -> tuple[Domain, Domain]:
    """Deal labelled source images onto four fifths to train and one fifth to validate, class by class.

    Raises:
        InputError: If there are fewer than five labelled images.
    """
    source = source.labelled()
    if len(source) < VAL_SHARE:
        raise InputError(
            f"source {source.name!r} has {len(source)} labelled images: expected at least {VAL_SHARE}; "
            "label more, or leave the source out to adapt without it"
        )
    train, val = _dealt(source.labels, VAL_SHARE, np.random.default_rng((seed, 0)))
    return source.take(train), source.take(val)


def split_labelled(labelled: Domain, seed: int) -> tuple[Domain | None, Domain | None]:
    """Deal labelled target images onto two thirds to train (support) and one third to validate (probe).

    One or two labelled images are all trained on; a part without images is None.
    """
    support, probe = _dealt(labelled.labels, PROBE_SHARE, np.random.default_rng((seed, 1)))
    return labelled.take(support) if len(support) else None, labelled.take(probe) if len(probe) else None


def _dealt(
    labels: NDArray[np.int64], share: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return two shuffled parts of 0..n-1; the second gets n // share, evenly over the classes."""
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    second = np.arange(len(labels)) % share == share - 1
    return rng.permutation(by_class[~second]), rng.permutation(by_class[second])
