"""Images and labels from NumPy archives; pickled objects are never loaded."""

import struct
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
NPZ_ERRORS = (
    *(OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


def read_npz(path: Path, split: str | None) -> list[tuple[ArrayLike, ArrayLike | None]]:
    """Return the (images, labels) pairs that `split` asks for."""
    if not path.is_file():
        raise InputError(f"file {str(path)!r} does not exist or is no file: expected an .npz file; check the path")
    try:
        # The file is opened here, because numpy leaves it open when the archive is damaged.
        with path.open("rb") as handle, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = np.load(handle, allow_pickle=False)
            if isinstance(data, np.ndarray):
                raise InputError(f"{str(path)!r} holds one bare array: expected .npz; save it with numpy.savez(x=..)")
            pairs = _npz_pairs(path, data.files, split)
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
