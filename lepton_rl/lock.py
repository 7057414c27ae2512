"""One process per output folder: a lock that the kernel releases, however its owner ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lepton_rl.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


def beside(folder: Path) -> Path:
    """Return the lock file of a folder that must stay empty or may not exist yet: it lies beside it."""
    folder = Path(os.path.abspath(folder))
    return folder.parent / f".{folder.name}{LOCK}"


@contextmanager
def locked(path: Path, folder: Path) -> Iterator[None]:
    """Hold a lock file while something writes to a folder; it is removed afterwards, as are folders made for it.

    The file of a process that died holds nobody up: its lock went with it.

    Args:
        path: The lock file; missing folders above it are made.
        folder: What it stands for, for the message.

    Raises:
        InputError: If another process holds it.
    """
    if fcntl is None:
        yield
        return
    missing = [parent for parent in path.parents if not parent.exists()]
    handle = _acquire(path, folder)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
        for made in missing:
            with suppress(OSError):  # it is not empty
                made.rmdir()


def _acquire(path: Path, folder: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # another process had made the folder for its lock, and removed it just now
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip()
            os.close(handle)
            raise InputError(
                f"out {str(folder)!r} is in use by process {owner or 'unknown'}: expected one process per folder; "
                "wait for it, or choose another --out"
            ) from None
        except OSError:
            os.close(handle)
            raise
        if _is_still(path, handle):
            return handle
        os.close(handle)  # its owner removed it just now: it would lock nobody out


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
