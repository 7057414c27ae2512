"""The raw rows of a benchmark on disk: whole lines, safe to kill, and never two benchmarks in one file."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lepton_rl.artifact import SHIPPED, TUNED_DEFAULT, shipped_policy_path
from lepton_rl.cache import naming, write_atomically
from lepton_rl.errors import InputError
from lepton_rl.manifest import versions

Row = dict[str, Any]
FORMAT = 3  # raise when the meaning of a row changes, so that old rows are not mixed with new ones
SYNC_SECONDS = 1.0  # waiting for the disk after every cell would cost thousands of quick ones half of their time


class RowFile:
    """A JSONL file that grows by whole lines.

    Use it as a context manager: the file stays open for appending.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is read or made yet."""
        self.path = path

    def read(self) -> list[Row]:
        """Return the rows; a last line that was cut off when its writer was killed is left out.

        Raises:
            InputError: If another line is damaged.
        """
        if not self.path.exists():
            return []
        *whole, cut = self.path.read_bytes().split(b"\n")
        del cut  # empty, or the beginning of a row that is made again
        rows = []
        for number, line in enumerate(whole, start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("no object")
            except (ValueError, RecursionError):
                raise InputError(
                    f"{self.path}, line {number} is damaged ({line[:40]!r}): expected one JSON object; "
                    "remove that line to have its cell made again"
                ) from None
            rows.append(row)
        return rows

    def rewrite(self, rows: Iterable[Row]) -> None:
        """Replace the file, whole or not at all."""
        write_atomically(self.path, b"".join(map(_line, rows)))

    def __enter__(self) -> Self:
        """Open for appending."""
        self._file = self.path.open("ab")
        self._synced = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        with naming(self.path), self._file:
            self._sync()

    def append(self, rows: Iterable[Row]) -> None:
        """Add the rows of one cell: they outlive this process at once, and a power cut within a second."""
        with naming(self.path):
            self._file.write(b"".join(map(_line, rows)))
            self._file.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        with naming(self.path):
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def _line(row: Row) -> bytes:
    return json.dumps(row, sort_keys=True, allow_nan=False).encode() + b"\n"


def fingerprint(*, suite: str, regime: str, seed: int, data: str | None = None) -> dict[str, Any]:
    """Return what every row of a file must have in common; arms, tasks, seeds and runs may be added to it.

    Args:
        suite: Name of the suite.
        regime: Label regime asked for.
        seed: Of the benchmark.
        data: Hash of the suite's files; None if it has none.
    """
    found = versions()
    return {
        "format": FORMAT,
        "suite": suite,
        "regime": regime,
        "seed": seed,
        "data": data,
        "defaults": _defaults_hash(),
        **{name: found.get(name) for name in ("lepton_rl", "torch", "numpy", "optuna")},
    }


def _defaults_hash() -> str:
    """Return a hash of what was found over the training tasks: arms start from it, or play it."""
    digest = hashlib.sha256()
    for file in sorted(resources.files("lepton_rl").joinpath("defaults").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            digest.update(file.name.encode() + json.dumps(_found(file.read_bytes()), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _found(content: bytes) -> dict[str, Any]:
    found = json.loads(content)
    return {key: found.get(key) for key in ("settings", "actions")}


def policy_mark(policy: str) -> str:
    """Return what rows call a policy: the hash of its file."""
    if policy == TUNED_DEFAULT:
        return policy
    path = shipped_policy_path() if policy == SHIPPED else Path(policy)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def check_joins(folder: Path, mine: Mapping[str, Any]) -> None:
    """Check that a folder is new or holds rows of the same benchmark.

    Raises:
        InputError: If it holds something else.
    """
    manifest = folder / "manifest.json"
    if not manifest.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"out {str(folder)!r} is not the output of a benchmark: expected a new or empty folder, or "
                "one with its manifest.json; choose another --out"
            )
        return
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        theirs = content["fingerprint"]
        differing = [key for key in mine if theirs[key] != mine[key]]
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        raise InputError(
            f"{manifest} is not a benchmark's: expected a fingerprint of its rows; choose another --out"
        ) from None
    if differing:
        key = differing[0]
        raise InputError(
            f"{folder / 'rows.jsonl'} holds rows with {key} {theirs[key]!r}, now {mine[key]!r}: expected "
            "rows of one benchmark only; choose another --out, or repeat the arguments and versions in its "
            "manifest.json"
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file for people and programs, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())
