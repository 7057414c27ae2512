"""What image and label arrays must look like, and how others are brought to it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lepton_rl.errors import InputError

UNLABELLED = -1
MAX_CLASSES = 65_536


def luma(rgb: NDArray[np.uint8], axis: int) -> NDArray[np.uint8]:
    """Return ITU-R 601 luma, the weights pillow uses, in integers so that it is exact."""
    red, green, blue = np.moveaxis(rgb.astype(np.uint32), axis, 0)
    luma: NDArray[np.uint32] = (299 * red + 587 * green + 114 * blue + 500) // 1000
    return luma.astype(np.uint8)


def check_channels(channels: int) -> None:
    """Refuse a number of channels other than 1 and 3."""
    if channels not in (1, 3):
        raise InputError(f"channels is {channels!r}: expected 1 (grey) or 3 (red, green, blue)")


def checked_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a side or a pair."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in pair):
        raise TypeError(f"size is {size!r}: expected an integer or (height, width) in pixels")
    if not all(1 <= side <= 8192 for side in pair):
        raise InputError(f"size is {size!r}: expected 1..8192 pixels a side")
    return int(pair[0]), int(pair[1])


def checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return distinct class names as a tuple."""
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes are {classes!r}: expected a sequence of strings, one a class")
    return tuple(classes)


def checked_images(x: ArrayLike) -> NDArray[np.uint8]:
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
        raise InputError(f"images are {array.dtype}: expected uint8 0..255; scale to 0..255 and use x.astype('uint8')")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in (1, 3):
        raise InputError(f"images have shape {shape}: expected [n, h, w], [n, h, w, 1 or 3] or [n, 1 or 3, h, w]")
    if array.size == 0:
        raise InputError(f"images have shape {shape}, which holds no pixel: expected at least one image")
    return np.ascontiguousarray(array)


def checked_labels(y: ArrayLike | None, n: int) -> NDArray[np.int64]:
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
        raise InputError(f"labels have shape {list(array.shape)} for {n} images: expected [{n}], one label an image")
    if array.dtype.kind not in "iu":
        raise InputError(f"labels are {array.dtype}: expected integers 0..k-1, or -1 for unlabelled; convert them")
    low, high = int(array.min()), int(array.max())
    if low < UNLABELLED or high >= MAX_CLASSES:
        bad = low if low < UNLABELLED else high
        raise InputError(f"label {bad} is out of range: expected -1 or 0..{MAX_CLASSES - 1}; number classes from 0")
    return array.astype(np.int64)


def one_line(error: BaseException) -> str:
    """Return an error's message without line breaks."""
    return " ".join(str(error).split())[:200] or type(error).__name__
