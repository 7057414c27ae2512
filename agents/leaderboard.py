"""One file with all that a third party needs to check a benchmark, and the check: make a sample of cells again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lepton_rl.agents.cells import Cell
from lepton_rl.agents.plan import BenchmarkConfig, cell_of, policies
from lepton_rl.agents.rows import write_json
from lepton_rl.errors import InputError
from lepton_rl.manifest import versions

FORMAT = 2
SAMPLE = 4  # cells that are made again
FREE = ("seconds",)  # what may differ between two runs
TOLERANCE = 0.02  # of accuracies when versions differ: other kernels round otherwise
LOCAL = ("out", "submit", "verify", "storage", "address", "workers", "data", "source", "target", "weights")

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What such a file says.

    Attributes:
        arguments: Of the benchmark, without what is local to a machine.
        policies: Names of the policies under test by their marks in the rows, the hashes of their files.
        fingerprint: What all rows have in common: suite, seed, hash of the data, versions.
        rows: All of them.
    """

    arguments: dict[str, Any]
    policies: dict[str, str]
    fingerprint: dict[str, Any]
    rows: list[dict[str, Any]]


def submit(path: Path, config: BenchmarkConfig, fingerprint: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write the file."""
    arguments = {key: value for key, value in asdict(config).items() if key not in LOCAL}
    arguments["policy"] = [Path(named).name for named in config.policy]
    write_json(
        path,
        {
            "format": FORMAT,
            "arguments": arguments,
            "policies": {mark: Path(named).name for mark, named in policies(config).items()},
            "fingerprint": dict(fingerprint),
            "versions": versions(),
            "rows": list(rows),
            "hash": hash_of(rows),
        },
    )


def read_submission(path: Path) -> Submission:
    """Read such a file.

    Raises:
        InputError: If it is none, is of another format, or was changed after it was written.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Submission(**{key: content[key] for key in ("arguments", "policies", "fingerprint", "rows")})
        told, form = content["hash"], content["format"]
        cells = [cell_of(row) for row in found.rows]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a file that `--submit` wrote, check the path") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path} is no submission: expected a file that `lepton benchmark --submit` wrote") from None
    if form != FORMAT or not cells:
        raise InputError(f"{path} has format {form!r} and {len(cells)} rows: expected format {FORMAT} with rows")
    if told != hash_of(found.rows):
        raise InputError(f"{path}: the rows do not have the hash {told}: expected them as they were written")
    return found


def hash_of(rows: Sequence[Row]) -> str:
    """Return the hash of rows."""
    return hashlib.sha256("\n".join(json.dumps(row, sort_keys=True) for row in rows).encode()).hexdigest()


def sampled(rows: Sequence[Row], seed: int) -> list[list[Row]]:
    """Return the rows of a few cells drawn at random, no arm twice while there are others."""
    cells: dict[Cell, list[Row]] = {}
    for row in rows:
        cells.setdefault(cell_of(row), []).append(row)
    order = np.random.default_rng(seed).permutation(len(cells))
    drawn = [list(cells)[i] for i in order]
    first = list({cell.arm: cell for cell in reversed(drawn)}.values())
    rest = [cell for cell in drawn if cell not in set(first)]
    return [cells[cell] for cell in (*first, *rest)[:SAMPLE]]


def differences(told: Sequence[Row], made: Sequence[Row], *, same_versions: bool) -> list[str]:
    """Return in words where rows differ.

    Args:
        told: Rows of a submission.
        made: The same rows, made again.
        same_versions: Whether they have to be equal; else accuracies may differ by `TOLERANCE`.
    """
    found = []
    for one, two in zip(told, made, strict=True):
        keys = sorted((one.keys() | two.keys()) - set(FREE))
        exact = keys if same_versions else ["arm", "policy", "task", "split", "regime", "index", "seed", "runs"]
        close = [] if same_versions else ["accuracy", "source_only", "supervised"]
        where = f"{one['arm']} on {one['split']} task {one['index']}, seed {one['seed']}, runs {one['runs']}"
        found += [f"{where}: {k} {one.get(k)!r}, now {two.get(k)!r}" for k in exact if one.get(k) != two.get(k)]
        found += [f"{where}: {k} {one[k]:.4f}, now {two[k]:.4f}" for k in close if abs(one[k] - two[k]) > TOLERANCE]
    return found
