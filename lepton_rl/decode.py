"""The pixels of image files, whatever their format, depth, transparency and orientation."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from lepton_rl.arrays import check_channels, checked_size, luma, one_line
from lepton_rl.errors import InputError
from lepton_rl.storage import blank_images

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64 * 2**20  # of one image file: above every phone camera, far below what fills the memory
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")  # pillow's other decoders are never tried
AT_ONCE = 64  # files in work at the same time
WORKERS = min(8, os.cpu_count() or 1)

Corrupt = Literal["refuse", "skip"]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files became images.

    Attributes:
        sizes: Number of files of each size, as `height x width`, before any resizing.
        skipped: Files that could not be read and were passed over, each with the reason.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """Images of files.

    Attributes:
        images: uint8 `[n, c, h, w]`.
        kept: Which of the files these are, int64 `[n]`.
        reading: How they were read.
    """

    images: Pixels
    kept: NDArray[np.int64]
    reading: Reading


def checked_reading(size: int | tuple[int, int] | None, channels: int | None, corrupt: str) -> tuple[int, int] | None:
    """Check how images are to be read, and return the size as (height, width), None for that of the first.

    Raises:
        TypeError: If the size is no integer and no pair.
        InputError: If a value is out of range.
    """
    if channels is not None:
        check_channels(channels)
    if corrupt not in ("refuse", "skip"):
        raise InputError(f"corrupt is {corrupt!r}: expected 'refuse' or 'skip'")
    return None if size is None else checked_size(size)


def read_images(
    files: Sequence[Path],
    size: tuple[int, int] | None,
    channels: int | None,
    *,
    corrupt: Corrupt = "refuse",
    blank: Callable[[tuple[int, ...]], Pixels] = blank_images,
) -> Decoded:
    """Read files as uint8 `[n, c, h, w]`.

    Args:
        files: Image files.
        size: Height and width; default that of the first image.
        channels: 1 or 3; default 1 if all images are grey.
        corrupt: Whether a file that cannot be read ends the reading, or is passed over and listed.
        blank: Makes the array to read into.

    Raises:
        InputError: If a file cannot be read (`refuse`), or none can.
    """
    sizes: Counter[str] = Counter()
    skipped: list[str] = []
    kept: list[int] = []
    images: Pixels | None = None
    grey = True
    for i, found in enumerate(_decoded(files, size)):
        if isinstance(found, InputError):
            if corrupt == "refuse":
                raise found
            skipped.append(str(found).removeprefix("image ").partition(": expected")[0])
            continue
        array, before = found
        if images is None:
            size = size or (array.shape[0], array.shape[1])
            images = blank((len(files), channels or 3, *size))
        sizes[before] += 1
        grey &= array.ndim == 2
        images[len(kept)] = with_channels(resized(array, images.shape), images.shape[1])
        kept.append(i)
    if images is None:
        raise InputError(f"none of {len(files)} images can be read, the first being {skipped[0]}: replace them")
    images = images[: len(kept)]
    if channels is None and grey:
        images = _one_channel(images)
    reading = Reading(sizes=dict(sizes.most_common()), skipped=tuple(skipped))
    return Decoded(images=images, kept=np.asarray(kept, dtype=np.int64), reading=reading)


def _decoded(files: Sequence[Path], size: tuple[int, int] | None) -> Iterator[tuple[Pixels, str] | InputError]:
    """Yield pixels and original size of every file, in order; pillow works in threads, as it lets others run."""
    # Filters of warnings belong to the process, so they are set once and around all threads.
    with warnings.catch_warnings(), ThreadPoolExecutor(WORKERS) as pool:
        _set_filters()
        for start in range(0, len(files), AT_ONCE):
            part = files[start : start + AT_ONCE]
            yield from pool.map(lambda file: _try_image(file, size), part)


def _one_channel(images: Pixels) -> Pixels:
    """Keep the first channel, in the same place: row after row moves down, onto what has been moved already."""
    n, _, height, width = images.shape
    packed = images.reshape(-1)[: n * height * width].reshape(n, 1, height, width)
    for i in range(n):
        packed[i] = images[i, :1]
    return packed


def _set_filters() -> None:
    from PIL import Image

    warnings.simplefilter("ignore")  # odd metadata is no reason to stop
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def _try_image(file: Path, size: tuple[int, int] | None) -> tuple[Pixels, str] | InputError:
    expected = (
        f"expected a whole {'/'.join(IMAGE_FORMATS)} of at most {MAX_PIXELS} pixels; replace or delete it, or skip "
        "such files with corrupt='skip' (--corrupt skip)"
    )
    try:
        if file.stat().st_size == 0:
            raise InputError("it has 0 bytes")
        return _read_image(file, size)
    except Exception as error:  # decoders raise many kinds on damaged files; each means the same to the user
        return InputError(f"image {str(file)!r} cannot be read ({one_line(error)}): {expected}")


def _read_image(file: Path, size: tuple[int, int] | None) -> tuple[Pixels, str]:
    """Return an image as `[h, w]` if it is grey, else `[h, w, 3]`, and its size before."""
    from PIL import Image, ImageOps

    with file.open("rb") as handle, Image.open(handle, formats=IMAGE_FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise InputError(f"it has {width}x{height} pixels")
        if size is not None:
            # A JPEG can be decoded at an eighth, a quarter or half of its size, in far less time.
            image.draft(None, (2 * max(size), 2 * max(size)))
        image.load()
        turned = ImageOps.exif_transpose(image)
        if (turned.width < turned.height) != (image.width < image.height):
            width, height = height, width
        return image_pixels(turned, size), f"{height}x{width}"


def image_pixels(image: Image, size: tuple[int, int] | None) -> Pixels:
    """Return an image of pillow as `[h, w]` if it is grey, else `[h, w, 3]`, resized if a size is given."""
    from PIL import Image as pillow

    plain = _plain(image)
    if size is not None and plain.size != (size[1], size[0]):
        plain = plain.resize((size[1], size[0]), pillow.Resampling.BILINEAR)
    array: Pixels = np.array(plain, dtype=np.uint8)
    if array.ndim == 3 and (array == array[:, :, :1]).all():
        return array[:, :, 0]
    return array


def resized(array: Pixels, shape: Sequence[int]) -> Pixels:
    """Resize what was decoded before the size was known, `[h, w]` or `[h, w, 3]`, to fit into `[n, c, h, w]`."""
    height, width = shape[-2:]
    if array.shape[:2] == (height, width):
        return array
    from PIL import Image

    return np.array(Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR), dtype=np.uint8)


def with_channels(array: Pixels, channels: int) -> Pixels:
    """Turn `[h, w]` or `[h, w, 3]` into `[channels, h, w]`."""
    if channels == 1:
        return (array if array.ndim == 2 else luma(array, axis=2))[None]
    return np.stack([array] * 3) if array.ndim == 2 else array.transpose(2, 0, 1)


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
