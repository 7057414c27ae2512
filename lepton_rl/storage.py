"""Arrays of images that may be larger than memory: above a limit they lie in a file that is paged in and out."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from lepton_rl.cache import cache_folder
from lepton_rl.errors import InputError

MEMORY_BYTES = 2**30  # of one array; larger ones go to the disk
CHUNK_BYTES = 64 * 2**20  # of what is worked on at once

Images = NDArray[np.uint8]


def blank_images(shape: tuple[int, ...]) -> Images:
    """Return an uninitialised uint8 array, in memory or in a nameless file of the cache folder.

    Raises:
        InputError: If it needs the disk, and the disk has no room.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if size <= MEMORY_BYTES:
        return np.empty(shape, dtype=np.uint8)
    folder = cache_folder() / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:  # the map keeps it; it is gone with the process, killed or not
        reserve(file, size, folder)
        return np.asarray(np.memmap(file, dtype=np.uint8, mode="r+", shape=shape))


def reserve(file: IO[bytes], size: int, folder: Path) -> None:
    """Give a file its full size at once: a write into the map of a full disk would kill the process.

    Raises:
        InputError: If the disk has no room.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError as error:
        raise InputError(
            f"{size / 2**30:.1f} GiB of images do not fit into {str(folder)!r} ({error.strerror}): expected room for "
            "them; give a smaller image size, make room, or set LEPTON_CACHE to a folder on another disk"
        ) from error


def chunks(images: Images) -> Iterator[slice]:
    """Cut the rows of an array into parts that fit into memory easily."""
    rows = max(1, CHUNK_BYTES // max(1, images[:1].size))
    return (slice(start, start + rows) for start in range(0, len(images), rows))


def taken(images: Images, index: NDArray[np.int64] | NDArray[np.bool_]) -> Images:
    """Return rows of an array, as a copy."""
    if images.size <= MEMORY_BYTES:
        return images[index]
    rows = np.arange(len(images))[index]
    result = blank_images((len(rows), *images.shape[1:]))
    for part in chunks(result):
        result[part] = images[rows[part]]
    return result


def mapped(images: Images, shape: tuple[int, ...], change: Callable[[Images], Images]) -> Images:
    """Return images `[n, *shape]`, made part by part."""
    result = blank_images((len(images), *shape))
    for part in chunks(images):
        result[part] = change(images[part])
    return result
