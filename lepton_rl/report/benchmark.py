"""The report of `lepton benchmark`: the arms against budget, with the losses printed too."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lepton_rl.errors import InputError
from lepton_rl.report.page import (
    PALETTE,
    Cell,
    Section,
    escape,
    figures,
    manifest_table,
    note,
    page,
    plot,
    signed,
    table,
    write_whole,
)
from lepton_rl.report.records import Record, mapping, number, optional_number, read_lines, read_object, text

POLICY, OPPONENT = "policy", "tuned-default"
SHOWN_TASKS = 100
RANDOM_START_UP = 10
"""TPE draws its first ten trials at random: with no more runs than that it is random search."""


def benchmark_report(folder: Path) -> Path:
    """Write `report.html` from `rows.jsonl`, `summary.json` and `manifest.json`, and return its path.

    Raises:
        InputError: when a file is missing, cut off, or lacks a field.
    """
    rows_file, summary_file = folder / "rows.jsonl", folder / "summary.json"
    rows = read_lines(rows_file)
    summary = read_object(summary_file)
    manifest = read_object(folder / "manifest.json")
    arms = sorted(mapping(summary, "arms", str(summary_file)), key=_order)
    colours = {arm: PALETTE[i % len(PALETTE)] for i, arm in enumerate(arms)}
    sections: list[Section] = []
    for index, group in enumerate(_groups(summary, str(summary_file))):
        sections.append(_group_section(group, f"{summary_file}, group {index + 1}", index, colours))
    sections.append(Section("Where the policy lost", _losses(rows, str(rows_file))))
    sections.append(Section("Task by task, the worst first", task_table(rows, str(rows_file))))
    sections.append(Section("What it cost", _cost(summary, str(summary_file))))
    sections.append(Section("How this was made", manifest_table(dict(manifest))))
    return write_whole(folder / "report.html", page("Benchmark report", _lead(rows, str(rows_file)), sections))


def _lead(rows: Sequence[Record], where: str) -> str:
    tasks = {_task(row, f"{where}, row {i}") for i, row in enumerate(rows, start=1)}
    seeds = {str(row.get("seed")) for row in rows}
    arms = {str(row.get("arm")) for row in rows}
    counts = ((len(arms), "arm"), (len(tasks), "task"), (len(seeds), "seed"))
    said = (
        ", ".join(f"{count} {word}{'s' * (count != 1)}" for count, word in counts)
        + "; all arms start from the same weights and see the same. "
        "The score is 0 at source-only and 1 at training with all target labels."
    )
    return f'<p class="lead">{escape(said)}</p>'


def _groups(summary: Record, where: str) -> list[Record]:
    """Give one part per regime and split; an older summary is one part by itself."""
    groups = summary.get("groups")
    if not isinstance(groups, list) or not groups:
        return [{**summary, "regime": "all regimes", "split": "all splits"}]
    for index, group in enumerate(groups, start=1):
        if not isinstance(group, dict):
            raise InputError(f"{where}, group {index}: expected an object: run the benchmark again")
    return groups


def _group_section(group: Record, where: str, index: int, colours: Mapping[str, str]) -> Section:
    heading = f"{text(group, 'regime', where)}, {text(group, 'split', where)}"
    arms = _arms(group, where)
    body = _headline(arms, where) + _match(group) + _left_out(group)
    body += _budget(arms, where, f"budget-{index}", colours)
    return Section(heading, body + _profiles(group, f"profile-{index}", colours))


def _arms(group: Record, where: str) -> dict[str, dict[int, Record]]:
    """Give arm -> number of runs -> its statistics."""
    arms = mapping(group, "arms", where)
    result: dict[str, dict[int, Record]] = {}
    for arm in sorted(arms, key=_order):
        entry = mapping(arms, arm, where)
        by_runs = entry.get("by_runs")
        if not isinstance(by_runs, dict) or not by_runs:
            by_runs = {"1": entry}
        if not all(runs.isdecimal() for runs in by_runs):
            raise InputError(f"{where}: by_runs of {arm!r} has keys {list(by_runs)}, expected numbers of runs")
        result[arm] = {int(runs): mapping(by_runs, runs, where) for runs in sorted(by_runs, key=int)}
    return result


def _headline(arms: Mapping[str, Mapping[int, Record]], where: str) -> str:
    rows: list[Sequence[str | Cell]] = []
    noted = False
    for arm, by_runs in arms.items():
        for runs, entry in by_runs.items():
            random = arm.startswith("tpe") and runs <= RANDOM_START_UP
            noted = noted or random
            low, high = _interval(entry, where)
            harm = optional_number(entry, "negative_transfer", where)
            rows.append(
                (
                    Cell(arm + (" *" if random else ""), "here" if arm == POLICY else ""),
                    str(runs),
                    figures(optional_number(entry, "iqm", where)),
                    "-" if low is None else f"{figures(low)} .. {figures(high)}",
                    figures(optional_number(entry, "mean_accuracy", where)),
                    "-" if harm is None else f"{harm:.0%}",
                )
            )
    header = ("arm", "runs", "IQM", "95 % interval", "accuracy", "made worse")
    said = note("* ten runs or fewer: TPE is still in its random start-up.") if noted else ""
    return table(header, rows) + said


def _match(group: Record) -> str:
    found = group.get("runs_to_match")
    if not isinstance(found, dict):
        return ""
    parts = []
    for arm in sorted(found):
        entry = found[arm] if isinstance(found[arm], dict) else {"median": found[arm]}
        median, largest = entry.get("median"), entry.get("largest")
        if median is not None:
            said = f"On the median task {arm} matches the policy's single run with {median} run(s)"
            parts.append(said + _range(entry.get("ci"), largest) + ".")
        elif entry.get("tasks") != 0:
            within = f" within {largest} runs" if largest else ""
            parts.append(f"On the median task {arm} does not match the policy's single run{within}.")
    return "".join(f"<p>{escape(part)}</p>" for part in parts)


def _range(interval: object, largest: object) -> str:
    if not isinstance(interval, list) or len(interval) != 2:
        return ""
    low, high = (f"more than {largest}" if end is None else str(end) for end in interval)
    return f" (95 % interval {low} to {high})"


def _left_out(group: Record) -> str:
    left_out = group.get("left_out")
    if not left_out:
        return ""
    return note(f"{left_out} cells are left out of the scores: source-only is within 2 points of supervised there.")


def _budget(arms: Mapping[str, Mapping[int, Record]], where: str, name: str, colours: Mapping[str, str]) -> str:
    import plotly.graph_objects as go

    every = sorted({runs for by_runs in arms.values() for runs in by_runs})
    ends = [every[0], max(every[-1], every[0] * 2)]
    traces: list[object] = []
    for arm, by_runs in arms.items():
        points = [(r, optional_number(e, "iqm", where), *_interval(e, where)) for r, e in by_runs.items()]
        points = [point for point in points if None not in point]
        if not points:
            continue
        single = len(points) == 1
        xs = ends if single else [point[0] for point in points]
        middle, low, high = ([p[k] for p in points] * (2 if single else 1) for k in (1, 2, 3))
        colour, label = colours.get(arm, PALETTE[-1]), escape(arm)
        band = {
            "x": [*xs, *xs[::-1]],
            "y": [*high, *low[::-1]],
            "fill": "toself",
            "fillcolor": _faint(colour),
        }
        hidden = {"line": {"width": 0}, "mode": "lines", "hoverinfo": "skip", "showlegend": False}
        line = {
            "color": colour,
            "width": 3 if arm == POLICY else 2,
            "dash": "dot" if single and arm != POLICY else "solid",
        }
        hover = f"{label}: %{{y:.3f}}<extra></extra>"
        mode = "lines" if single else "lines+markers"
        traces.append(go.Scatter(**band, **hidden, legendgroup=label))
        traces.append(
            go.Scatter(x=xs, y=middle, name=label, mode=mode, line=line, hovertemplate=hover, legendgroup=label)
        )
    if not traces:
        return note("No cell has room between source-only and supervised: there is nothing to draw.")
    layout: dict[str, object] = {
        "xaxis": {"title": "runs on the new domain", "type": "log", "tickvals": every},
        "yaxis": {"title": "normalised score (IQM)"},
    }
    return f'<div class="plot">{plot(traces, name=name, height=460, layout=layout)}</div>'


def _profiles(group: Record, name: str, colours: Mapping[str, str]) -> str:
    import plotly.graph_objects as go

    found = group.get("profiles")
    if not isinstance(found, dict) or not found.get("arms"):
        return ""
    traces = [
        go.Scatter(
            x=found["thresholds"],
            y=found["arms"][arm],
            name=escape(arm),
            mode="lines",
            line={"color": colours.get(arm, PALETTE[-1]), "width": 3 if arm == POLICY else 2, "shape": "hv"},
            hovertemplate=f"{escape(arm)}: %{{y:.0%}}<extra></extra>",
        )
        for arm in sorted(found["arms"], key=_order)
    ]
    layout: dict[str, object] = {
        "xaxis": {"title": "normalised score"},
        "yaxis": {"title": "share of cells above it", "tickformat": ".0%"},
    }
    said = note("Performance profiles: each arm at its largest number of runs; higher is better everywhere.")
    return said + f'<div class="plot">{plot(traces, name=name, height=380, layout=layout)}</div>'


def task_table(rows: Sequence[Record], where: str) -> str:
    """List every task with the arm under test and the best arm of all, least share of the room won first."""
    arms = {str(row.get("arm")) for row in rows}
    ours = POLICY if POLICY in arms else OPPONENT if OPPONENT in arms else min(arms)
    largest: dict[str, float] = {}
    for i, row in enumerate(rows, start=1):
        arm = text(row, "arm", f"{where}, row {i}")
        largest[arm] = max(largest.get(arm, 0), number(row, "runs", f"{where}, row {i}"))
    tasks: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for i, row in enumerate(rows, start=1):
        place = f"{where}, row {i}"
        arm, runs = text(row, "arm", place), number(row, "runs", place)
        if runs != (1 if arm == POLICY else largest[arm]):
            continue
        found = tasks.setdefault(_task(row, place), {})
        found.setdefault(f"arm {arm}", []).append(number(row, "accuracy", place))
        for key in ("source_only", "supervised"):
            found.setdefault(key, []).append(number(row, key, place))
    lines = sorted(_task_line(task, found, ours) for task, found in tasks.items() if f"arm {ours}" in found)
    header = ("task", "regime", "split", "source-only", "supervised", ours, "best arm", "its accuracy", "difference")
    said = f"Mean accuracy over seeds; tuners at their largest number of runs. The {SHOWN_TASKS} worst at most."
    return note(said) + table(header, [line for _, line in lines[:SHOWN_TASKS]], words=3)


def _task_line(
    task: tuple[str, str, str], found: Mapping[str, Sequence[float]], ours: str
) -> tuple[float, tuple[str | Cell, ...]]:
    low, high, mine = _mean(found["source_only"]), _mean(found["supervised"]), _mean(found[f"arm {ours}"])
    best, accuracy = max(
        ((name[4:], _mean(values)) for name, values in found.items() if name.startswith("arm ")),
        key=lambda pair: (pair[1], pair[0] == ours, pair[0]),
    )
    won = (mine - low) / max(high - low, 0.02)
    numbers = (figures(low), figures(high), figures(mine), best, figures(accuracy), signed(mine - accuracy))
    return won, (task[2], task[0], task[1], *numbers)


def _losses(rows: Sequence[Record], where: str) -> str:
    """List the tasks where the policy's mean accuracy is below that of the tuned default, worst first."""
    means: dict[str, dict[tuple[str, str, str], list[float]]] = {POLICY: {}, OPPONENT: {}}
    for i, row in enumerate(rows, start=1):
        place = f"{where}, row {i}"
        arm = text(row, "arm", place)
        if arm in means and number(row, "runs", place) <= 1:
            means[arm].setdefault(_task(row, place), []).append(number(row, "accuracy", place))
    shared = sorted(set(means[POLICY]) & set(means[OPPONENT]))
    if not shared:
        return note(f"The arms {POLICY} and {OPPONENT} were not both run.")
    pairs = [(task, _mean(means[POLICY][task]), _mean(means[OPPONENT][task])) for task in shared]
    lost = sorted((ours - theirs, task, ours, theirs) for task, ours, theirs in pairs if ours < theirs)
    won = sum(ours > theirs for _, ours, theirs in pairs)
    said = note(
        f"Against {OPPONENT}, the arm to beat, the policy won on {won} of {len(pairs)} tasks, "
        f"lost on {len(lost)} and tied on {len(pairs) - won - len(lost)} (mean accuracy over seeds)."
    )
    if not lost:
        return said
    cells = [
        (task[2], task[0], task[1], figures(ours), figures(theirs), signed(difference))
        for difference, task, ours, theirs in lost[:SHOWN_TASKS]
    ]
    more = note(f"The worst {SHOWN_TASKS} of {len(lost)} are shown.") if len(lost) > SHOWN_TASKS else ""
    header = ("task", "regime", "split", POLICY, OPPONENT, "difference")
    return said + table(header, cells, words=3) + more


def _cost(summary: Record, where: str) -> str:
    rows = []
    for arm, by_runs in _arms(summary, where).items():
        for runs, entry in by_runs.items():
            steps, seconds = (optional_number(entry, key, where) for key in ("steps", "seconds"))
            rows.append((arm, str(runs), figures(steps, 0), figures(seconds, 1)))
    said = note(
        "Means per task and seed on the new domain; pruned and discarded runs are included. "
        "`python scripts/trace.py FOLDER --arm ARM --runs K` lists the rows behind every number of this page."
    )
    return said + table(("arm", "runs", "gradient steps", "seconds"), rows)


def _interval(entry: Record, where: str) -> tuple[float | None, float | None]:
    interval = entry.get("ci")
    if interval is None or interval == [None, None]:
        return None, None
    if not isinstance(interval, list) or len(interval) != 2:
        raise InputError(f"{where}: ci is {interval!r}, expected [low, high]: run the benchmark again")
    ends = {"low": interval[0], "high": interval[1]}
    return number(ends, "low", where), number(ends, "high", where)


def _task(row: Record, where: str) -> tuple[str, str, str]:
    return text(row, "regime", where), text(row, "split", where), text(row, "task", where)


def _order(arm: str) -> tuple[int, str]:
    """Put the policy first and its strongest opponent second."""
    return {POLICY: 0, OPPONENT: 1}.get(arm, 2), arm


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"
