"""Turn the raw rows of a benchmark into the summary that is printed, saved and reported."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from lepton_rl.agents.comparison import paired_difference, task_of
from lepton_rl.agents.estimates import (
    Scores,
    bootstrap_interval,
    iqm,
    mean,
    median,
    normalised_score,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    profile_band,
    runs_to_match,
)
from lepton_rl.errors import InputError

__all__ = [
    "FIELDS",
    "HARM",
    "bootstrap_interval",
    "iqm",
    "mean",
    "median",
    "normalised_score",
    "optimality_gap",
    "performance_profile",
    "probability_of_improvement",
    "profile_band",
    "runs_to_match",
    "summarise",
]

FIELDS = (
    "arm",
    "task",
    "split",
    "regime",
    "seed",
    "runs",
    "steps",
    "seconds",
    "source_only",
    "accuracy",
    "supervised",
)
"""What every row holds."""

HARM = 0.01
"""An arm harmed a cell when its accuracy is more than this below source-only."""

THRESHOLDS = tuple(round(-0.2 + 0.05 * step, 2) for step in range(29))
"""Scores at which performance profiles are drawn, -0.2 to 1.2."""

Row = Mapping[str, object]
Summary = dict[str, object]


def summarise(rows: Sequence[Row], *, goal: str = "policy", resamples: int = 1000, seed: int = 0) -> Summary:
    """Summarise the rows of a benchmark.

    The scores of `iqm` and `ci` are normalised per cell between source-only (0) and target-supervised (1).
    A cell is one task with one seed.

    Args:
        rows: one per arm, task, seed and number of runs, with the fields in `FIELDS`.
        goal: the arm whose single run the tuners have to match.
        resamples: bootstrap samples per interval.
        seed: seed of the bootstrap.

    Returns:
        `arms` (per arm, at its largest number of runs, and `by_runs`), `runs_to_match`, `negative_transfer` (share
        of tasks, means over seeds), `improvement` (probability that `goal` beats the arm), `differences` (of `goal`
        and the arm, paired), `policies` (of `goal`, where there are several), `profiles`, `cells`, `left_out`, and
        `groups`: the same for every regime and split.

    Raises:
        InputError: when there are no rows, a field is missing, or a value is not a finite number.
    """
    _check(rows)
    groups = sorted({(str(row["regime"]), str(row["split"])) for row in rows})
    whole = _summarise(rows, goal, resamples, seed)
    parts = []
    for regime, split in groups:
        chosen = [row for row in rows if (row["regime"], row["split"]) == (regime, split)]
        # One group is the whole: do not pay for its bootstrap twice.
        part = whole if len(groups) == 1 else _summarise(chosen, goal, resamples, seed)
        parts.append({"regime": regime, "split": split, **part})
    return {**whole, "groups": parts}


def _summarise(rows: Sequence[Row], goal: str, resamples: int, seed: int) -> Summary:
    by_arm: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        by_arm.setdefault(str(row["arm"]), {}).setdefault(_runs(row), []).append(row)
    arms: dict[str, Summary] = {}
    for number, arm in enumerate(sorted(by_arm)):
        by_runs: dict[int, Summary] = {}
        for runs, cells in sorted(by_arm[arm].items()):
            by_runs[runs] = _cell_summary(cells, resamples, np.random.default_rng([seed, number, runs]))
        largest = max(by_runs)
        arms[arm] = {**by_runs[largest], "runs": largest, "by_runs": {str(k): v for k, v in by_runs.items()}}
    one_per_cell = list({_cell(row): row for row in rows}.values())
    return {
        "arms": arms,
        "runs_to_match": _match(by_arm, goal, resamples, seed),
        "negative_transfer": {arm: entry["negative_transfer"] for arm, entry in arms.items()},
        "improvement": _improvement(by_arm, goal),
        "differences": _differences(by_arm, goal, resamples, seed),
        "policies": _policies(by_arm.get(goal, {}), resamples, seed),
        "profiles": _profiles(by_arm),
        "cells": len(one_per_cell),
        "left_out": int(np.isnan(_scores(one_per_cell)).sum()),
    }


def _cell_summary(rows: Sequence[Row], resamples: int, rng: np.random.Generator) -> Summary:
    accuracy = _column(rows, "accuracy")
    every = _scores(rows)
    kept = ~np.isnan(every)
    counted = [row for row, keep in zip(rows, kept, strict=True) if keep]
    scores, tasks, policies = every[kept], [task_of(row) for row in counted], [_policy(row) for row in counted]
    summary: Summary = {
        "iqm": None,
        "ci": [None, None],
        "mean": None,
        "median": None,
        "optimality_gap": None,
        "mean_accuracy": float(accuracy.mean()),
        "negative_transfer": _harmed(rows, accuracy - _column(rows, "source_only")),
        "worst": float((accuracy - _column(rows, "source_only")).min()),
        "steps": float(_column(rows, "steps").mean()),
        "seconds": float(_column(rows, "seconds").mean()),
        "cells": len(rows),
        "left_out": int((~kept).sum()),
    }
    if scores.size:
        summary["iqm"] = iqm(scores)
        summary["ci"] = list(bootstrap_interval(scores, tasks, groups=policies, rng=rng, resamples=resamples))
        summary["mean"] = mean(scores)
        summary["median"] = median(scores)
        summary["optimality_gap"] = optimality_gap(scores)
    return summary


def _harmed(rows: Sequence[Row], gained: Scores) -> float:
    """Return the share of tasks on which the mean over seeds and policies is more than a point below source-only."""
    by_task: dict[object, list[float]] = {}
    for row, one in zip(rows, gained, strict=True):
        by_task.setdefault(task_of(row), []).append(float(one))
    return float(np.mean([np.mean(values) < -HARM for values in by_task.values()]))


def _match(by_arm: Mapping[str, Mapping[int, Sequence[Row]]], goal: str, resamples: int, seed: int) -> Summary:
    """Compare every arm of several runs to the single run of the goal, on each task's mean over its seeds."""
    if goal not in by_arm:
        return {}
    target = _mean_by_task(by_arm[goal][min(by_arm[goal])])
    matched: Summary = {}
    for arm, by_runs in by_arm.items():
        if arm == goal or len(by_runs) < 2:
            continue
        reached: dict[object, dict[int, float]] = {}
        for runs, rows in by_runs.items():
            for task, accuracy in _mean_by_task(rows).items():
                reached.setdefault(task, {})[runs] = accuracy
        rng = np.random.default_rng([seed, zlib.crc32(arm.encode())])
        matched[arm] = runs_to_match(reached, target, rng=rng, resamples=resamples)
    return matched


def _profiles(by_arm: Mapping[str, Mapping[int, Sequence[Row]]]) -> Summary:
    """Give the share of cells whose score is above each threshold, of every arm at its largest number of runs."""
    shares, bands = {}, {}
    for arm, by_runs in by_arm.items():
        rows = by_runs[max(by_runs)]
        scores = _scores(rows)
        kept = ~np.isnan(scores)
        if kept.any():
            tasks = [task_of(row) for row, keep in zip(rows, kept, strict=True) if keep]
            shares[arm] = performance_profile(scores[kept], THRESHOLDS).tolist()
            bands[arm] = [end.tolist() for end in profile_band(scores[kept], THRESHOLDS, tasks)]
    return {"thresholds": list(THRESHOLDS), "arms": shares, "bands": bands}


def _differences(by_arm: Mapping[str, Mapping[int, Sequence[Row]]], goal: str, resamples: int, seed: int) -> Summary:
    """Compare the goal's single run to each arm at its largest number of runs, cell by cell."""
    if goal not in by_arm:
        return {}
    ours = by_arm[goal][min(by_arm[goal])]
    found: Summary = {}
    for arm, by_runs in by_arm.items():
        rng = np.random.default_rng([seed, zlib.crc32(f"difference {arm}".encode())])
        one = paired_difference(ours, by_runs[max(by_runs)], rng, resamples) if arm != goal else {}
        if one:
            found[arm] = one | {"runs": max(by_runs)}
    return found


def _policies(by_runs: Mapping[int, Sequence[Row]], resamples: int, seed: int) -> Summary:
    """Summarise the goal's policies apart, where there are several."""
    by_policy: dict[str, list[Row]] = {}
    for row in by_runs[min(by_runs)] if by_runs else ():
        by_policy.setdefault(_policy(row), []).append(row)
    if len(by_policy) < 2:
        return {}
    rngs = {policy: np.random.default_rng([seed, zlib.crc32(policy.encode())]) for policy in by_policy}
    return {policy: _cell_summary(rows, resamples, rngs[policy]) for policy, rows in sorted(by_policy.items())}


def _improvement(by_arm: Mapping[str, Mapping[int, Sequence[Row]]], goal: str) -> Summary:
    """Estimate how likely a run of the goal beats each arm at its largest number of runs."""
    if goal not in by_arm:
        return {}
    ours = by_arm[goal][max(by_arm[goal])]
    result: Summary = {}
    for arm, by_runs in by_arm.items():
        theirs = by_runs[max(by_runs)]
        left, right = [task_of(row) for row in ours], [task_of(row) for row in theirs]
        if arm != goal and set(left) & set(right):
            result[arm] = probability_of_improvement(
                _column(ours, "accuracy"), _column(theirs, "accuracy"), left, right
            )
    return result


def _mean_by_task(rows: Sequence[Row]) -> dict[object, float]:
    groups: dict[object, list[float]] = {}
    for row, accuracy in zip(rows, _column(rows, "accuracy"), strict=True):
        groups.setdefault(task_of(row), []).append(float(accuracy))
    return {task: float(np.mean(values)) for task, values in groups.items()}


def _scores(rows: Sequence[Row]) -> Scores:
    return normalised_score(_column(rows, "accuracy"), _column(rows, "source_only"), _column(rows, "supervised"))


def _column(rows: Sequence[Row], field: str) -> Scores:
    values = [row[field] for row in rows]
    if not {type(value) for value in values} <= {int, float}:
        values = [_number(row, field) for row in rows]
    column = np.array(values, dtype=np.float64)
    if not np.isfinite(column).all():
        _number(rows[int(np.argmin(np.isfinite(column)))], field)
    return column


def _runs(row: Row) -> int:
    value = row["runs"]
    return value if type(value) is int else int(_number(row, "runs"))


def _policy(row: Row) -> str:
    return str(row.get("policy") or "")


def _cell(row: Row) -> tuple[str, str, str, str]:
    return (*task_of(row), str(row["seed"]))


def _number(row: Row, field: str) -> float:
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise InputError(f"row field {field!r} is {value!r}, expected a finite number: run that cell again")
    return float(value)


def _check(rows: Sequence[Row]) -> None:
    if not rows:
        raise InputError("0 benchmark rows, expected at least one: run the benchmark with one arm, task and seed")
    for number, row in enumerate(rows, start=1):
        missing = [field for field in FIELDS if field not in row]
        if missing:
            raise InputError(f"row {number} has no field {missing[0]!r}, expected {', '.join(FIELDS)}: run it again")
