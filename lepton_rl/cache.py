"""Where pretrained weights are kept between runs, and how files are written: whole or not at all."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Return `LEPTON_CACHE`, or `lepton_rl` in the user's cache folder."""
    named = os.environ.get("LEPTON_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lepton_rl"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file beside `path`, sync it and rename it, so that nobody ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
