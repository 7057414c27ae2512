"""The report of `lepton adapt`: what was done to the model, decision by decision, and whether it helped."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lepton_rl.report.actions import describe, readable
from lepton_rl.report.explained import examples_section, labels_section, maps_section, why
from lepton_rl.report.measured import measured, score_table
from lepton_rl.report.page import (
    PALETTE,
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
from lepton_rl.report.records import (
    Record,
    mapping,
    number,
    numbers,
    optional_number,
    read_lines,
    read_object,
    text,
)

SHOWN_CLASSES = 30
EXPLANATION = "explanation.json"
LINEAR_KNOBS = frozenset({"unfrozen_stages", "transfer", "augmentation"})
"""Knobs on a linear axis; all others (learning rate, loss weights) move in factors."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One row of `history.jsonl`; row 0 is the start, the others follow their action."""

    decision: int
    step: int
    observation: dict[str, float]
    action: dict[str, float]
    controls: dict[str, float]
    score: float
    expected_gain: float | None
    probe_accuracy: float | None


def adapt_report(folder: Path) -> Path:
    """Write `report.html` from `history.jsonl`, `result.json` and `manifest.json`, and return its path.

    Raises:
        InputError: when a file is missing, cut off, or lacks a field.
    """
    history_file = folder / "history.jsonl"
    rows = read_lines(history_file)
    history = [_decision(row, f"{history_file}, row {i}") for i, row in enumerate(rows, start=1)]
    result_file = folder / "result.json"
    result = read_object(result_file)
    manifest = read_object(folder / "manifest.json")
    explanation = read_object(folder / EXPLANATION) if (folder / EXPLANATION).exists() else None
    where = str(folder / EXPLANATION)
    sections = [
        Section("Before and after", _before_after(result, str(result_file))),
        *_measured(result, str(result_file)),
        Section("Scores over the run", _scores(history)),
        Section("Knobs over the run", _knobs(history)),
        Section("What the policy saw", _signals(history)),
        Section("Decision by decision", _decisions(history) + _reasons(history, explanation, where)),
        *(_looked_back(explanation, where) if explanation else []),
        Section("How this was made", manifest_table(dict(manifest))),
    ]
    lead = _banner(result, str(result_file), history)
    return write_whole(folder / "report.html", page("Adaptation report", lead, sections))


def _looked_back(explanation: Record, where: str) -> list[Section]:
    return [
        examples_section(explanation, where),
        *labels_section(explanation, where),
        maps_section(explanation, where),
    ]


def _decision(row: Record, where: str) -> Decision:
    return Decision(
        decision=int(number(row, "decision", where)),
        step=int(number(row, "step", where)),
        observation=numbers(row, "observation", where),
        action=numbers(row, "action", where) if "action" in row else {},
        controls=numbers(row, "controls", where),
        score=number(row, "score", where),
        expected_gain=optional_number(row, "expected_gain", where),
        probe_accuracy=optional_number(row, "probe_accuracy", where),
    )


def _banner(result: Record, where: str, history: Sequence[Decision]) -> str:
    verdict, reason = text(result, "verdict", where), text(result, "reason", where)
    chosen = text(result, "chosen", where)
    kind = "banner good" if verdict == "adapted" else "banner"
    cost = f"{len(history) - 1} decisions, {history[-1].step} gradient steps, one run."
    return (
        f'<p class="lead">{escape(cost)}</p>'
        f'<div class="{kind}"><strong>{escape(verdict[:1].upper() + verdict[1:])}</strong>'
        f"<p>{escape(reason)}</p><p>Weights kept: {escape(chosen)}</p></div>"
    )


def _before_after(result: Record, where: str) -> str:
    before, after = mapping(result, "before", where), mapping(result, "after", where)
    rows = []
    for metric in [*before, *(key for key in after if key not in before)]:
        old = optional_number(before, metric, f"{where}: before")
        new = optional_number(after, metric, f"{where}: after")
        change = None if old is None or new is None else new - old
        rows.append((readable(metric), figures(old), figures(new), signed(change)))
    measured = (
        table(("metric", "before", "after", "change"), rows)
        if rows
        else note("The target has no labels to measure with: the verdict rests on the scores that need none.")
    )
    return measured + _classes(result.get("classes"))


def _measured(result: Record, where: str) -> list[Section]:
    """Give the sections that a run with test images or with folds has."""
    sections = []
    if result.get("metrics") is not None:
        sections.append(Section("On the test images", measured(mapping(result, "metrics", where), where)))
    if result.get("cross_validation") is not None:
        found = mapping(result, "cross_validation", where)
        pooled = mapping(found, "pooled", where)
        said = note(
            f"{number(found, 'folds', where):.0f} further runs, each without its share of the labelled images, and "
            "judged on that share: what the method does with new images, given these labels."
        )
        sections.append(Section("Cross-validation over the labels", said + score_table(pooled, where)))
    return sections


def _classes(classes: object) -> str:
    if not isinstance(classes, list) or not classes:
        return ""
    shown = ", ".join(str(name) for name in classes[:SHOWN_CLASSES])
    more = f" and {len(classes) - SHOWN_CLASSES} more" if len(classes) > SHOWN_CLASSES else ""
    return note(f"{len(classes)} classes: {shown}{more}")


def _scores(history: Sequence[Decision]) -> str:
    import plotly.graph_objects as go

    steps = [row.step for row in history]
    lines = [("visible score", [row.score for row in history])]
    if any(row.probe_accuracy is not None for row in history):
        lines.append(("probe accuracy", [_gap(row.probe_accuracy) for row in history]))
    traces = [
        go.Scatter(x=steps, y=values, name=name, mode="lines+markers", line={"color": color, "width": 2.5})
        for (name, values), color in zip(lines, PALETTE, strict=False)
    ]
    layout: dict[str, object] = {"xaxis_title": "gradient steps", "showlegend": True}
    guarded = history[-1].expected_gain is not None
    chooser = (
        "The points expected, in the table below, and the probe choose" if guarded else "The visible score chooses"
    )
    said = note(f"What the run could see of itself, higher is better. {chooser} the final weights.")
    return said + f'<div class="plot">{plot(traces, name="scores", height=320, layout=layout)}</div>'


def _knobs(history: Sequence[Decision]) -> str:
    names = list(dict.fromkeys(name for row in history for name in row.controls))
    steps = [row.step for row in history]
    parts = []
    for index, name in enumerate(names):
        values = [row.controls.get(name, math.nan) for row in history]
        drawn = _knob(f"knob-{index}", steps, values, logarithmic=name not in LINEAR_KNOBS)
        parts.append(f"<div><h3>{escape(readable(name))}</h3>{drawn}</div>")
    return note("Weights and the learning rate are on log axes.") + f'<div class="grid">{"".join(parts)}</div>'


def _knob(name: str, steps: list[int], values: list[float], *, logarithmic: bool) -> str:
    import plotly.graph_objects as go

    layout: dict[str, object] = {"showlegend": False}
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    hover = ["off" if value == 0 and logarithmic else f"{value:.3g}" for value in values]
    if logarithmic and not positive:
        layout["yaxis"] = {"tickvals": [0], "ticktext": ["off"], "range": [-0.5, 1]}
    elif logarithmic:
        low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
        ticks = list(range(low, max(high, low + 1) + 1))
        off = low - 0.6  # a log axis has no zero: "off" gets a place of its own below the others
        has_off = len(positive) < len(values)
        layout["yaxis"] = {
            "tickvals": [off] * has_off + ticks,
            "ticktext": ["off"] * has_off + [f"{10.0**tick:g}" for tick in ticks],
            "range": [(off if has_off else low) - 0.15, ticks[-1] + 0.15],
        }
        values = [off if value == 0 else _log10(value) for value in values]
    else:
        layout["yaxis"] = {"rangemode": "tozero", "nticks": 5}
    trace = go.Scatter(
        x=steps,
        y=values,
        text=hover,
        hovertemplate="step %{x}: %{text}<extra></extra>",
        mode="lines+markers",
        # A row holds the knobs of the steps that led to it: first up or down, then along.
        line={"color": PALETTE[0], "width": 2, "shape": "vh"},
        marker={"size": 5},
    )
    return f'<div class="plot">{plot([trace], name=name, height=150, layout=layout)}</div>'


def _signals(history: Sequence[Decision]) -> str:
    import plotly.graph_objects as go

    names = list(dict.fromkeys(name for row in history for name in row.observation))
    series = {name: [row.observation.get(name, math.nan) for row in history] for name in names}
    moving = [name for name in names if len({value for value in series[name] if math.isfinite(value)}) > 1]
    if not moving:
        return note(f"None of the {len(names)} signals changed during the run.")
    colours = [_centred(series[name]) for name in moving]
    trace = go.Heatmap(
        x=[str(row.decision) for row in history],
        y=[escape(readable(name)) for name in moving],
        z=colours,
        text=[[figures(value) for value in series[name]] for name in moving],
        hovertemplate="%{y}, decision %{x}: %{text}<extra></extra>",
        colorscale=[[0, "#2a78d6"], [0.5, "rgba(128,128,128,0.12)"], [1, "#e2711d"]],
        zmin=-1,
        zmax=1,
        xgap=2,
        ygap=2,
        showscale=False,
    )
    layout: dict[str, object] = {
        "xaxis": {"title": "decision", "type": "category", "showgrid": False},
        "yaxis": {"autorange": "reversed", "showgrid": False, "tickfont": {"size": 10}, "dtick": 1},
    }
    said = note(
        f"{len(moving)} of {len(names)} signals changed. "
        "Orange is above, blue below the middle of each signal's own range."
    )
    drawn = plot([trace], name="signals", height=80 + 17 * len(moving), layout=layout)
    return said + f'<div class="plot">{drawn}</div>'


def _decisions(history: Sequence[Decision]) -> str:
    rows = [
        (
            str(row.decision),
            describe(row.action),
            str(row.step),
            figures(row.score),
            figures(row.probe_accuracy),
            "" if row.expected_gain is None else f"{row.expected_gain:+.1f}",
        )
        for row in history
    ]
    return table(("no.", "what was done", "step", "score", "probe accuracy", "points expected"), rows, words=2)


def _reasons(history: Sequence[Decision], explanation: Record | None, where: str) -> str:
    """Write a card for each decision: what it did, and the signals that weighed most, with what they were."""
    if explanation is None:
        return ""
    seen = {row.decision: before.observation for before, row in itertools.pairwise(history)}
    reasons = why(explanation, seen, where)
    if not reasons:
        return note("This policy does not look at the signals, so that none of them weighed anything.")
    cards = "".join(
        f"<div><h3>Decision {row.decision}: {escape(describe(row.action))}</h3>{reasons[row.decision]}</div>"
        for row in history[1:]
        if row.decision in reasons
    )
    return _HOW + f'<div class="pair">{cards}</div>'


_HOW = note(
    "Below: the signals that weighed most in each decision, with the value seen. A bar says by how much that value, "
    "against the mean in the policy's training, raised (right) or lowered (left) the log-probability of what was done "
    "(integrated gradients; all signals together add up to the whole difference)."
)


def _centred(values: Sequence[float]) -> list[float | None]:
    """Scale a signal's own range to -1..1."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    return [2 * (v - low) / (high - low) - 1 if math.isfinite(v) else None for v in values]


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 and math.isfinite(value) else math.nan


def _gap(value: float | None) -> float:
    return math.nan if value is None else value
