"""Images and labels from NumPy archives; pickled objects are never loaded."""

import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from lepton_rl.arrays import one_line
from lepton_rl.errors import InputError

NPZ_KEYS = (("x_train", "y_train"), ("x_test", "y_test"), ("x", "y"), ("images", "labels"))
MAX_BYTES = 8 * 2**30  # of all arrays that are read; the same as for a folder of images
FREE_BYTES, MAX_RATIO = 64 * 2**20, 200  # above the first, arrays that pack better than this are a bomb, not images
NPZ_ERRORS = (
    *(OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, OverflowError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, struct.error, SyntaxError, tokenize.TokenError),
)


def read_npz(path: Path, split: str | None) -> list[tuple[ArrayLike, ArrayLike | None]]:
    """Return the (images, labels) pairs that `split` asks for."""
    if not path.is_file():
        raise InputError(f"file {str(path)!r} does not exist or is no file: expected an .npz file; check the path")
    try:
        # The file is opened here, because numpy leaves it open when the archive is damaged.
        with path.open("rb") as handle, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if handle.read(6) == b"\x93NUMPY":
                raise InputError(f"{str(path)!r} holds one bare array: expected .npz; save it with numpy.savez(x=..)")
            with zipfile.ZipFile(handle) as archive:
                keys = [name.removesuffix(".npy") for name in archive.namelist()]
                pairs = _npz_pairs(path, keys, split)
                _check_sizes(path, archive, {key for pair in pairs for key in pair if key in keys})
            handle.seek(0)
            data = np.load(handle, allow_pickle=False)
            return [(data[x], data[y] if y in data.files else None) for x, y in pairs]
    except InputError:
        raise
    except NPZ_ERRORS as error:
        raise InputError(
            f"{str(path)!r} cannot be read ({one_line(error)}): expected a whole .npz file of "
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
        raise InputError(f"{str(path)!r} holds the keys {sorted(keys)}: expected {expected}; rename the arrays")
    return here


def _check_sizes(path: Path, archive: zipfile.ZipFile, keys: set[str]) -> None:
    """Refuse what would fill the memory, before any of it is decompressed."""
    total = packed = 0
    for info in archive.infolist():
        if info.filename.removesuffix(".npy") not in keys:
            continue
        total, packed = total + info.file_size, packed + info.compress_size
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
        claimed = math.prod(shape) * dtype.itemsize
        if claimed > info.file_size:
            raise InputError(
                f"{str(path)!r}: array {info.filename[:40]!r} claims {claimed} bytes of {info.file_size}: expected a "
                "whole array; get the file again"
            )
    if total > MAX_BYTES or (total > FREE_BYTES and total > MAX_RATIO * packed):
        raise InputError(
            f"{str(path)!r} unpacks {packed} bytes to {total}: expected at most {MAX_BYTES >> 30} GiB and images, "
            f"which pack no better than {MAX_RATIO} to 1; use fewer images, or save them with numpy.savez"
        )
