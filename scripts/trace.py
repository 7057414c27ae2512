"""List the rows behind a number of a benchmark: every figure of the report can be made again from them.

python scripts/trace.py runs/benchmark --arm tpe --runs 8 --split held-out-shifts
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lepton_rl.agents.estimates import normalised_score
from lepton_rl.agents.rows import Row, RowFile
from lepton_rl.agents.statistics import summarise
from lepton_rl.errors import InputError
from lepton_rl.report.records import read_object


@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """List the rows behind a number of a benchmark."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The folder that was given as --out."""
    arm: str
    """Name of the arm."""
    runs: int = 1
    """Number of runs."""
    regime: str | None = None
    """Only this label regime; default all."""
    split: str | None = None
    """Only this part of the suite; default all."""
    task: str | None = None
    """Only this task; default all."""


def trace(config: TraceConfig) -> list[str]:
    """Return lines of text: one per row with its place in rows.jsonl, then the figures that they give."""
    path = config.folder / "rows.jsonl"
    if not path.exists():
        raise InputError(f"{path} does not exist: expected the rows of a benchmark; check the folder")
    numbered = [(number, row) for number, row in enumerate(RowFile(path).read(), start=1) if _asked(row, config)]
    mine = [(n, row) for n, row in numbered if (row["arm"], row["runs"]) == (config.arm, config.runs)]
    if not mine:
        raise InputError(f"{path} holds no row of arm {config.arm!r} with {config.runs} runs there: check the names")
    lines = [_line(number, row) for number, row in mine]
    settings = read_object(config.folder / "manifest.json").get("arguments")
    seed = settings.get("seed", 0) if isinstance(settings, dict) else 0
    found = summarise([row for _, row in numbered], seed=int(seed))
    arms = found["arms"]
    assert isinstance(arms, dict)
    one = arms[config.arm]["by_runs"][str(config.runs)]
    return [*lines, "", *(f"{key}: {one[key]}" for key in sorted(one))]


def _asked(row: Row, config: TraceConfig) -> bool:
    wanted = {"regime": config.regime, "split": config.split, "task": config.task}
    return all(value is None or row[key] == value for key, value in wanted.items())


def _line(number: int, row: Row) -> str:
    score = float(normalised_score(row["accuracy"], row["source_only"], row["supervised"]))
    facts = f"{row['task']} seed {row['seed']} ({row['regime']}): accuracy {row['accuracy']:.4f}"
    ends = f"source-only {row['source_only']:.4f}, supervised {row['supervised']:.4f}"
    return f"rows.jsonl:{number}  {facts}, {ends}, score {score:.4f}, {row['steps']} steps, {row['seconds']} s"


if __name__ == "__main__":
    try:
        print("\n".join(trace(tyro.cli(TraceConfig))))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
