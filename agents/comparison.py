"""The arm under test against every other, paired: the same tasks, seeds and, where both run one, policies."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lepton_rl.agents.estimates import Scores

Row = Mapping[str, Any]
Task = tuple[str, str, str]


def paired_difference(
    ours: Sequence[Row], theirs: Sequence[Row], rng: np.random.Generator, resamples: int = 1000
) -> dict[str, Any]:
    """Compare accuracies of two arms on the cells that both have.

    The interval says what to expect on other tasks and, with several policies, of another training: tasks and
    policies are both drawn with replacement (the pigeonhole bootstrap, Owen 2007); differences are averaged over
    the seeds of a task first.

    Args:
        ours: Rows of one arm, one number of runs.
        theirs: Rows of another.
        rng: Where the draws come from.
        resamples: How many bootstrap samples.

    Returns:
        `mean` (ours minus theirs, in accuracy), `ci` (95 %, ends None with fewer than two tasks), `verdict`
        (`above` or `below` where the interval leaves out 0, else `not apart`), `tasks`, `won`, `lost`, `tied`.
        Empty if they share no cell.
    """
    table = _table(ours, theirs)
    if table.size == 0:
        return {}
    by_task = np.nanmean(table, axis=1)
    low, high = _interval(table, rng, resamples) if len(table) > 1 else (None, None)
    return {
        "mean": float(np.nanmean(table)),
        "ci": [low, high],
        "verdict": _verdict(low, high),
        "tasks": len(table),
        "won": int((by_task > _EVEN).sum()),
        "lost": int((by_task < -_EVEN).sum()),
        "tied": int((np.abs(by_task) <= _EVEN).sum()),
    }


_EVEN = 1e-9  # rounding, not a difference


def _verdict(low: float | None, high: float | None) -> str:
    if low is not None and low > 0:
        return "above"
    return "below" if high is not None and high < 0 else "not apart"


def _table(ours: Sequence[Row], theirs: Sequence[Row]) -> Scores:
    """Return differences averaged over seeds [tasks, policies]; NaN where a policy has no cell of a task."""
    theirs_at = {(task_of(row), row["seed"], row.get("policy")): float(row["accuracy"]) for row in theirs}
    found: dict[Task, dict[str, list[float]]] = {}
    for row in ours:
        task, policy = task_of(row), row.get("policy")
        other = theirs_at.get((task, row["seed"], policy), theirs_at.get((task, row["seed"], None)))
        if other is not None:
            found.setdefault(task, {}).setdefault(str(policy), []).append(float(row["accuracy"]) - other)
    policies = sorted({policy for one in found.values() for policy in one})
    return np.array(
        [[np.mean(one[policy]) if policy in one else np.nan for policy in policies] for _, one in sorted(found.items())]
    )


def _interval(table: Scores, rng: np.random.Generator, resamples: int) -> tuple[float, float]:
    tasks, policies = table.shape
    rows = rng.multinomial(tasks, np.full(tasks, 1 / tasks), resamples)
    columns = rng.multinomial(policies, np.full(policies, 1 / policies), resamples)
    known = ~np.isnan(table)
    total = ((rows @ np.where(known, table, 0.0)) * columns).sum(axis=1)
    weight = ((rows @ known.astype(np.float64)) * columns).sum(axis=1)
    means = total[weight > 0] / weight[weight > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def task_of(row: Row) -> Task:
    """Return what tells a task from all others."""
    return str(row["regime"]), str(row["split"]), str(row["task"])
