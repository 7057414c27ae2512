"""What every command leaves in `--out`: all of it or nothing, and a manifest of how it was made."""

import glob
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lepton_rl import __version__
from lepton_rl.cache import write_atomically
from lepton_rl.errors import InputError

MANIFEST = "manifest.json"
LIBRARIES = (
    *("torch", "numpy", "safetensors", "gymnasium", "stable-baselines3", "optuna"),
    *("scikit-learn", "pillow", "plotly", "rich", "tyro"),
)


def write_manifest(
    folder: Path,
    *,
    command: str,
    arguments: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    argv: Sequence[str] | None = None,
) -> Path:
    """Write `manifest.json`, whole or not at all, and return its path.

    Args:
        folder: The command's `--out`.
        command: For example `lepton adapt`.
        arguments: Everything that the result depends on; values that JSON lacks are written as text.
        extra: Further entries.
        argv: The command line; default that of this process.
    """
    argv = list(sys.argv if argv is None else argv)
    content = {
        "command": command,
        "arguments": dict(arguments),
        "seed": arguments.get("seed"),
        "argv": argv,
        "command_line": shlex.join(argv),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **(extra or {}),
    }
    path = folder / MANIFEST
    text = json.dumps(content, indent=2, sort_keys=True, default=str)
    write_atomically(path, text.encode() + b"\n")
    return path


def versions() -> dict[str, str]:
    """Return the versions of this package and of what it stands on, as far as installed."""
    found = {"lepton_rl": __version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_free(folder: Path, *, overwrite: bool = False) -> None:
    """Make sure that output may go to a folder, before any work is done for it.

    Raises:
        InputError: If it is a file, cannot be written to, or holds files. With `overwrite` a folder that holds
            a manifest, and so is the output of an earlier command, may go.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out {str(folder)!r} is a file: expected a folder; name another one")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise InputError(
                f"out {str(folder)!r} is not empty: expected a new or empty folder; name another or overwrite it"
            )
        if not (folder / MANIFEST).is_file():
            raise InputError(
                f"out {str(folder)!r} holds no {MANIFEST}: expected the output of an earlier command, as all else is "
                "kept; name another folder"
            )
    above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(
            f"out {str(folder)!r} cannot be made: expected to write in {str(above)!r}; name another folder"
        )


def recover(folder: Path) -> None:
    """Put right what a process left behind that was killed while it put its output in place.

    Its half-written output goes; an earlier output that it had moved away comes back if nothing took its place.
    """
    folder = Path(os.path.abspath(folder))
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        number, _, end = left.name.removeprefix(f".{folder.name}.").partition(".")
        if end not in ("part", "old") or not number.isdecimal() or _alive(int(number)):
            continue
        if end == "old" and not folder.exists():
            left.rename(folder)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False  # of another process that had the same number
    if os.name != "posix":  # asking would end it there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextmanager
def whole_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary sibling to write into, which becomes `folder` when all went well, and vanishes otherwise.

    Raises:
        InputError: As `check_free`.
    """
    check_free(folder, overwrite=overwrite)
    folder = folder.resolve()
    part, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed and had the same number
    part.mkdir(parents=True)
    try:
        yield part
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
