"""Images with or without labels: the `Domain` that everything adapts from and to."""

from __future__ import annotations

import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lepton_rl.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

UNLABELLED = -1
MAX_CLASSES = 65_536
MAX_PIXELS = 64 * 2**20  # of one image file: above every phone camera, far below what fills the memory
MAX_BYTES = 8 * 2**30  # of all images of one folder after resizing
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")  # pillow's other decoders are never tried
UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")
NPZ_KEYS = (("x_train", "y_train"), ("x_test", "y_test"), ("x", "y"), ("images", "labels"))
NPZ_ERRORS = (
    *(OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


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
            raise TypeError(
                f"images and labels must be numpy arrays, not {type(x).__name__}, {type(y).__name__}"
            )
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape[2:]:
            raise InputError(
                f"images are {x.dtype} {list(x.shape)}: expected uint8 [n, 1 or 3, h, w]; "
                f"use Domain.from_arrays"
            )
        if y.dtype != np.int64 or y.shape != (len(x),):
            raise InputError(
                f"labels are {y.dtype} {list(y.shape)} for {len(x)} images: expected int64 "
                f"[{len(x)}], -1 where unknown; use Domain.from_arrays"
            )
        if len(set(self.classes)) != len(self.classes):
            raise InputError(
                f"classes {list(self.classes)} name a class twice: give every class its own name"
            )
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
            raise InputError(
                f"indices do not fit {len(self)} images ({error}): expected integers or a mask"
            ) from error

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
        height, width = _checked_size((height, width))
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
        _check_channels(channels)
        if channels == self.images.shape[1]:
            return self
        if channels == 3:
            return replace(self, images=np.repeat(self.images, 3, axis=1))
        return replace(self, images=_luma(self.images, axis=1)[:, None])

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
        images = _checked_images(x)
        labels = _checked_labels(y, len(images))
        if classes is None:
            classes = tuple(str(i) for i in range(int(labels.max()) + 1))
        return cls(images=images, labels=labels, name=name, classes=_checked_classes(classes))

    @classmethod
    def from_npz(
        cls, path: str | Path, split: str | None = None, *, classes: Sequence[str] | None = None
    ) -> Domain:
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
        parts = _read_npz(path, split)
        try:
            xs = [_checked_images(x) for x, _ in parts]
            ys = [_checked_labels(y, len(x)) for (_, y), x in zip(parts, xs, strict=True)]
            if len({x.shape[1:] for x in xs}) > 1:
                sizes = " and ".join(str(list(x.shape[1:])) for x in xs)
                raise InputError(
                    f"train and test images differ in size, {sizes}: read one, with split='train'"
                )
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
        wanted = None if size is None else _checked_size(size)
        if channels is not None:
            _check_channels(channels)
        files, labels, names = _list_folder(root, None if classes is None else _checked_classes(classes))
        stack = _read_images(files, wanted, channels)
        return cls(
            images=stack, labels=np.asarray(labels, dtype=np.int64), name=root.resolve().name, classes=names
        )


def _luma(rgb: NDArray[np.uint8], axis: int) -> NDArray[np.uint8]:
    """Return ITU-R 601 luma, the weights pillow uses, in integers so that it is exact."""
    red, green, blue = np.moveaxis(rgb.astype(np.uint32), axis, 0)
    luma: NDArray[np.uint32] = (299 * red + 587 * green + 114 * blue + 500) // 1000
    return luma.astype(np.uint8)


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise InputError(f"channels is {channels!r}: expected 1 (grey) or 3 (red, green, blue)")


def _checked_size(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in pair):
        raise TypeError(f"size is {size!r}: expected an integer or (height, width) in pixels")
    if not all(1 <= side <= 8192 for side in pair):
        raise InputError(f"size is {size!r}: expected 1..8192 pixels a side")
    return int(pair[0]), int(pair[1])


def _checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes are {classes!r}: expected a sequence of strings, one a class")
    return tuple(classes)


def _checked_images(x: ArrayLike) -> NDArray[np.uint8]:
    """Return `x` as uint8 `[n, c, h, w]`."""
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise InputError("images differ in shape: expected one array; resize all to one size") from error
    shape = list(array.shape)
    if array.dtype.kind in "fb":
        raise InputError(
            f"images are {array.dtype}: expected uint8 0..255; multiply by 255 and "
            f"convert to uint8: (255 * x).astype('uint8')"
        )
    if array.dtype != np.uint8:
        raise InputError(
            f"images are {array.dtype}: expected uint8 0..255; scale to 0..255 and use x.astype('uint8')"
        )
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in (1, 3):
        raise InputError(
            f"images have shape {shape}: expected [n, h, w], [n, h, w, 1 or 3] or [n, 1 or 3, h, w]"
        )
    if array.size == 0:
        raise InputError(f"images have shape {shape}, which holds no pixel: expected at least one image")
    return np.ascontiguousarray(array)


def _checked_labels(y: ArrayLike | None, n: int) -> NDArray[np.int64]:
    """Return `y` as int64 `[n]`; a column `[n, 1]`, as some published files have, is accepted."""
    if y is None:
        return np.full(n, UNLABELLED, dtype=np.int64)
    try:
        array = np.asarray(y)
    except ValueError as error:
        raise InputError("labels differ in shape: expected one integer an image") from error
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != (n,):
        raise InputError(
            f"labels have shape {list(array.shape)} for {n} images: expected [{n}], one label an image"
        )
    if array.dtype.kind not in "iu":
        raise InputError(
            f"labels are {array.dtype}: expected integers 0..k-1, or -1 for unlabelled; convert them"
        )
    low, high = int(array.min()), int(array.max())
    if low < UNLABELLED or high >= MAX_CLASSES:
        bad = low if low < UNLABELLED else high
        raise InputError(
            f"label {bad} is out of range: expected -1 or 0..{MAX_CLASSES - 1}; number classes from 0"
        )
    return array.astype(np.int64)


def _read_npz(path: Path, split: str | None) -> list[tuple[ArrayLike, ArrayLike | None]]:
    """Return the (images, labels) pairs that `split` asks for."""
    if not path.is_file():
        raise InputError(
            f"file {str(path)!r} does not exist or is no file: expected an .npz file; check the path"
        )
    try:
        # The file is opened here, because numpy leaves it open when the archive is damaged.
        with path.open("rb") as handle, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = np.load(handle, allow_pickle=False)
            if isinstance(data, np.ndarray):
                raise InputError(
                    f"{str(path)!r} holds one bare array: expected .npz; save it with numpy.savez(x=..)"
                )
            pairs = _npz_pairs(path, data.files, split)
            return [(data[x], data[y] if y in data.files else None) for x, y in pairs]
    except InputError:
        raise
    except NPZ_ERRORS as error:
        raise InputError(
            f"{str(path)!r} cannot be read ({_one_line(error)}): expected a whole .npz file of "
            f"plain numeric arrays; save it again with numpy.savez"
        ) from error


def _npz_pairs(path: Path, keys: Sequence[str], split: str | None) -> list[tuple[str, str]]:
    """Return the key pairs to read: the split's, else train and test together, else the first there is."""
    here = [pair for pair in NPZ_KEYS if pair[0] in keys]
    if split is not None:
        here = [pair for pair in here if pair[0] == f"x_{split}"]
    elif here and here[0][0] in ("x_train", "x_test"):
        here = [pair for pair in here if pair[0] in ("x_train", "x_test")]
    else:
        here = here[:1]
    if not here:
        expected = f"x_{split}" if split else "x_train, x_test, x or images"
        raise InputError(
            f"{str(path)!r} holds the keys {sorted(keys)}: expected {expected}; rename the arrays"
        )
    return here


def _list_folder(root: Path, known: tuple[str, ...] | None) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Return the image files in order, their labels and the class names."""
    if not root.is_dir():
        hint = "is a file" if root.exists() else "does not exist"
        raise InputError(f"{str(root)!r} {hint}: expected a folder with one sub-folder of images a class")
    top = root.resolve()
    entries = list(_entries(root, top))
    folders = [entry for entry in entries if entry.is_dir()]
    named = [folder for folder in folders if folder.name.lower() not in UNLABELLED_FOLDERS]
    names = tuple(folder.name for folder in named) if known is None else known
    files: list[Path] = []
    labels: list[int] = []
    for folder in sorted(folders, key=lambda item: (item not in named, item.name)):
        found = list(_walk(folder, top, (top,)))
        if folder in named and folder.name not in names:
            raise InputError(
                f"class {folder.name!r} in {str(root)!r} is not known to the model: expected {_some(names)}; "
                f"rename the folder, or move its images to 'unlabelled'"
            )
        if folder in named and known is None and not found:
            raise InputError(
                f"class folder {str(folder)!r} holds no image: add {'/'.join(IMAGE_SUFFIXES)} or remove it"
            )
        files += found
        labels += [names.index(folder.name) if folder in named else UNLABELLED] * len(found)
    loose = [entry for entry in entries if _is_image(entry)]
    if not files and not loose:
        raise InputError(
            f"folder {str(root)!r} holds no image: expected {', '.join(IMAGE_SUFFIXES)} in class sub-folders"
        )
    return files + loose, labels + [UNLABELLED] * len(loose), names


def _entries(folder: Path, top: Path) -> Iterator[Path]:
    """Yield the visible entries sorted by name; refuse links that lead out of `top` or nowhere."""
    try:
        entries = sorted(folder.iterdir(), key=lambda item: item.name)
    except OSError as error:
        raise InputError(
            f"folder {str(folder)!r} cannot be read ({_one_line(error)}): check its permissions"
        ) from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_symlink():
            target = Path(_real(entry))
            if not target.exists() or not target.is_relative_to(top):
                raise InputError(
                    f"link {str(entry)!r} leads out of the folder or nowhere: put the file itself there"
                )
        yield entry


def _real(link: Path) -> Path:
    try:
        return link.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise InputError(f"link {str(link)!r} leads to itself: remove it") from error


def _walk(folder: Path, top: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield all image files below `folder`, sorted; `above` holds the real folders on the way down."""
    real = folder.resolve()
    if real in above:
        raise InputError(f"link {str(folder)!r} leads back to a folder above it: remove it")
    for entry in _entries(folder, top):
        if entry.is_dir():
            yield from _walk(entry, top, (*above, real))
        elif _is_image(entry):
            yield entry


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _read_images(files: list[Path], size: tuple[int, int] | None, channels: int | None) -> NDArray[np.uint8]:
    """Return all files as uint8 `[n, c, h, w]`."""
    arrays: list[NDArray[np.uint8]] = []
    for file in files:
        arrays.append(_read_image(file, size))
        if size is None:
            height, width = arrays[0].shape[:2]
            size = (height, width)
        if len(files) * size[0] * size[1] * 3 > MAX_BYTES:
            raise InputError(
                f"{len(files)} images of {size[0]}x{size[1]} pixels (as {str(files[0])!r}) need more than "
                f"{MAX_BYTES >> 30} GiB: give a smaller size, for example size=64"
            )
    if channels is None:
        channels = 1 if all(array.ndim == 2 for array in arrays) else 3
    return np.stack([_with_channels(array, channels) for array in arrays])


def _with_channels(array: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Turn `[h, w]` or `[h, w, 3]` into `[channels, h, w]`."""
    if channels == 1:
        return (array if array.ndim == 2 else _luma(array, axis=2))[None]
    return np.stack([array] * 3) if array.ndim == 2 else array.transpose(2, 0, 1)


def _read_image(file: Path, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Return one image file as `[h, w]` if it is grey, else `[h, w, 3]`."""
    from PIL import Image, ImageOps

    expected = (
        f"expected a whole {'/'.join(IMAGE_FORMATS)} of at most {MAX_PIXELS} pixels; replace or delete it"
    )
    try:
        if file.stat().st_size == 0:
            raise InputError("it has 0 bytes")
        with warnings.catch_warnings(), file.open("rb") as handle:
            warnings.simplefilter("ignore")  # odd metadata is no reason to stop
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(handle, formats=IMAGE_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(f"it has {image.width}x{image.height} pixels")
                image.load()
                plain = _plain(ImageOps.exif_transpose(image))
            if size is not None and plain.size != (size[1], size[0]):
                plain = plain.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            array: NDArray[np.uint8] = np.array(plain, dtype=np.uint8)
    except Exception as error:  # decoders raise many kinds on damaged files; each means the same to the user
        raise InputError(f"image {str(file)!r} cannot be read ({_one_line(error)}): {expected}") from error
    if array.ndim == 3 and (array == array[:, :, :1]).all():
        return array[:, :, 0]
    return array


def _plain(image: Image) -> Image:
    """Return `image` in mode L or RGB, 8 bit, without transparency."""
    from PIL import Image as pillow

    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise InputError("it has more than 16 bits a pixel")
        return pillow.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise InputError("it has floating-point pixels, save it with 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return pillow.alpha_composite(pillow.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _some(names: Sequence[str], limit: int = 10) -> str:
    return ", ".join(map(repr, names[:limit])) + (
        f" and {len(names) - limit} more" if len(names) > limit else ""
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
