"""The arms of a summary in a fixed order, and which of them plots show."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from lepton_rl.errors import InputError
from lepton_rl.report.page import PALETTE
from lepton_rl.report.records import Record, mapping, number, optional_number

POLICY, OPPONENT, ORIGIN = "policy", "tuned-default", "source-only"
OPPONENTS = (OPPONENT, "tuned-default-per-regime", "tuned-schedule", "policy-replayed", "policy-shuffled")
"""What the policy has to beat with its one run: no feedback, or feedback without meaning."""

ByRuns: TypeAlias = Mapping[int, Record]


class Point(NamedTuple):
    """A score against budget."""

    steps: float
    score: float
    low: float
    high: float


def order(arm: str) -> tuple[int, str]:
    """Put the policy first, what it has to beat second, then the others by name."""
    known = (POLICY, *OPPONENTS, ORIGIN)
    return known.index(arm) if arm in known else len(known), arm


def arms_of(group: Record, where: str) -> dict[str, dict[int, Record]]:
    """Give arm -> number of runs -> its statistics.

    Raises:
        InputError: If a number of runs is none.
    """
    arms = mapping(group, "arms", where)
    result: dict[str, dict[int, Record]] = {}
    for arm in sorted(arms, key=order):
        entry = mapping(arms, arm, where)
        by_runs = entry.get("by_runs")
        if not isinstance(by_runs, dict) or not by_runs:
            by_runs = {"1": entry}
        if not all(runs.isdecimal() for runs in by_runs):
            raise InputError(f"{where}: by_runs of {arm!r} has keys {list(by_runs)}, expected numbers of runs")
        result[arm] = {int(runs): mapping(by_runs, runs, where) for runs in sorted(by_runs, key=int)}
    return result


def shown(arms: Mapping[str, ByRuns], where: str) -> list[str]:
    """Return the arms that plots show, as many as there are colours: what the policy has to beat, then the best."""
    known = [arm for arm in (POLICY, OPPONENT, ORIGIN, *OPPONENTS[1:4]) if arm in arms]
    others = [arm for arm in arms if arm not in known]
    best = sorted(others, key=lambda arm: (-_last_score(arms[arm], where), arm))
    return [*known, *best][: len(PALETTE)]


def colours(arms: Mapping[str, ByRuns], where: str) -> dict[str, str]:
    """Give each arm that plots show a colour of its own, the same in all plots."""
    return dict(zip(shown(arms, where), PALETTE, strict=False))


def points_of(by_runs: ByRuns, where: str) -> list[Point]:
    """Return the scores of an arm against its mean gradient steps, those that exist."""
    found = []
    for runs, entry in by_runs.items():
        score, steps = optional_number(entry, "iqm", where), optional_number(entry, "steps", where)
        low, high = interval(entry, where)
        if score is not None and low is not None and high is not None:
            found.append(Point(float(runs) if steps is None else steps, score, low, high))
    return found


def staircase(points: Iterable[Point], first: float, last: float) -> list[Point]:
    """Return the corners of best-so-far: each score holds until the next one is reached, the last to the end.

    Args:
        points: By rising steps.
        first: Where arms without a gradient step begin, as a logarithm has no zero.
        last: Right end of the axis.
    """
    corners: list[Point] = []
    for point in points:
        at = max(point.steps, first)
        if corners:
            corners.append(corners[-1]._replace(steps=at))
        corners.append(point._replace(steps=at))
    return [*corners, corners[-1]._replace(steps=max(last, corners[-1].steps))] if corners else []


def ends(curves: Iterable[Iterable[Point]]) -> tuple[float, float]:
    """Return the ends of a logarithmic axis of gradient steps."""
    steps = [point.steps for curve in curves for point in curve if point.steps > 0]
    return (min(steps) / 2, max(steps) * 1.5) if steps else (1.0, 2.0)


def interval(entry: Record, where: str) -> tuple[float | None, float | None]:
    """Return the ends of a 95 % interval, None where there is none.

    Raises:
        InputError: If it has another form.
    """
    found = entry.get("ci")
    if found is None or found == [None, None]:
        return None, None
    if not isinstance(found, list) or len(found) != 2:
        raise InputError(f"{where}: ci is {found!r}, expected [low, high]: run the benchmark again")
    between = {"low": found[0], "high": found[1]}
    return number(between, "low", where), number(between, "high", where)


def _last_score(by_runs: ByRuns, where: str) -> float:
    entry: Any = by_runs[max(by_runs)]
    score = optional_number(entry, "iqm", where)
    return float("-inf") if score is None else score
