"""Which class every output of a model stands for: classes go by name, never by order."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lepton_rl.arrays import UNLABELLED
from lepton_rl.domain import Domain
from lepton_rl.errors import InputError

NewHead = Literal["auto", "always", "never"]

SHOWN_CLASSES = 10


def wants_new_head(new_head: NewHead, n_outputs: int, classes: Sequence[str] | None, source: Domain | None) -> bool:
    """Return whether a model gets a head for other classes: if it is asked for, or the source has another number.

    Raises:
        InputError: If the choice is unknown.
    """
    if new_head not in ("auto", "always", "never"):
        raise InputError(f"new_head {new_head!r} is unknown: expected auto, always or never")
    if new_head != "auto":
        return new_head == "always"
    return classes is None and source is not None and source.n_classes != n_outputs


def class_names(
    n_classes: int | None, classes: Sequence[str] | None, source: Domain | None, target: Domain
) -> tuple[str, ...]:
    """Return the names of the model's outputs.

    Args:
        n_classes: Number of its outputs; None = there will be as many as there are names.
        classes: Names that were given.
        source: Labelled images that the model was trained on, if any.
        target: Images of the new domain.

    Raises:
        TypeError: If the names are no sequence of texts.
        InputError: If there are not as many names as outputs, or none is known.
    """
    if classes is not None:
        if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
            raise TypeError(f"classes are {classes!r}: expected a sequence of strings, one an output")
        names, what = tuple(classes), "classes names"
    elif source is not None:
        names, what = source.classes, "the source knows"
    elif target.has_labels:
        names, what = target.classes, "the target, without a source, knows"
    elif n_classes is None:
        raise InputError(
            "a new head is asked for, and no class is known: expected classes, or a source or a target with labels"
        )
    else:
        return tuple(str(i) for i in range(n_classes))
    n_classes = len(names) if n_classes is None else n_classes
    if len(names) != n_classes or len(set(names)) != n_classes:
        raise InputError(
            f"the model has {n_classes} outputs but {what} {len(names)} classes ({some(names)}): expected one name "
            "an output; give classes, the names of the model's outputs in their order, or ask for a new head"
        )
    return names


def relabelled(domain: Domain, names: tuple[str, ...], what: str) -> Domain:
    """Return a domain whose labels are numbers of the model's outputs.

    Args:
        domain: Its labels are numbers of its own classes.
        names: Of the model's outputs.
        what: What the domain is, for messages.

    Raises:
        InputError: If an image is of a class that the model does not know.
    """
    number = {name: i for i, name in enumerate(names)}
    for label in np.unique(domain.labels[domain.labels != UNLABELLED]):
        if domain.classes[label] not in number:
            raise InputError(
                f"class {domain.classes[label]!r} in the {what} {domain.name!r} is not known to the model: expected "
                f"{some(names)}; rename it, or give its images without a label"
            )
    # The last entry serves -1, which stays unlabelled.
    table = np.array([*(number.get(name, UNLABELLED) for name in domain.classes), UNLABELLED], dtype=np.int64)
    return Domain(images=domain.images, labels=table[domain.labels], name=domain.name, classes=names)


def shares(known: Mapping[str, float], names: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the shares of a model's classes, `[k]`, summing up to 1.

    Args:
        known: Share, or number, of images of each class by its name.
        names: Of the model's outputs.

    Raises:
        TypeError: If it is no mapping from names to numbers.
        InputError: If a class is missing or unknown, or a number is negative, not finite, or all are 0.
    """
    if not isinstance(known, Mapping) or not all(isinstance(name, str) for name in known):
        raise TypeError(
            f"class_prior is {type(known).__name__}: expected a mapping from the names of classes to shares"
        )
    for wrong, what in ((set(known) - set(names), "not known to the model"), (set(names) - set(known), "missing")):
        if wrong:
            raise InputError(
                f"class_prior: {some(sorted(wrong))} {what}: expected a share of each of {some(names)}; give 0 to "
                "classes that never occur"
            )
    for name, share in known.items():
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= share < math.inf:
            raise InputError(f"class_prior of {name!r} is {share!r}: expected a share or a number of images, 0 or more")
    found = np.array([float(known[name]) for name in names], dtype=np.float64)
    if not 0 < found.sum() < math.inf:
        raise InputError(f"class_prior sums up to {found.sum():g}: expected at least one class above 0")
    normalised: NDArray[np.float64] = found / found.sum()
    return normalised


def some(names: Sequence[str]) -> str:
    """Return the first names for a message, and how many there are more."""
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    return ", ".join(map(repr, names[:SHOWN_CLASSES])) + more
