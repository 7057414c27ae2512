"""Where pretrained weights are kept between runs, and how files are written: whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".part"  # how the names of temporary files end


def cache_folder() -> Path:
    """Return `LEPTON_CACHE`, or `lepton_rl` in the user's cache folder."""
    named = os.environ.get("LEPTON_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lepton_rl"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file beside `path`, sync it and rename it, so that nobody ever reads half of it.

    Raises:
        OSError: If it cannot be written, for example on a full disk; `path` is as before then, and named.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    try:
        with naming(path):
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error say which file it is about: that of a write or of a sync names none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: without it a rename may be lost with the power."""
    if os.name != "posix":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that `write_atomically` of a killed process left in a folder."""
    for left in folder.glob(f".*{UNFINISHED}"):
        if left.is_file():
            left.unlink(missing_ok=True)
