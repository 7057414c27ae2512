"""Folders of images: which files belong to which class, and their pixels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lepton_rl.arrays import UNLABELLED, luma, one_line
from lepton_rl.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64 * 2**20  # of one image file: above every phone camera, far below what fills the memory
MAX_BYTES = 8 * 2**30  # of all images of one folder after resizing
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")  # pillow's other decoders are never tried
UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")


def list_folder(root: Path, known: tuple[str, ...] | None) -> tuple[list[Path], list[int], tuple[str, ...]]:
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
        raise InputError(f"folder {str(folder)!r} cannot be read ({one_line(error)}): check its permissions") from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_symlink():
            target = Path(_real(entry))
            if not target.exists() or not target.is_relative_to(top):
                raise InputError(f"link {str(entry)!r} leads out of the folder or nowhere: put the file itself there")
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


def read_images(files: list[Path], size: tuple[int, int] | None, channels: int | None) -> NDArray[np.uint8]:
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
        return (array if array.ndim == 2 else luma(array, axis=2))[None]
    return np.stack([array] * 3) if array.ndim == 2 else array.transpose(2, 0, 1)


def _read_image(file: Path, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Return one image file as `[h, w]` if it is grey, else `[h, w, 3]`."""
    from PIL import Image, ImageOps

    expected = f"expected a whole {'/'.join(IMAGE_FORMATS)} of at most {MAX_PIXELS} pixels; replace or delete it"
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
        raise InputError(f"image {str(file)!r} cannot be read ({one_line(error)}): {expected}") from error
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
    return ", ".join(map(repr, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")
