"""Compare arms on the held-out parts of a suite: make the cells that are missing, then summarise all."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lepton_rl.agents.arms import TunerArm, find_arm
from lepton_rl.agents.cells import Bench, Cell, Lesson, Place, Row, pupil
from lepton_rl.agents.crew import Crew, Done, cores
from lepton_rl.agents.leaderboard import LOCAL, TOLERANCE, Submission, differences, read_submission, sampled, submit
from lepton_rl.agents.ledger import ledger
from lepton_rl.agents.plan import (
    BenchmarkConfig,
    cell_of,
    described,
    finished,
    notes,
    place_of,
    plan,
    policies,
    row_order,
)
from lepton_rl.agents.ray_crew import RayCrew
from lepton_rl.agents.rows import RowFile, check_joins, fingerprint, write_json
from lepton_rl.agents.statistics import summarise
from lepton_rl.agents.suites import SUITES, MakeSuite, SuiteChoice
from lepton_rl.cache import remove_unfinished
from lepton_rl.errors import InputError
from lepton_rl.lock import beside, locked
from lepton_rl.manifest import check_free, write_manifest
from lepton_rl.report import benchmark_report
from lepton_rl.report.figures import write_figures
from lepton_rl.report.tables import write_tables
from lepton_rl.stopping import StopRequest, stop_on_signals

__all__ = ["SUITES", "BenchmarkConfig", "CellsFailed", "benchmark", "summary_table"]


class CellsFailed(RuntimeError):
    """Some cells could not be made; all others are kept in rows.jsonl."""


def benchmark(config: BenchmarkConfig, make_suite: MakeSuite | None = None) -> dict[str, Any]:
    """Run a benchmark, or go on with a killed one, and return its summary.

    Args:
        config: What to compare on what.
        make_suite: Makes the suite instead of the one that `config.suite` names; worker processes import it,
            so it must be a function of a module.

    Raises:
        InputError: If an argument is wrong, `out` holds rows of another benchmark or is in use by another process,
            or what is verified differs.
        CellsFailed: If cells failed; the others are kept, and the same call tries only the failed ones again.
        Stopped: If SIGTERM or SIGUSR2 came: the cells at hand are abandoned, all others are kept.
    """
    with locked(beside(config.out), config.out), stop_on_signals() as stop:
        for folder in (config.out, config.out / "figures"):
            remove_unfinished(folder)
        if config.verify is not None:
            return _verified(config, config.verify, make_suite)
        return _compared(config, make_suite or _suite(config).maker(), stop)


def _compared(config: BenchmarkConfig, make_suite: MakeSuite, stop: StopRequest) -> dict[str, Any]:
    cells = plan(config)
    common = _fingerprint(config)
    check_joins(config.out, common)
    rows_file = RowFile(config.out / "rows.jsonl")
    done = finished(rows_file.read(), cells, config)
    arguments = json.loads(json.dumps(asdict(config), default=str))
    about = described(config)
    extra = {"fingerprint": common, **about}
    write_manifest(config.out, command="lepton benchmark", arguments=arguments, extra=extra)
    rows_file.rewrite(row for rows in done.values() for row in rows)
    _make([cell for cell in cells if cell not in done], _bench(config, make_suite, common), config, stop)
    rows = sorted(rows_file.read(), key=row_order)
    rows_file.rewrite(rows)
    summary = summarise(rows, seed=config.seed) | {"notes": notes(config)}
    summary["ledger"] = ledger(summary, {mark: told["card"] for mark, told in about["policies"].items()})
    _report(config.out, summary, rows)
    if config.submit is not None:
        submit(config.submit, config, common, rows)
    return summary


def _report(out: Path, summary: Mapping[str, Any], rows: Sequence[Row]) -> None:
    write_json(out / "summary.json", summary)
    benchmark_report(out)
    write_tables(out, summary)
    write_figures(out, summary, rows)


def _verified(config: BenchmarkConfig, path: Path, make_suite: MakeSuite | None) -> dict[str, Any]:
    """Make a sample of a submission's cells again, and return their summary with what was found."""
    told = read_submission(path)
    check_free(config.out)  # never among the rows of a benchmark
    local = {key: getattr(config, key) for key in (*LOCAL, "policy") if key not in ("submit", "verify")}
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.arguments.items()}
    known = {field.name for field in fields(BenchmarkConfig)}
    if not arguments.keys() <= known:
        raise InputError(f"{path} has arguments of another version, {sorted(arguments.keys() - known)}: use that one")
    theirs = BenchmarkConfig(**(arguments | local))
    mine = _fingerprint(theirs)
    _check_alike(path, told, mine, theirs)
    groups = sampled(told.rows, config.seed)
    plan(theirs)
    make_suite = make_suite or _suite(theirs).maker()
    rows_file = RowFile(config.out / "rows.jsonl")
    write_manifest(config.out, command="lepton benchmark", arguments={"verify": str(path)}, extra={"fingerprint": mine})
    cells = [cell_of(group[0]) for group in groups]
    with stop_on_signals() as stop:
        _make(cells, _bench(theirs, make_suite, mine), theirs, stop)
    made = sorted(rows_file.read(), key=row_order)
    expected = sorted((row for group in groups for row in group), key=row_order)
    same = mine == told.fingerprint
    found = differences(expected, made, same_versions=same)
    if found:
        raise InputError(f"{path} could not be confirmed: {'; '.join(found[:3])}")
    how = "equal but for seconds" if same else f"with other versions, accuracies within {TOLERANCE}"
    summary = summarise(made, seed=config.seed)
    summary["notes"] = [f"{path}: {len(cells)} of its cells were made again and confirmed, {how}"]
    _report(config.out, summary, made)
    return summary


def _check_alike(path: Path, told: Submission, mine: Mapping[str, Any], theirs: BenchmarkConfig) -> None:
    advice = "expected the same; give the same --policy, --data and version of this package"
    for key in ("format", "suite", "data", "defaults"):
        if mine[key] != told.fingerprint.get(key):
            raise InputError(
                f"{path} was made with {key} {told.fingerprint.get(key)!r}, here it is {mine[key]!r}: {advice}"
            )
    here = policies(theirs)
    for mark, name in told.policies.items():
        if mark not in here:
            raise InputError(f"{path} was made with policy {name!r} ({mark}), here are {sorted(here)}: {advice}")


def summary_table(summary: Mapping[str, Any]) -> str:
    """Return a summary as text: one line per arm and number of runs, then the runs to match the policy."""
    width = max([20, *map(len, summary["arms"])])
    head = f"{'arm':<{width}} {'runs':>4} {'IQM':>7} {'95 % interval':>17} {'accuracy':>9} {'made worse':>11}"
    lines = [head]
    for arm, entry in summary["arms"].items():
        for runs, one in entry["by_runs"].items():
            low, high = one["ci"]
            score = "      -" if one["iqm"] is None else f"{one['iqm']:7.3f}"
            interval = "-" if low is None else f"{low:.3f} .. {high:.3f}"
            worse = f"{one['negative_transfer']:.0%}"
            lines.append(f"{arm:<{width}} {runs:>4} {score} {interval:>17} {one['mean_accuracy']:9.3f} {worse:>11}")
    for arm, match in summary["runs_to_match"].items():
        median = match["median"]
        needed = f"more than {match['largest']}" if median is None else median
        lines.append(f"runs of {arm} to match the policy's single run, median task: {needed}")
    return "\n".join([*lines, *summary.get("notes", [])])


def _suite(config: BenchmarkConfig) -> SuiteChoice:
    return SuiteChoice(
        name=config.suite,
        data=config.data,
        source=config.source,
        target=config.target,
        size=config.size,
        model=config.model,
        weights=config.weights,
        budgets=config.budgets,
    )


def _fingerprint(config: BenchmarkConfig) -> dict[str, Any]:
    data = _suite(config).contents()
    return fingerprint(suite=config.suite, regime=config.regime, seed=config.seed, data=data)


def _bench(config: BenchmarkConfig, make_suite: MakeSuite, common: Mapping[str, Any]) -> Bench:
    prefix = hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:12]
    return Bench(
        make_suite=make_suite,
        regime=None if config.regime == "both" else config.regime,
        seed=config.seed,
        runs=tuple(sorted(config.runs)),
        policies=policies(config),
        journals=config.out / "optuna",
        database=None if config.storage is None else (config.storage, f"lepton-{prefix}"),
    )


def _make(missing: list[Cell], bench: Bench, config: BenchmarkConfig, stop: StopRequest) -> None:
    """Make the missing cells; each is on the disk as soon as it is finished.

    Raises:
        CellsFailed: At the end, if some failed.
        Stopped: If a signal came.
    """
    if not missing:
        return
    references_file, rows_file = (RowFile(config.out / f"{name}.jsonl") for name in ("references", "rows"))
    references = {place_of(row): row for row in references_file.read()}
    references_file.rewrite(references.values())
    places = [place for place in dict.fromkeys(cell.place for cell in missing) if place not in references]
    failed: list[Done] = []
    with _one_thread(), _progress() as progress:
        bar = progress.add_task("preparing", total=len(missing) + len(places))
        bench = replace(bench, lessons=_lessons(bench, config, missing, stop))
        with _crew(bench, config, len(missing) + len(places), stop) as crew:
            progress.update(bar, description="references")
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
                        _forget(done.job, bench)
                    else:
                        failed.append(done)
    if failed:
        raise CellsFailed(_complaint(failed, config))


def _forget(cell: Cell, bench: Bench) -> None:
    arm = find_arm(cell.arm)
    if isinstance(arm, TunerArm):
        arm.forget(bench.storage(cell, arm), bench.runs)


def _lessons(bench: Bench, config: BenchmarkConfig, missing: list[Cell], stop: StopRequest) -> dict[str, list[Any]]:
    """Show training tasks to the arms that want to see some beforehand; what they took from them is kept."""
    path = config.out / "lessons.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    known: dict[str, list[Any]] = found if isinstance(found, dict) else {}
    wanted = [
        Lesson(arm=arm, policy=policy, index=index)
        for arm, policy in sorted({(cell.arm, cell.policy) for cell in missing})
        if pupil(arm, policy) not in known
        for index in range(find_arm(arm).lessons)
    ]
    if not wanted:
        return known
    with _crew(bench, config, len(wanted), stop) as crew:
        done = list(crew.run(wanted))
    failed = [one for one in done if one.problem is not None]
    if failed:
        raise CellsFailed(_complaint(failed, config))
    values = {one.job: one.value for one in done}
    for lesson in wanted:
        known.setdefault(lesson.pupil, []).append(values[lesson])
    write_json(path, known)
    return known


def _crew(bench: Bench, config: BenchmarkConfig, jobs: int, stop: StopRequest) -> Crew | RayCrew:
    start = functools.partial(_start, bench)
    check = functools.partial(stop.check, "the cells that are finished")
    if config.address is not None:
        return RayCrew(config.workers, start, config.address, check)
    return Crew(min(config.workers or cores(), jobs), start, check)


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
