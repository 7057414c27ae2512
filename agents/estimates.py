"""Compare arms fairly: interquartile means, stratified bootstrap intervals and runs to match.

Needs numpy only. `lepton_rl.agents.statistics` makes the summary of a benchmark with these functions.

Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021
(interquartile mean, stratified bootstrap, optimality gap, probability of improvement, performance profiles).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lepton_rl.errors import InputError

Scores: TypeAlias = npt.NDArray[np.float64]
Ranks: TypeAlias = npt.NDArray[Any]  # whole numbers
Draw: TypeAlias = Callable[[np.random.Generator, int], Ranks]

_CHUNK = 250_000  # values drawn at once: they stay in the cache, and memory stays small


def normalised_score(
    accuracy: npt.ArrayLike, source_only: npt.ArrayLike, supervised: npt.ArrayLike, *, least: float = 0.02
) -> Scores:
    """Place accuracies between source-only (0) and target-supervised (1).

    Args:
        accuracy: accuracies of an arm, any shape, 0..1.
        source_only: accuracies of the model before adaptation, same shape.
        supervised: accuracies of a model trained on all target labels, same shape.
        least: where `supervised - source_only` is below this, nothing can be won and a ratio is noise.

    Returns:
        The scores, NaN in the cells that are left out. Below 0 is worse than source-only; 1 can be passed.
    """
    low = np.asarray(source_only, dtype=np.float64)
    room = np.asarray(supervised, dtype=np.float64) - low
    counts = room >= least - 1e-12  # 0.52 - 0.5 is a hair below 0.02 in floating point
    return np.where(counts, (np.asarray(accuracy) - low) / np.where(counts, room, 1.0), np.nan)


def iqm(scores: npt.ArrayLike) -> float:
    """Average the middle half: a quarter of the values is dropped at each end.

    Raises:
        InputError: when there is no value or one is not finite.
    """
    values = np.sort(_finite(scores))
    return float(_trimmed_means(values, np.arange(values.size)[None], 0.25)[0])


def mean(scores: npt.ArrayLike) -> float:
    """Average all values."""
    return float(_finite(scores).mean())


def median(scores: npt.ArrayLike) -> float:
    """Take the middle value."""
    return float(np.median(_finite(scores)))


def optimality_gap(scores: npt.ArrayLike, *, target: float = 1.0) -> float:
    """Average what is missing to the target (lower is better); values above it make up for nothing."""
    return float(np.maximum(target - _finite(scores), 0.0).mean())


def performance_profile(scores: npt.ArrayLike, thresholds: npt.ArrayLike) -> Scores:
    """Give the share of scores above each threshold [t] -> [t]."""
    ordered = np.sort(_finite(scores))
    below = np.searchsorted(ordered, np.asarray(thresholds, dtype=np.float64), side="right")
    return 1.0 - below / ordered.size


def profile_band(scores: npt.ArrayLike, thresholds: npt.ArrayLike, strata: Sequence[object]) -> tuple[Scores, Scores]:
    """Give 95 % intervals of a performance profile, each threshold by itself [t], [t].

    A resampled share is a sum of binomials, one per stratum; its variance is theirs, and its distribution close to
    normal. With a single score per stratum the strata themselves are resampled, as in `bootstrap_interval`.
    """
    values, edges = _finite(scores), np.asarray(thresholds, dtype=np.float64)
    number = _numbered(values, strata)
    if np.bincount(number).max() == 1:
        number = np.zeros_like(number)
    above = np.array([np.bincount(number, weights=values > edge) for edge in edges])
    size = np.bincount(number)
    share = above.sum(axis=1) / values.size
    deviation = np.sqrt((above * (1 - above / size)).sum(axis=1)) / values.size
    return np.clip(share - 1.96 * deviation, 0, 1), np.clip(share + 1.96 * deviation, 0, 1)


def probability_of_improvement(
    left: npt.ArrayLike, right: npt.ArrayLike, left_tasks: Sequence[object], right_tasks: Sequence[object]
) -> float:
    """Estimate how likely a run of `left` beats a run of `right` on the same task; ties count half.

    Args:
        left: scores [n].
        right: scores [m].
        left_tasks: the task of every score in `left`, length n.
        right_tasks: the task of every score in `right`, length m.

    Returns:
        The Mann-Whitney share of wins per task, averaged over the tasks that both have.

    Raises:
        InputError: when no task is in both.
    """
    ours, theirs = _by_task(_finite(left), left_tasks), _by_task(_finite(right), right_tasks)
    shared = sorted(set(ours) & set(theirs))
    if not shared:
        raise InputError(f"{len(ours)} and {len(theirs)} tasks have none in common: compare arms of one benchmark")
    return float(np.mean([_win_share(ours[task], theirs[task]) for task in shared]))


def bootstrap_interval(
    scores: npt.ArrayLike,
    strata: Sequence[object],
    *,
    rng: np.random.Generator,
    groups: Sequence[object] | None = None,
    trim: float = 0.25,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Compute a percentile interval of a trimmed mean by resampling the seeds within every task.

    With several policies (`groups`) these are drawn with replacement first, the same ones for all tasks, then the
    seeds within every task and drawn policy: a policy that is bad is bad on every task, and to draw it anew for
    each would hide that. With a single seed per task there is nothing to resample within tasks and the interval
    would have no width; the tasks themselves are resampled then. It is widened, where needed, to hold the estimate.

    Args:
        scores: one score per cell [n].
        strata: the task of every score, length n.
        rng: where the draws come from.
        groups: the policy of every score, length n; None or a single one draws no policies.
        trim: share dropped at each end, 0 (mean) .. 0.49; 0.25 is the interquartile mean.
        resamples: how many bootstrap samples, 200..10000; the time grows with `resamples * n`.
        level: coverage, 0..1.

    Raises:
        InputError: when there is no score, one is not finite, or the lengths differ.
    """
    found = _finite(scores)
    if groups is not None and len(set(groups)) > 1:
        values, draw = _draw_groups(found, strata, groups)
    else:
        values, draw = _draw_strata(found, strata)
    per_chunk = max(1, _CHUNK // values.size)
    estimates = []
    for first in range(0, resamples, per_chunk):
        ranks = draw(rng, min(per_chunk, resamples - first))
        estimates.append(_trimmed_means(values, ranks, trim))
    low, high = np.quantile(np.concatenate(estimates), [(1 - level) / 2, (1 + level) / 2])
    estimate = float(_trimmed_means(values, np.arange(values.size)[None], trim)[0])
    return min(float(low), estimate), max(float(high), estimate)


def runs_to_match(
    reached: Mapping[object, Mapping[int, float]],
    goal: Mapping[object, float],
    *,
    rng: np.random.Generator | None = None,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Find how many runs of a tuner the median task needs to reach the goal.

    Args:
        reached: per task, the accuracy after each number of runs.
        goal: per task, the accuracy to reach: that of the policy's single run.
        rng: where the draws of the interval come from; None = no interval.
        resamples: how many bootstrap samples of the tasks.

    Returns:
        `median`: the smallest number of runs with which at least half of the tasks reach the goal, None when
        they never do; `never`: the share of tasks that never do; `largest`: the most runs tried; `tasks`; with
        `rng` also `ci`, the 95 % percentile interval of the median, None at an end that is beyond `largest`.
    """
    shared = sorted(set(reached) & set(goal), key=str)
    needed = [min((k for k, a in reached[t].items() if a >= goal[t] - 1e-9), default=np.inf) for t in shared]
    if not needed:
        return {"median": None, "never": None, "largest": None, "tasks": 0}
    # The lower median is a number of runs that was tried, and never flatters the policy.
    middle = sorted(needed)[(len(needed) - 1) // 2]
    found: dict[str, Any] = {
        "median": _runs(middle),
        "never": float(np.mean(np.isinf(needed))),
        "largest": max(k for t in shared for k in reached[t]),
        "tasks": len(shared),
    }
    if rng is not None:
        found["ci"] = _median_interval(np.sort(np.array(needed, dtype=np.float64)), rng, resamples)
    return found


def _median_interval(needed: Scores, rng: np.random.Generator, resamples: int) -> list[int | None]:
    """Resample the tasks; the lower median of a sample is the order statistic of its drawn ranks."""
    size, per_chunk = needed.size, max(1, _CHUNK // needed.size)
    middle = (size - 1) // 2
    medians = []
    for first in range(0, resamples, per_chunk):
        ranks = rng.integers(0, size, (min(per_chunk, resamples - first), size))
        medians.append(np.partition(ranks, middle, axis=1)[:, middle])
    low, high = np.quantile(np.concatenate(medians), [0.025, 0.975], method="inverted_cdf")
    return [_runs(needed[int(low)]), _runs(needed[int(high)])]


def _runs(needed: float) -> int | None:
    return None if np.isinf(needed) else int(needed)


def _trimmed_means(values: Scores, ranks: Ranks, trim: float) -> Scores:
    """Average the middle of every sample.

    Counting how often each value was drawn costs a fifth of sorting every sample.

    Args:
        values: all scores in rising order [n].
        ranks: which of them are in each sample [b, n].
        trim: share dropped at each end, rounded down to whole values.

    Returns:
        The trimmed means [b].
    """
    count, size = ranks.shape
    cell = ranks + np.arange(count)[:, None] * size
    drawn = np.bincount(cell.ravel(), minlength=count * size).reshape(count, size)
    cut = int(trim * size)
    # Kept values at or below each rank; summed by parts, they weigh the steps from value to value.
    kept = np.cumsum(drawn, axis=-1)
    np.clip(kept, cut, size - cut, out=kept)
    total = (size - cut) * (values[-1] - values[0]) - kept[:, :-1] @ np.diff(values)
    return np.asarray(values[0] + total / (size - 2 * cut))


def _finite(scores: npt.ArrayLike) -> Scores:
    values = np.asarray(scores, dtype=np.float64).ravel()
    if values.size == 0:
        raise InputError("no scores given, expected at least one: run the benchmark with one task or more")
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)][0]
        raise InputError(f"a score is {bad}, expected finite numbers: leave out the cells without a score")
    return values


def _draw_strata(values: Scores, strata: Sequence[object]) -> tuple[Scores, Draw]:
    """Sort values, and return what draws ranks within strata [count, n]."""
    number = _numbered(values, strata)
    # By value within a stratum too: the order of the rows must not decide which draws they get.
    by_value = np.lexsort((number, values))
    rank = np.argsort(number[by_value], kind="stable")
    sizes = np.bincount(number)
    if sizes.max() == 1:
        sizes = np.array([values.size])
        rank = np.arange(values.size)
    start, size = np.repeat(np.cumsum(sizes) - sizes, sizes), np.repeat(sizes, sizes)

    def draw(rng: np.random.Generator, count: int) -> Ranks:
        found: Ranks = rank[start + _offsets(rng, count, size)]
        return found

    return values[by_value], draw


def _draw_groups(values: Scores, strata: Sequence[object], groups: Sequence[object]) -> tuple[Scores, Draw]:
    """Sort values, and return what draws groups, then ranks within each stratum's part of the drawn group."""
    stratum, group = _numbered(values, strata), _numbered(values, groups)
    many = int(group.max()) + 1
    code = stratum * many + group
    by_value = np.lexsort((code, values))
    rank = np.argsort(code[by_value], kind="stable")
    sizes = np.bincount(code, minlength=(int(stratum.max()) + 1) * many)
    starts = np.cumsum(sizes) - sizes
    own = np.repeat(np.arange(sizes.size), sizes)

    def draw(rng: np.random.Generator, count: int) -> Ranks:
        drawn = rng.integers(0, many, (count, many))
        place = own - own % many + drawn[:, own % many]
        place = np.where(sizes[place] > 0, place, own)  # a policy that has no score of this task
        found: Ranks = rank[starts[place] + _offsets(rng, count, sizes[place])]
        return found

    return values[by_value], draw


def _offsets(rng: np.random.Generator, count: int, size: Ranks) -> Ranks:
    """Draw whole numbers below the sizes, which are [n] or [count, n]."""
    draw = rng.random((count, size.shape[-1]), dtype=np.float32)
    # float32 may round u * size up to size: hold the draw inside its stratum.
    offsets: Ranks = np.minimum((draw * size.astype(np.float32)).astype(np.int32), size - 1)
    return offsets


def _numbered(values: Scores, names: Sequence[object]) -> Ranks:
    if len(names) != values.size:
        raise InputError(f"{len(names)} strata for {values.size} scores: expected one stratum per score")
    index = {name: i for i, name in enumerate(sorted(set(names), key=str))}
    return np.array([index[name] for name in names])


def _by_task(values: Scores, tasks: Sequence[object]) -> dict[str, Scores]:
    if len(tasks) != values.size:
        raise InputError(f"{len(tasks)} tasks for {values.size} scores: expected one task per score")
    groups: dict[str, list[float]] = {}
    for task, value in zip(tasks, values, strict=True):
        groups.setdefault(str(task), []).append(float(value))
    return {task: np.array(group) for task, group in groups.items()}


def _win_share(left: Scores, right: Scores) -> float:
    ordered = np.sort(right)
    wins = np.searchsorted(ordered, left, side="left")
    not_lost = np.searchsorted(ordered, left, side="right")
    return float((wins + not_lost).mean() / (2 * right.size))
