"""Images with or without labels: the `Domain` that everything adapts from and to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lepton_rl.any_dataset import read_examples
from lepton_rl.arrays import (
    UNLABELLED,
    check_channels,
    checked_classes,
    checked_images,
    checked_labels,
    checked_size,
    luma,
)
from lepton_rl.csv_index import read_csv
from lepton_rl.data_summary import summary
from lepton_rl.decode import Corrupt, Reading, checked_reading
from lepton_rl.decoded_cache import decoded_images
from lepton_rl.errors import InputError
from lepton_rl.hugging_face import Columns, columns, open_dataset
from lepton_rl.image_folder import list_folder
from lepton_rl.npz import read_npz
from lepton_rl.storage import mapped, taken


@dataclass(frozen=True, kw_only=True, eq=False)
class Domain:
    """Hold the images of one domain, the labels that are known, and a name.

    Attributes:
        images: uint8 `[n, c, h, w]`, c = 1 or 3, values 0..255.
        labels: int64 `[n]`, an index into `classes`, or -1 where the label is unknown.
        name: For people; shifts append to it.
        classes: Class names, in label order.
        reading: How files became these images; None for images that come from none, or for a part of them.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    name: str
    classes: tuple[str, ...]
    reading: Reading | None = None

    def __repr__(self) -> str:
        """Return one line; of the images and labels how many there are, not themselves."""
        n, labelled = len(self), int((self.labels != UNLABELLED).sum())
        c, h, w = self.images.shape[1:]
        return f"Domain({self.name!r}, {n} images {c}x{h}x{w}, {labelled} labelled, {len(self.classes)} classes)"

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
        if index.dtype == np.bool_ and index.shape == (len(self),) and index.all():
            return self  # no copy of what may be large
        try:
            return replace(self, images=taken(self.images, index), labels=self.labels[index], reading=None)
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

        def resize(part: NDArray[np.uint8]) -> NDArray[np.uint8]:
            pixels = torch.from_numpy(part.astype(np.float32))
            pixels = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
            return pixels.round().clamp(0, 255).numpy().astype(np.uint8)

        return replace(self, images=mapped(self.images, (self.images.shape[1], height, width), resize))

    def with_channels(self, channels: int) -> Domain:
        """Return the domain with 1 channel (luma of red, green, blue) or 3 (grey repeated)."""
        check_channels(channels)
        if channels == self.images.shape[1]:
            return self
        shape = (channels, *self.images.shape[2:])
        if channels == 3:
            return replace(self, images=mapped(self.images, shape, lambda part: np.repeat(part, 3, axis=1)))
        return replace(self, images=mapped(self.images, shape, lambda part: luma(part, axis=1)[:, None]))

    def summary(self) -> dict[str, Any]:
        """Return the facts of the domain as JSON-ready values.

        `duplicates` counts images equal to an earlier one, `contradicting` those that have two labels; `file_sizes`
        (height x width) and `skipped` are there for images that were read from files.
        """
        return summary(self.images, self.labels, self.name, self.classes, self.reading)

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
        corrupt: Corrupt = "refuse",
    ) -> Domain:
        """Read a folder of images: one sub-folder per class, `unlabelled/` for the rest.

        Folders inside a class folder belong to the class; images directly in `path` are unlabelled. The order
        is sorted and depends on names only. Transparent images are laid on white, EXIF rotation is applied,
        16-bit grey is scaled to 8 bit. Hidden files and files of other types are passed over. What is decoded is
        kept in the cache folder, and large domains stay there (docs/own-data.md).

        Args:
            path: The folder.
            size: Side in pixels, or (height, width), to which all are resized; default the first image's.
            channels: 1 or 3; default 1 if all images are grey, else 3.
            classes: Class names that the model knows, in its order; default the sorted sub-folder names.
            corrupt: `refuse` the first file that cannot be read, or `skip` such files and list them in `reading`.

        Raises:
            InputError: When the folder, a class or an image is not usable; it names the file and what to do.
        """
        root = Path(path)
        wanted = checked_reading(size, channels, corrupt)
        files, labels, names = list_folder(root, None if classes is None else checked_classes(classes))
        return cls._of_files(files, labels, names, root.resolve().name, wanted, channels, corrupt)

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        split: str | None = None,
        *,
        root: str | Path | None = None,
        size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        classes: Sequence[str] | None = None,
        corrupt: Corrupt = "refuse",
    ) -> Domain:
        """Read a table with a line `path,label` per image; an empty label means unlabelled.

        Args:
            path: The table, UTF-8. A first line that names the columns may put them in another order, and add a
                column `split`.
            split: Keep the lines with this text in the column `split`; None for all.
            root: Folder that relative paths start from; default the table's own.
            size: As in `from_folder`.
            channels: As in `from_folder`.
            classes: Class names that the model knows, in its order; default the sorted labels of the table.
            corrupt: As in `from_folder`.

        Raises:
            InputError: When the table or an image is not usable; it names the line or the file.
        """
        path = Path(path)
        wanted = checked_reading(size, channels, corrupt)
        known = None if classes is None else checked_classes(classes)
        files, labels, names = read_csv(path, split, known, None if root is None else Path(root))
        return cls._of_files(files, labels, names, path.stem, wanted, channels, corrupt)

    @classmethod
    def _of_files(
        cls,
        files: Sequence[Path],
        labels: Sequence[int],
        names: tuple[str, ...],
        name: str,
        size: tuple[int, int] | None,
        channels: int | None,
        corrupt: Corrupt,
    ) -> Domain:
        found = decoded_images(files, size, channels, corrupt)
        kept = np.asarray(labels, dtype=np.int64)[found.kept]
        return cls(images=found.images, labels=kept, name=name, classes=names, reading=found.reading)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,  # noqa: ANN401 - anything that gives examples
        *,
        name: str | None = None,
        size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        classes: Sequence[str] | None = None,
    ) -> Domain:
        """Read a `torch.utils.data.Dataset`, or any sequence or iterable of examples, once and in order.

        Args:
            dataset: Its examples are images, pairs of image and label, or mappings with `image` and `label`.
                Images are pillow's, uint8, or floating-point in 0..1: without a normalising transform.
            name: Name of the domain; default that of the data set's class.
            size: As in `from_folder`.
            channels: As in `from_folder`.
            classes: Class names in label order; default `dataset.classes`, or "0", "1", .. up to the largest label.

        Raises:
            InputError: When an example is not usable; it names its number.
        """
        images, labels = read_examples(dataset, checked_reading(size, channels, "refuse"), channels)
        known = getattr(dataset, "classes", None) if classes is None else classes
        return cls.from_arrays(images, labels, name=name or type(dataset).__name__, classes=known)

    @classmethod
    def from_huggingface(
        cls,
        dataset: Any,  # noqa: ANN401 - a class of an extra
        split: str | None = None,
        *,
        image: str | None = None,
        label: str | None = None,
        name: str | None = None,
        size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        classes: Sequence[str] | None = None,
    ) -> Domain:
        """Read a data set of Hugging Face `datasets` (extra `datasets`).

        Args:
            dataset: A `Dataset`, a `DatasetDict`, or a folder that `save_to_disk` wrote.
            split: Which part of a `DatasetDict`.
            image: Column of the images; default the first of type Image.
            label: Column of the labels; default the first of type ClassLabel, or `label`; there may be none.
            name: Name of the domain; default the folder's, or "huggingface".
            size: As in `from_folder`.
            channels: As in `from_folder`.
            classes: Class names in label order; default those that the data set stores.

        Raises:
            InputError: When the data set or an example is not usable.
        """
        part = open_dataset(dataset, split)
        x, y, stored = columns(part, image, label)
        examples = Columns(part, x, y)
        images, labels = read_examples(examples, checked_reading(size, channels, "refuse"), channels)
        default = Path(dataset).name if isinstance(dataset, str | Path) else "huggingface"
        return cls.from_arrays(images, labels, name=name or default, classes=stored if classes is None else classes)
