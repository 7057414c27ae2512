"""The plots of a benchmark's page: best-so-far score against budget, and performance profiles."""

from collections.abc import Mapping

from lepton_rl.report.arms import POLICY, ByRuns, ends, order, points_of, shown, staircase
from lepton_rl.report.page import PALETTE, escape, note, plot
from lepton_rl.report.records import Record

BUDGET = "gradient steps on the new domain, all runs (mean per task)"
SCORE = "best-so-far score (IQM)"
HIDDEN = {"line": {"width": 0}, "mode": "lines", "hoverinfo": "skip", "showlegend": False}


def anytime(arms: Mapping[str, ByRuns], where: str, name: str, colours: Mapping[str, str]) -> str:
    """Draw the score that each arm has reached after a number of gradient steps, with 95 % intervals."""
    import plotly.graph_objects as go

    curves = {arm: points for arm, by_runs in arms.items() if (points := points_of(by_runs, where))}
    if not curves:
        return note("No cell has room between source-only and supervised: there is nothing to draw.")
    left, right = ends(curves.values())
    first = shown(arms, where)
    traces: list[object] = []
    for arm, points in curves.items():
        corners = staircase(points, left, right)
        xs, colour = [corner.steps for corner in corners], colours.get(arm, PALETTE[-1])
        seen = True if arm in first else "legendonly"
        band = [corner.high for corner in corners] + [corner.low for corner in reversed(corners)]
        faint = {"x": [*xs, *xs[::-1]], "y": band, "fill": "toself", "fillcolor": _faint(colour), "visible": seen}
        traces.append(go.Scatter(**faint, **HIDDEN, legendgroup=escape(arm)))
        line = {"color": colour, "width": 3.5 if arm == POLICY else 2, "dash": "solid" if len(points) > 1 else "dot"}
        traces.append(
            go.Scatter(
                x=xs,
                y=[corner.score for corner in corners],
                name=escape(arm),
                mode="lines",
                line=line if arm != POLICY else line | {"dash": "solid"},
                hovertemplate=f"{escape(arm)}: %{{y:.3f}} after %{{x:.0f}} steps<extra></extra>",
                legendgroup=escape(arm),
                visible=seen,
            )
        )
    layout: dict[str, object] = {"xaxis": {"title": BUDGET, "type": "log"}, "yaxis": {"title": SCORE}}
    more = " Click an arm in the legend to show or hide it." if len(curves) > len(first) else ""
    said = note(
        "Anytime curves: the score of the weights that the arm would hand over after so many gradient steps; shaded "
        f"are 95 % intervals. Arms of one run are dotted after it; arms without a step begin at the left end.{more}"
    )
    return said + f'<div class="plot">{plot(traces, name=name, height=460, layout=layout)}</div>'


def profiles(group: Record, name: str, colours: Mapping[str, str], first: list[str]) -> str:
    """Draw the share of cells above each score, with pointwise 95 % bands."""
    import plotly.graph_objects as go

    found = group.get("profiles")
    if not isinstance(found, dict) or not found.get("arms"):
        return ""
    traces: list[object] = []
    edges, bands = found["thresholds"], found.get("bands") or {}
    for arm in sorted(found["arms"], key=order):
        colour, seen = colours.get(arm, PALETTE[-1]), True if arm in first else "legendonly"
        if arm in bands:
            low, high = bands[arm]
            faint = {"x": [*edges, *edges[::-1]], "y": [*high, *low[::-1]], "fill": "toself"}
            hidden = {**HIDDEN, "fillcolor": _faint(colour), "visible": seen, "legendgroup": escape(arm)}
            traces.append(go.Scatter(**faint, **hidden))
        traces.append(
            go.Scatter(
                x=edges,
                y=found["arms"][arm],
                name=escape(arm),
                mode="lines",
                line={"color": colour, "width": 3.5 if arm == POLICY else 2},
                hovertemplate=f"{escape(arm)}: %{{y:.0%}} above %{{x}}<extra></extra>",
                legendgroup=escape(arm),
                visible=seen,
            )
        )
    layout: dict[str, object] = {
        "xaxis": {"title": "normalised score (0 source-only, 1 all target labels)"},
        "yaxis": {"title": "share of cells above it", "tickformat": ".0%"},
    }
    said = note("Performance profiles: each arm at its largest number of runs; higher is better everywhere.")
    return said + f'<div class="plot">{plot(traces, name=name, height=420, layout=layout)}</div>'


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"
