"""What a benchmark consists of: its arguments, its cells, and which of them are finished."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lepton_rl.agents.arms import TunerArm, closest, find_arm
from lepton_rl.agents.cells import Cell, Place, Row
from lepton_rl.agents.tuner import STARTUP_TRIALS, OptunaTuner
from lepton_rl.errors import InputError
from lepton_rl.suite import SPLITS


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Compare arms on tasks that no policy was trained on."""

    suite: str = "digits"
    """Task suite."""
    arms: tuple[str, ...] = (
        "source-only",
        "linear-probe",
        "full-finetune",
        "tuned-default",
        "random-policy",
        "policy",
        "tpe",
    )
    """What to compare; docs/add-an-arm.md lists all names."""
    runs: tuple[int, ...] = (1, 2, 4, 8)
    """After how many runs a tuner is measured; other arms run once."""
    splits: tuple[str, ...] = ("held-out-tasks", "held-out-shifts")
    """Parts of the suite, reported apart."""
    tasks: int = 5
    """Tasks of each split."""
    seeds: int = 2
    """Repetitions of each task, with other batches."""
    regime: Literal["both", "few-label", "label-free"] = "both"
    """Label regime of all tasks; both = each task's own."""
    policy: str = "lepton-v1"
    """The policy under test: lepton-v1, tuned-default or the path of a policy file."""
    workers: int = 0
    """Processes; 0 = one per core. The rows do not depend on it."""
    out: Path = Path("runs/benchmark")
    """Folder for manifest.json, rows.jsonl, summary.json and report.html; what was killed goes on there."""
    seed: int = 0
    """Seed of all batches and searches."""


def plan(config: BenchmarkConfig) -> list[Cell]:
    """Check the arguments and list all cells, tuners first: long jobs at the end would leave cores idle.

    Raises:
        InputError: If an argument is wrong.
    """
    _check(config)
    arms = {name: find_arm(name) for name in config.arms}
    for name, arm in arms.items():
        if arm.needs_policy:
            find_arm(name, config.policy)  # a missing policy is told before any work is done
    order = sorted(arms, key=lambda name: not isinstance(arms[name], TunerArm))
    places = [
        Place(split=split, index=index, seed=seed)
        for split in config.splits
        for index in range(config.tasks)
        for seed in range(config.seeds)
    ]
    return [Cell(place=place, arm=arm) for arm in order for place in places]


def _check(config: BenchmarkConfig) -> None:
    for name in ("arms", "runs", "splits"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise InputError(f"{name} {values} is empty or repeats itself: expected each once; mend --{name}")
    for name in ("tasks", "seeds"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} {getattr(config, name)} is out of range: expected 1 or more; raise --{name}")
    if min(config.runs) < 1:
        raise InputError(f"runs {config.runs} are out of range: expected 1 or more each; mend --runs")
    for name in ("workers", "seed"):
        if getattr(config, name) < 0:
            raise InputError(f"{name} {getattr(config, name)} is negative: expected 0 or more; mend --{name}")
    if config.regime not in ("both", "few-label", "label-free"):
        raise InputError(f"regime {config.regime!r} is unknown: expected both, few-label or label-free")
    for split in config.splits:
        if split not in SPLITS:
            raise InputError(f"split {split!r} is unknown: {closest(split, list(SPLITS))}")


def place_of(row: Row) -> Place:
    """Return the task and seed that a row belongs to."""
    return Place(split=row["split"], index=row["index"], seed=row["seed"])


def row_order(row: Row) -> tuple[Any, ...]:
    """Sort rows in an order that does not depend on which cell was finished first."""
    return row["split"], row["index"], row["seed"], row["arm"], row["runs"]


def finished(rows: Iterable[Row], cells: Iterable[Cell], config: BenchmarkConfig) -> dict[Cell, list[Row]]:
    """Return the rows of the cells that are finished; a cell that was cut short is not.

    Raises:
        InputError: If there are rows that are not planned, and would be summarised with the others.
    """
    found: dict[Cell, list[Row]] = {}
    for row in rows:
        found.setdefault(Cell(place=place_of(row), arm=row["arm"]), []).append(row)
    tuned = {name for name in config.arms if isinstance(find_arm(name), TunerArm)}
    planned = set(cells)
    complete = {}
    for cell, mine in found.items():
        wanted = sorted(config.runs) if cell.arm in tuned else [1]
        made = sorted(row["runs"] for row in mine)
        if cell not in planned or not set(made) <= set(wanted):
            where = f"{cell.place.split} task {cell.place.index}, seed {cell.place.seed}"
            raise InputError(
                f"{config.out / 'rows.jsonl'} holds rows of {cell.arm!r} on {where}, runs {made}: expected "
                "only what is asked for, as a benchmark may grow but not shrink; ask for them too, or choose "
                "another --out"
            )
        if made == wanted:
            complete[cell] = mine
    return complete


def described(config: BenchmarkConfig) -> dict[str, Any]:
    """Return what the manifest says about the arms."""
    arms = {name: find_arm(name) for name in config.arms}
    return {
        "sources": {name: arm.source for name, arm in arms.items()},
        "tuners": {name: arm.describe() for name, arm in arms.items() if isinstance(arm, OptunaTuner)},
        "paired": "per task and seed all arms and all trials of a tuner share weights, splits and batches",
        "notes": notes(config),
    }


def notes(config: BenchmarkConfig) -> list[str]:
    """Return what a reader of the summary must know."""
    early = ", ".join(str(runs) for runs in sorted(config.runs) if runs <= STARTUP_TRIALS)
    found = []
    for name in config.arms:
        arm = find_arm(name)
        if early and isinstance(arm, OptunaTuner) and arm.sampler == "tpe":
            said = f"random start-up, as TPE draws its first {STARTUP_TRIALS} trials at random"
            found.append(f"{name} with {early} runs is {said}")
    return found
