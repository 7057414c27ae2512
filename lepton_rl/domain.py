"""Images with or without labels: the `Domain` that everything adapts from and to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lepton_rl.arrays import (
    UNLABELLED,
    check_channels,
    checked_classes,
    checked_images,
    checked_labels,
    checked_size,
    luma,
)
from lepton_rl.errors import InputError
from lepton_rl.image_folder import list_folder, read_images
from lepton_rl.npz import read_npz


@dataclass(frozen=True, kw_only=True, eq=False)
class Domain:
    """Hold the images of one domain, the labels that are known, and a name.

    Attributes:
        images: uint8 `[n, c, h, w]`, c = 1 or 3, values 0..255.
        labels: int64 `[n]`, an index into `classes`, or -1 where the label is unknown.
        name: For people; shifts append to it.
        classes: Class names, in label order.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    name: str
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse anything that is not exactly the declared layout."""
        x, y = self.images, self.labels
        if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray):
            raise TypeError(f"images and labels must be numpy arrays, not {type(x).__name__}, {type(y).__name__}")
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape[2:]:
            raise InputError(
                f"images are {x.dtype} {list(x.shape)}: expected uint8 [n, 1 or 3, h, w]; use Domain.from_arrays"
            )
        if y.dtype != np.int64 or y.shape != (len(x),):
            raise InputError(
                f"labels are {y.dtype} {list(y.shape)} for {len(x)} images: expected int64 "
                f"[{len(x)}], -1 where unknown; use Domain.from_arrays"
            )
        if len(set(self.classes)) != len(self.classes):
            raise InputError(f"classes {list(self.classes)} name a class twice: give every class its own name")
        if len(y) and (y.min() < UNLABELLED or y.max() >= len(self.classes)):
            bad = int(y.min() if y.min() < UNLABELLED else y.max())
            raise InputError(
                f"label {bad} is not known: expected -1 (unlabelled) or 0..{len(self.classes) - 1}, "
                f"the {len(self.classes)} known classes; correct the labels or give all class names"
            )

    @property
    def n_classes(self) -> int:
        """Number of known classes, also those without an image here."""
        return len(self.classes)

    @property
    def has_labels(self) -> bool:
        """Whether at least one image is labelled."""
        return bool((self.labels != UNLABELLED).any())

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def take(self, indices: ArrayLike) -> Domain:
        """Return the images at `indices` (integers, any order; or a boolean mask `[n]`)."""
        index = np.asarray(indices)
        if index.size == 0 and index.dtype != np.bool_:
            index = index.astype(np.int64)  # an empty list is a float array in numpy
        try:
            return replace(self, images=self.images[index], labels=self.labels[index])
        except IndexError as error:
            raise InputError(f"indices do not fit {len(self)} images ({error}): expected integers or a mask") from error

    def labelled(self) -> Domain:
        """Return the images whose label is known."""
        return self.take(self.labels != UNLABELLED)

    def unlabelled(self) -> Domain:
        """Return the images whose label is unknown."""
        return self.take(self.labels == UNLABELLED)

    def without_labels(self) -> Domain:
        """Return the same images with every label hidden."""
        return replace(self, labels=np.full(len(self), UNLABELLED, dtype=np.int64))

    def renamed(self, name: str) -> Domain:
        """Return the same domain under another name."""
        return replace(self, name=name)

    def resized(self, height: int, width: int) -> Domain:
        """Return the domain at another image size in pixels (bilinear, antialiased when shrinking)."""
        height, width = checked_size((height, width))
        if self.images.shape[2:] == (height, width):
            return self
        out = np.empty((*self.images.shape[:2], height, width), dtype=np.uint8)
        for start in range(0, len(self), 512):  # in parts, because the work is done in float32
            part = torch.from_numpy(self.images[start : start + 512].astype(np.float32))
            part = torch.nn.functional.interpolate(part, (height, width), mode="bilinear", antialias=True)
            out[start : start + 512] = part.round().clamp(0, 255).numpy().astype(np.uint8)
        return replace(self, images=out)

    def with_channels(self, channels: int) -> Domain:
        """Return the domain with 1 channel (luma of red, green, blue) or 3 (grey repeated)."""
        check_channels(channels)
        if channels == self.images.shape[1]:
            return self
        if channels == 3:
            return replace(self, images=np.repeat(self.images, 3, axis=1))
        return replace(self, images=luma(self.images, axis=1)[:, None])

    def summary(self) -> dict[str, Any]:
        """Return the facts of the domain as JSON-ready values."""
        known = self.labels[self.labels != UNLABELLED]
        counts = np.bincount(known, minlength=self.n_classes)
        return {
            "name": self.name,
            "n": len(self),
            "labelled": len(known),
            "per_class": {name: int(count) for name, count in zip(self.classes, counts, strict=True)},
            "image_size": [int(side) for side in self.images.shape[2:]],
            "channels": int(self.images.shape[1]),
        }

    @classmethod
    def digits(cls) -> Domain:
        """Return scikit-learn's 1797 real 8x8 scans of handwritten digits, 0..16 scaled to 0..255."""
        from sklearn.datasets import load_digits

        data = load_digits()
        images = np.rint(data.images * (255 / 16)).astype(np.uint8)
        return cls.from_arrays(images, data.target, name="digits")

    @classmethod
    def from_arrays(
        cls,
        x: ArrayLike,
        y: ArrayLike | None = None,
        *,
        name: str = "arrays",
        classes: Sequence[str] | None = None,
    ) -> Domain:
        """Build a domain from arrays.

        Args:
            x: uint8 0..255, `[n, h, w]`, `[n, h, w, 1 or 3]` or `[n, 1 or 3, h, w]`; the last if both fit.
            y: Integer `[n]`, 0..k-1, or -1 for an unknown label; None when no label is known.
            name: Name of the domain.
            classes: Class names in label order; default "0", "1", .. up to the largest label.

        Raises:
            InputError: When an array has the wrong type, shape, length or range.
        """
        images = checked_images(x)
        labels = checked_labels(y, len(images))
        if classes is None:
            classes = tuple(str(i) for i in range(int(labels.max()) + 1))
        return cls(images=images, labels=labels, name=name, classes=checked_classes(classes))

    @classmethod
    def from_npz(cls, path: str | Path, split: str | None = None, *, classes: Sequence[str] | None = None) -> Domain:
        """Read an `.npz` file with `x_train, y_train, x_test, y_test`, or `x, y`, or `images, labels`.

        Args:
            path: The file; it is never unpickled.
            split: "train", "test", or None for all there is.
            classes: As in `from_arrays`.

        Raises:
            InputError: When the file is missing, damaged, or holds other keys or values.
        """
        path = Path(path)
        if split not in (None, "train", "test"):
            raise InputError(f"split {split!r} is not known: expected 'train', 'test' or None for all")
        parts = read_npz(path, split)
        try:
            xs = [checked_images(x) for x, _ in parts]
            ys = [checked_labels(y, len(x)) for (_, y), x in zip(parts, xs, strict=True)]
            if len({x.shape[1:] for x in xs}) > 1:
                sizes = " and ".join(str(list(x.shape[1:])) for x in xs)
                raise InputError(f"train and test images differ in size, {sizes}: read one, with split='train'")
            x, y = np.concatenate(xs), np.concatenate(ys)
            return cls.from_arrays(x, y, name=path.stem, classes=classes)
        except InputError as error:
            raise InputError(f"{str(path)!r}: {error}") from error

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        classes: Sequence[str] | None = None,
    ) -> Domain:
        """Read a folder of images: one sub-folder per class, `unlabelled/` for the rest.

        Folders inside a class folder belong to the class; images directly in `path` are unlabelled. The order
        is sorted and depends on names only. Transparent images are laid on white, EXIF rotation is applied,
        16-bit grey is scaled to 8 bit. Hidden files and files of other types are passed over.

        Args:
            path: The folder.
            size: Side in pixels, or (height, width), to which all are resized; default the first image's.
            channels: 1 or 3; default 1 if all images are grey, else 3.
            classes: Class names that the model knows, in its order; default the sorted sub-folder names.

        Raises:
            InputError: When the folder, a class or an image is not usable; it names the file and what to do.
        """
        root = Path(path)
        wanted = None if size is None else checked_size(size)
        if channels is not None:
            check_channels(channels)
        files, labels, names = list_folder(root, None if classes is None else checked_classes(classes))
        stack = read_images(files, wanted, channels)
        return cls(images=stack, labels=np.asarray(labels, dtype=np.int64), name=root.resolve().name, classes=names)
