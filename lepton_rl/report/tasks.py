"""Task by task: the worst first, and where the policy lost."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from lepton_rl.report.arms import OPPONENT, POLICY
from lepton_rl.report.page import Cell, escape, figures, note, plot, signed, table
from lepton_rl.report.records import Record, number, text

SHOWN_TASKS = 100
Task: TypeAlias = tuple[str, str, str]  # regime, split, name


class Match(NamedTuple):
    """What the policy and the tuned default reached on a task, means over seeds and policies."""

    difference: float
    task: Task
    ours: float
    theirs: float


def task_table(rows: Sequence[Record], where: str) -> str:
    """List every task with the arm under test and the best arm of all, least share of the room won first."""
    arms = {str(row.get("arm")) for row in rows}
    ours = POLICY if POLICY in arms else OPPONENT if OPPONENT in arms else min(arms)
    largest: dict[str, float] = {}
    for i, row in enumerate(rows, start=1):
        arm = text(row, "arm", f"{where}, row {i}")
        largest[arm] = max(largest.get(arm, 0), number(row, "runs", f"{where}, row {i}"))
    tasks: dict[Task, dict[str, list[float]]] = {}
    for i, row in enumerate(rows, start=1):
        place = f"{where}, row {i}"
        arm, runs = text(row, "arm", place), number(row, "runs", place)
        if runs != (1 if arm == POLICY else largest[arm]):
            continue
        found = tasks.setdefault(task_of(row, place), {})
        found.setdefault(f"arm {arm}", []).append(number(row, "accuracy", place))
        for key in ("source_only", "supervised"):
            found.setdefault(key, []).append(number(row, key, place))
    lines = sorted(_task_line(task, found, ours) for task, found in tasks.items() if f"arm {ours}" in found)
    header = ("task", "regime", "split", "source-only", "supervised", ours, "best arm", "its accuracy", "difference")
    said = f"Mean accuracy over seeds; tuners at their largest number of runs. The {SHOWN_TASKS} worst at most."
    return note(said) + table(header, [line for _, line in lines[:SHOWN_TASKS]], words=3)


def matches(rows: Sequence[Record], where: str) -> list[Match]:
    """Return the policy's and the tuned default's mean accuracy on every task that both have, worst first."""
    means: dict[str, dict[Task, list[float]]] = {POLICY: {}, OPPONENT: {}}
    for i, row in enumerate(rows, start=1):
        place = f"{where}, row {i}"
        arm = text(row, "arm", place)
        if arm in means and number(row, "runs", place) <= 1:
            means[arm].setdefault(task_of(row, place), []).append(number(row, "accuracy", place))
    shared = sorted(set(means[POLICY]) & set(means[OPPONENT]))
    pairs = [(task, mean(means[POLICY][task]), mean(means[OPPONENT][task])) for task in shared]
    return sorted(Match(ours - theirs, task, ours, theirs) for task, ours, theirs in pairs)


def losses(rows: Sequence[Record], where: str) -> str:
    """List the tasks where the policy's mean accuracy is below that of the tuned default, worst first."""
    found = matches(rows, where)
    if not found:
        return note(f"The arms {POLICY} and {OPPONENT} were not both run.")
    lost = [match for match in found if match.ours < match.theirs]
    won = sum(match.ours > match.theirs for match in found)
    said = note(
        f"Against {OPPONENT}, the arm to beat, the policy won on {won} of {len(found)} tasks, "
        f"lost on {len(lost)} and tied on {len(found) - won - len(lost)} (mean accuracy over seeds)."
    )
    body = said + _bars(found)
    if not lost:
        return body
    cells = [
        (
            match.task[2],
            match.task[0],
            match.task[1],
            figures(match.ours),
            figures(match.theirs),
            signed(match.difference),
        )
        for match in lost[:SHOWN_TASKS]
    ]
    more = note(f"The worst {SHOWN_TASKS} of {len(lost)} are shown.") if len(lost) > SHOWN_TASKS else ""
    header = ("task", "regime", "split", POLICY, OPPONENT, "difference")
    return body + table(header, cells, words=3) + more


def _bars(found: Sequence[Match]) -> str:
    import plotly.graph_objects as go

    bars = go.Bar(
        x=list(range(1, len(found) + 1)),
        y=[100 * match.difference for match in found],
        customdata=[escape(", ".join(match.task)) for match in found],
        marker={"color": ["#d6336c" if match.difference < 0 else "#1f9d6b" for match in found], "line": {"width": 0}},
        hovertemplate="%{customdata}: %{y:+.1f}<extra></extra>",
    )
    layout: dict[str, object] = {
        "xaxis": {"title": "tasks, the worst first"},
        "yaxis": {"title": f"{POLICY} minus {OPPONENT}, points"},
        "showlegend": False,
        "bargap": 0.15 if len(found) < 60 else 0,
    }
    return f'<div class="plot">{plot([bars], name="tasks", height=320, layout=layout)}</div>'


def task_of(row: Record, where: str) -> Task:
    """Return what tells a task from all others."""
    return text(row, "regime", where), text(row, "split", where), text(row, "task", where)


def mean(values: Sequence[float]) -> float:
    """Average."""
    return sum(values) / len(values)


def _task_line(task: Task, found: Mapping[str, Sequence[float]], ours: str) -> tuple[float, tuple[str | Cell, ...]]:
    low, high, mine = mean(found["source_only"]), mean(found["supervised"]), mean(found[f"arm {ours}"])
    best, accuracy = max(
        ((name[4:], mean(values)) for name, values in found.items() if name.startswith("arm ")),
        key=lambda pair: (pair[1], pair[0] == ours, pair[0]),
    )
    won = (mine - low) / max(high - low, 0.02)
    numbers = (figures(low), figures(high), figures(mine), best, figures(accuracy), signed(mine - accuracy))
    return won, (task[2], task[0], task[1], *numbers)
