"""Compare arms on the held-out parts of a suite: make the cells that are missing, then summarise all."""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lepton_rl.agents.arms import closest, find_arm
from lepton_rl.agents.cells import Bench, Cell, Place, Row, Suite
from lepton_rl.agents.crew import Crew, Done, cores
from lepton_rl.agents.plan import BenchmarkConfig, described, finished, notes, place_of, plan, row_order
from lepton_rl.agents.rows import RowFile, fingerprint, joined, write_json
from lepton_rl.agents.statistics import summarise
from lepton_rl.errors import InputError
from lepton_rl.manifest import write_manifest
from lepton_rl.report import benchmark_report
from lepton_rl.suite import TaskSuite

__all__ = ["SUITES", "BenchmarkConfig", "CellsFailed", "benchmark", "summary_table"]

MakeSuite = Callable[[], Suite]
SUITES: dict[str, MakeSuite] = {"digits": TaskSuite.digits}


class CellsFailed(RuntimeError):
    """Some cells could not be made; all others are kept in rows.jsonl."""


def benchmark(config: BenchmarkConfig, make_suite: MakeSuite | None = None) -> dict[str, Any]:
    """Run a benchmark, or go on with a killed one, and return its summary.

    Args:
        config: What to compare on what.
        make_suite: Makes the suite instead of the one that `config.suite` names; worker processes import it,
            so it must be a function of a module.

    Raises:
        InputError: If an argument is wrong, or `out` holds rows of another benchmark.
        CellsFailed: If cells failed; the others are kept, and the same call tries only the failed ones again.
    """
    make_suite = make_suite or _suite(config.suite)
    cells = plan(config)
    common = joined(config.out, _fingerprint(config))
    rows_file = RowFile(config.out / "rows.jsonl")
    done = finished(rows_file.read(), cells, config)
    arguments = asdict(config) | {"out": str(config.out)}
    extra = {"fingerprint": common, **described(config)}
    write_manifest(config.out, command="lepton benchmark", arguments=arguments, extra=extra)
    rows_file.rewrite(row for rows in done.values() for row in rows)
    _make([cell for cell in cells if cell not in done], _bench(config, make_suite), config)
    rows = sorted(rows_file.read(), key=row_order)
    rows_file.rewrite(rows)
    summary = summarise(rows, seed=config.seed) | {"notes": notes(config)}
    write_json(config.out / "summary.json", summary)
    benchmark_report(config.out)
    return summary


def summary_table(summary: Mapping[str, Any]) -> str:
    """Return a summary as text: one line per arm and number of runs, then the runs to match the policy."""
    head = f"{'arm':<20} {'runs':>4} {'IQM':>7} {'95 % interval':>17} {'accuracy':>9} {'made worse':>11}"
    lines = [head]
    for arm, entry in summary["arms"].items():
        for runs, one in entry["by_runs"].items():
            low, high = one["ci"]
            score = "      -" if one["iqm"] is None else f"{one['iqm']:7.3f}"
            interval = "-" if low is None else f"{low:.3f} .. {high:.3f}"
            worse = f"{one['negative_transfer']:.0%}"
            lines.append(f"{arm:<20} {runs:>4} {score} {interval:>17} {one['mean_accuracy']:9.3f} {worse:>11}")
    for arm, match in summary["runs_to_match"].items():
        median = match["median"]
        needed = f"more than {match['largest']}" if median is None else median
        lines.append(f"runs of {arm} to match the policy's single run, median task: {needed}")
    return "\n".join([*lines, *summary.get("notes", [])])


def _suite(name: str) -> MakeSuite:
    if name not in SUITES:
        raise InputError(f"suite {name!r} is unknown: {closest(name, list(SUITES))}")
    return SUITES[name]


def _fingerprint(config: BenchmarkConfig) -> dict[str, Any]:
    learned = any(find_arm(arm).needs_policy for arm in config.arms)
    policy = config.policy if learned else None
    return fingerprint(suite=config.suite, regime=config.regime, seed=config.seed, policy=policy)


def _bench(config: BenchmarkConfig, make_suite: MakeSuite) -> Bench:
    return Bench(
        make_suite=make_suite,
        regime=None if config.regime == "both" else config.regime,
        seed=config.seed,
        runs=tuple(sorted(config.runs)),
        policy=config.policy,
        journals=config.out / "optuna",
    )


def _make(missing: list[Cell], bench: Bench, config: BenchmarkConfig) -> None:
    """Make the missing cells; each is on the disk as soon as it is finished.

    Raises:
        CellsFailed: At the end, if some failed.
    """
    if not missing:
        return
    references_file, rows_file = (RowFile(config.out / f"{name}.jsonl") for name in ("references", "rows"))
    references = {place_of(row): row for row in references_file.read()}
    references_file.rewrite(references.values())
    places = [place for place in dict.fromkeys(cell.place for cell in missing) if place not in references]
    jobs = len(missing) + len(places)
    workers = min(config.workers or cores(), jobs)
    failed: list[Done] = []
    with _one_thread(), _progress() as progress, Crew(workers, functools.partial(_start, bench)) as crew:
        bar = progress.add_task("references", total=jobs)
        with references_file:
            for done in crew.run(places):
                progress.advance(bar)
                if done.problem is None:
                    references_file.append([done.value])
                    references[done.job] = done.value
                else:
                    failed.append(done)
        progress.update(bar, description="cells")
        with rows_file:
            for done in crew.run(cell for cell in missing if cell.place in references):
                progress.advance(bar)
                if done.problem is None:
                    rows_file.append(_with_references(done.value, references[done.job.place]))
                else:
                    failed.append(done)
    if failed:
        raise CellsFailed(_complaint(failed, config))


def _start(bench: Bench) -> Callable[[Any], Any]:
    return bench.start()


def _with_references(rows: list[Row], reference: Row) -> list[Row]:
    return [row | {key: reference[key] for key in ("source_only", "supervised")} for row in rows]


def _complaint(failed: list[Done], config: BenchmarkConfig) -> str:
    first = failed[0].job
    place = first if isinstance(first, Place) else first.place
    what = "the reference accuracies" if isinstance(first, Place) else f"arm {first.arm!r}"
    return (
        f"{len(failed)} jobs failed, the first: {what} on {place.split} task {place.index}, "
        f"seed {place.seed}: {failed[0].problem}. Finished cells are kept in {config.out / 'rows.jsonl'}; "
        "the same command tries only the failed ones again"
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: small networks are no slower, and sums do not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))
