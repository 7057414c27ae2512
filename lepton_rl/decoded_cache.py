"""Decoded images kept on the disk, so that a folder is decoded once.

An entry is a file of raw bytes that is mapped into memory, and a JSON file beside it that is written last. It is
found by the names, sizes and times of the image files, and by how they were to be read. Files changed in the last
seconds are not trusted to show a further change by their times, and are decoded again.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lepton_rl.cache import cache_folder, write_atomically
from lepton_rl.decode import Corrupt, Decoded, Pixels, Reading, read_images
from lepton_rl.errors import InputError
from lepton_rl.storage import blank_images, reserve

VERSION = 1  # raise when decoding changes
WORTH_BYTES = 4 * 2**20  # less is decoded anew in no time
KEEP_BYTES = 32 * 2**30  # of all entries; those not used for longest go first
SETTLED_SECONDS = 2.0


def decoded_images(
    files: Sequence[Path], size: tuple[int, int] | None, channels: int | None, corrupt: Corrupt
) -> Decoded:
    """Return the images of files, from the cache if they are there; arguments as `decode.read_images`.

    Raises:
        InputError: As `decode.read_images`.
    """
    entry = _entry(files, size, channels, corrupt)
    if entry is None:
        return read_images(files, size, channels, corrupt=corrupt)
    kept = _load(entry)
    if kept is not None:
        return kept
    part = _Part(entry.with_suffix(".bin"))
    try:
        found = read_images(files, size, channels, corrupt=corrupt, blank=part.blank)
        if part.path is not None and part.holds(found.images):
            _keep(entry, part.path, found)
            return _load(entry) or found
        return found
    finally:
        part.remove()


def _entry(files: Sequence[Path], size: tuple[int, int] | None, channels: int | None, corrupt: Corrupt) -> Path | None:
    """Return where the images of files are kept; None if the files are too young, or gone."""
    digest = hashlib.sha256(json.dumps([VERSION, size, channels, corrupt]).encode())
    newest = 0
    for file in files:
        try:
            facts = file.stat()
        except OSError:
            return None
        newest = max(newest, facts.st_mtime_ns, facts.st_ctime_ns)
        line = (str(file.absolute()), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        digest.update(json.dumps(line).encode())
    if newest > (time.time() - SETTLED_SECONDS) * 1e9:
        return None
    return cache_folder() / "decoded" / f"{digest.hexdigest()[:32]}.json"


def _load(entry: Path) -> Decoded | None:
    """Read an entry; a damaged one is as good as none."""
    try:
        facts = json.loads(entry.read_text(encoding="utf-8"))
        shape, kept = tuple(facts["shape"]), np.asarray(facts["kept"], dtype=np.int64)
        reading = Reading(sizes=facts["sizes"], skipped=tuple(facts["skipped"]))
        path = entry.with_suffix(".bin")
        if path.stat().st_size != int(np.prod(shape, dtype=np.int64)) or len(kept) != shape[0]:
            return None
        # Copy on write: what a caller does to the array stays in this process.
        images = np.asarray(np.memmap(path, dtype=np.uint8, mode="c", shape=shape))
        os.utime(entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return Decoded(images=images, kept=kept, reading=reading)


class _Part:
    """A file that becomes an entry when all images are in it."""

    def __init__(self, path: Path) -> None:
        self._final = path
        self.path: Path | None = None
        self._map: Pixels | None = None

    def blank(self, shape: tuple[int, ...]) -> Pixels:
        """Map a new file; where the cache cannot be written, work without it."""
        size = int(np.prod(shape, dtype=np.int64))
        if size < WORTH_BYTES:
            return blank_images(shape)
        try:
            self._final.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._final.parent, prefix=f".{self._final.name}.")
            self.path = Path(name)
            with os.fdopen(handle, "r+b") as file:
                reserve(file, size, self._final.parent)
                self._map = np.asarray(np.memmap(file, dtype=np.uint8, mode="r+", shape=shape))
        except (OSError, InputError):
            self.remove()
            return blank_images(shape)  # which says so, if it is too large for the memory
        return self._map

    def holds(self, images: Pixels) -> bool:
        """Whether these images are the first ones of the file, and not a copy."""
        return self._map is not None and np.shares_memory(self._map[:1], images[:1])

    def remove(self) -> None:
        """Remove the file, if it has not become an entry."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self.path = None


def _keep(entry: Path, part: Path, found: Decoded) -> None:
    os.truncate(part, found.images.size)  # the rows of skipped files
    os.replace(part, entry.with_suffix(".bin"))
    facts = {
        "shape": found.images.shape,
        "kept": found.kept.tolist(),
        "sizes": found.reading.sizes,
        "skipped": found.reading.skipped,
    }
    write_atomically(entry, json.dumps(facts).encode())
    _forget_oldest(entry)


def _forget_oldest(newest: Path) -> None:
    """Remove the entries that were not used for longest, until the rest is within the limit."""
    total = 0
    for entry in sorted(newest.parent.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        images = entry.with_suffix(".bin")
        total += images.stat().st_size if images.exists() else 0
        if total > KEEP_BYTES and entry != newest:
            entry.unlink(missing_ok=True)
            images.unlink(missing_ok=True)
