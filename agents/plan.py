"""What a benchmark consists of: its arguments, its cells, and which of them are finished."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lepton_rl.agents.arms import TunerArm, closest, find_arm
from lepton_rl.agents.cells import Cell, Place, Row, pupil
from lepton_rl.agents.rows import policy_mark
from lepton_rl.agents.tuner import STARTUP_TRIALS, OptunaTuner
from lepton_rl.artifact import SHIPPED, TUNED_DEFAULT, PolicyArtifact, load_policy, shipped_policy_path
from lepton_rl.datasets import OWN_SPLIT, splits_of
from lepton_rl.errors import InputError
from lepton_rl.suite import LEARNING_SPLITS

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Compare arms on tasks that no policy was trained on."""

    suite: str = "digits"
    """Task suite: digits, data (with --data) or folders (with --source and --target)."""
    data: Path | None = None
    """Folder of the .npz files of the suite data; default LEPTON_DATA."""
    source: Path | None = None
    """Your own source images, one sub-folder per class, for the suite folders."""
    target: tuple[Path, ...] = ()
    """Your own target images, one sub-folder per class; several folders take turns."""
    model: str | None = None
    """Your own network for the suite folders, as --model of lepton adapt; default networks of the built-in family."""
    weights: Path | None = None
    """Its weights; without them a network known by name is first trained on --source."""
    budgets: tuple[int, ...] = ()
    """Budgets of the tasks of the suite folders, in gradient steps; default 20 to 320."""
    size: int = 16
    """Side in pixels to which images of data (16 or 28) or folders are brought."""
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
    """Parts of the suite, reported apart; all = every held-out one. The suite folders has one, own, always taken."""
    tasks: int = 5
    """Tasks of each split."""
    seeds: int = 2
    """Repetitions of each task, with other batches."""
    regime: Literal["both", "few-label", "label-free"] = "both"
    """Label regime of all tasks; both = each task's own."""
    policy: tuple[str, ...] = ("lepton-v1",)
    """The policies under test, as a rule one training with several seeds: lepton-v1, tuned-default or policy files."""
    workers: int = 0
    """Processes; 0 = one per core. The rows do not depend on it."""
    out: Path = Path("runs/benchmark")
    """Folder for manifest.json, rows.jsonl, summary.json and report.html; what was killed goes on there."""
    seed: int = 0
    """Seed of all batches and searches."""
    storage: str | None = None
    """Database of the tuners' studies, for example postgresql+psycopg://user@host/name; default files in --out."""
    address: str | None = None
    """Ray cluster to work on, for example host:6379, auto or local; default processes of this machine."""
    submit: Path | None = None
    """Write the finished benchmark into this one file, for others to check."""
    verify: Path | None = None
    """Check such a file instead: make a sample of its cells again in --out and compare."""


def plan(config: BenchmarkConfig) -> list[Cell]:
    """Check the arguments and list all cells, tuners first: long jobs at the end would leave cores idle.

    Raises:
        InputError: If an argument is wrong.
    """
    _check(config)
    arms = {name: find_arm(name) for name in config.arms}
    for arm in arms.values():
        arm.check()
    marks = tuple(policies(config))
    order = sorted(arms, key=lambda name: not isinstance(arms[name], TunerArm))
    places = [
        Place(split=split, index=index, seed=seed)
        for split in splits(config)
        for index in range(config.tasks)
        for seed in range(config.seeds)
    ]
    return [
        Cell(place=place, arm=name, policy=policy)
        for name in order
        for policy in (marks if arms[name].needs_policy else ("",))
        for place in places
    ]


def policies(config: BenchmarkConfig) -> dict[str, str]:
    """Return names or paths of the policies under test by their marks in the rows; none if no arm runs one.

    Raises:
        InputError: If one is missing, damaged, or given twice.
    """
    if not any(find_arm(name).needs_policy for name in config.arms):
        return {}
    found: dict[str, str] = {}
    for named in config.policy:
        load_policy(named)  # what is wrong with it is told before any work is done
        mark = policy_mark(named)
        if mark in found:
            raise InputError(f"policy {named!r} is the same as {found[mark]!r}: expected each once; mend --policy")
        found[mark] = named
    return found


def _check(config: BenchmarkConfig) -> None:
    for name in ("arms", "runs", "splits", "policy"):
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
    known = splits_of(config.suite)
    for split in splits(config):
        if split not in known:
            raise InputError(f"split {split!r} is unknown: {closest(split, [*known, ALL])}")


def splits(config: BenchmarkConfig) -> tuple[str, ...]:
    """Return the splits that are compared on."""
    if config.suite == "folders":
        return (OWN_SPLIT,)
    if ALL in config.splits:
        return tuple(split for split in splits_of(config.suite) if split not in LEARNING_SPLITS)
    return config.splits


def place_of(row: Row) -> Place:
    """Return the task and seed that a row belongs to."""
    return Place(split=row["split"], index=row["index"], seed=row["seed"])


def cell_of(row: Row) -> Cell:
    """Return the cell that a row belongs to.

    Raises:
        InputError: If the row does not say.
    """
    missing = [key for key in ("split", "index", "seed", "arm", "policy", "runs") if key not in row]
    if missing:
        raise InputError(
            f"a row has no field {missing[0]!r} ({str(row)[:60]}): expected rows as `lepton benchmark` writes them; "
            "remove its line from rows.jsonl to have its cell made again"
        )
    return Cell(place=place_of(row), arm=row["arm"], policy=row["policy"] or "")


def row_order(row: Row) -> tuple[Any, ...]:
    """Sort rows in an order that does not depend on which cell was finished first."""
    return row["split"], row["index"], row["seed"], row["arm"], row["policy"] or "", row["runs"]


def finished(rows: Iterable[Row], cells: Iterable[Cell], config: BenchmarkConfig) -> dict[Cell, list[Row]]:
    """Return the rows of the cells that are finished; a cell that was cut short is not.

    Raises:
        InputError: If there are rows that are not planned, and would be summarised with the others.
    """
    found: dict[Cell, list[Row]] = {}
    for row in rows:
        found.setdefault(cell_of(row), []).append(row)
    tuned = {name for name in config.arms if isinstance(find_arm(name), TunerArm)}
    planned = set(cells)
    complete = {}
    for cell, mine in found.items():
        wanted = sorted(config.runs) if cell.arm in tuned else [1]
        made = sorted(row["runs"] for row in mine)
        if cell not in planned or not set(made) <= set(wanted):
            where = f"{cell.place.split} task {cell.place.index}, seed {cell.place.seed}"
            raise InputError(
                f"{config.out / 'rows.jsonl'} holds rows of {pupil(cell.arm, cell.policy)!r} on {where}, runs {made}: "
                "expected only what is asked for, as a benchmark may grow but not shrink; ask for them too, or choose "
                "another --out"
            )
        if made == wanted:
            complete[cell] = mine
    return complete


def described(config: BenchmarkConfig) -> dict[str, Any]:
    """Return what the manifest says about the arms."""
    arms = {name: find_arm(name) for name in config.arms}
    told = {name: arm.describe() for name, arm in arms.items()}
    return {
        "policies": {mark: _told(named) for mark, named in policies(config).items()},
        "sources": {name: arm.source for name, arm in arms.items()},
        "tuners": {name: about for name, about in told.items() if about},
        "paired": "per task and seed all arms and all trials of a tuner share weights, splits and batches",
        "notes": notes(config),
    }


def _told(named: str) -> dict[str, Any]:
    """Return what the manifest says about a policy: its name, and the card of its file."""
    if named == TUNED_DEFAULT:
        return {"name": named, "card": {}}
    path = shipped_policy_path() if named == SHIPPED else Path(named)
    return {"name": named if named == SHIPPED else path.name, "card": PolicyArtifact.load(path).card}


def notes(config: BenchmarkConfig) -> list[str]:
    """Return what a reader of the summary must know."""
    early = ", ".join(str(runs) for runs in sorted(config.runs) if runs <= STARTUP_TRIALS)
    arms = [arm for arm in map(find_arm, config.arms) if isinstance(arm, OptunaTuner)]
    learning = [split for split in splits(config) if split in LEARNING_SPLITS]
    found = [f"{split}: policies are trained or chosen on these tasks" for split in learning]
    for sampler, called in (("tpe", "TPE"), ("gp", "GP")):
        names = [arm.name for arm in arms if arm.sampler == sampler]
        if early and names:
            said = f"random start-up, as {called} draws its first {STARTUP_TRIALS} trials at random"
            found.append(f"{', '.join(names)} with {early} runs {'is' if len(names) == 1 else 'are'} {said}")
    return found
