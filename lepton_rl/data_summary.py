"""What a person looks at before training: counts, copies, and labels that contradict each other."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_rl.arrays import UNLABELLED
from lepton_rl.decode import Reading
from lepton_rl.storage import Images, chunks


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Images that are there more than once, to the last pixel.

    Attributes:
        duplicates: Images equal to an earlier one.
        contradicting: Images equal to one with another label; one of the two is wrong.
    """

    duplicates: int
    contradicting: int


def digests(images: Images) -> list[bytes]:
    """Return a fingerprint of every image."""
    return [
        hashlib.blake2b(image.tobytes(), digest_size=16).digest() for part in chunks(images) for image in images[part]
    ]


def copies(images: Images, labels: Iterable[int]) -> Copies:
    """Count the copies among images with labels, -1 where unknown."""
    seen: dict[bytes, set[int]] = {}
    count = 0
    for mark, label in zip(digests(images), labels, strict=True):
        count += mark in seen
        seen.setdefault(mark, set()).add(int(label))
    contradicting = sum(len(found - {UNLABELLED}) > 1 for found in seen.values())
    return Copies(duplicates=count, contradicting=contradicting)


def shared_images(one: Images, other: Images) -> int:
    """Count the images of `one` that are also in `other`, which must have the same size and channels."""
    there = set(digests(other))
    return int(np.sum([mark in there for mark in digests(one)]))


def summary(
    images: Images, labels: NDArray[np.int64], name: str, classes: tuple[str, ...], reading: Reading | None
) -> dict[str, Any]:
    """Return the facts of a domain as JSON-ready values; as `Domain.summary`."""
    known = labels[labels != UNLABELLED]
    counts = np.bincount(known, minlength=len(classes))
    twice = copies(images, labels)
    files = {} if reading is None else {"file_sizes": reading.sizes, "skipped": list(reading.skipped)}
    return {
        "name": name,
        "n": len(images),
        "labelled": len(known),
        "per_class": {name: int(count) for name, count in zip(classes, counts, strict=True)},
        "image_size": [int(side) for side in images.shape[2:]],
        "channels": int(images.shape[1]),
        "duplicates": twice.duplicates,
        "contradicting": twice.contradicting,
        **files,
    }
