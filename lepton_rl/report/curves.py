"""The plots of a benchmark's page: best-so-far score against budget, and performance profiles."""

from collections.abc import Mapping

from lepton_rl.report.arms import POLICY, ByRuns, ends, order, points_of, staircase
from lepton_rl.report.page import escape, note, plot
from lepton_rl.report.records import Record

BUDGET = "gradient steps, all runs (mean per task)"
SCORE = "best-so-far score (IQM)"
HIDDEN = {"line": {"width": 0}, "mode": "lines", "hoverinfo": "skip", "showlegend": False}


def anytime(arms: Mapping[str, ByRuns], where: str, name: str, colours: Mapping[str, str]) -> str:
    """Draw the score that each arm has reached after a number of gradient steps, with 95 % intervals.

    Args:
        arms: Of one part of the summary.
        where: For messages.
        name: Of the plot.
        colours: Of the arms to draw.
    """
    import plotly.graph_objects as go

    drawn = {arm: by_runs for arm, by_runs in arms.items() if arm in colours}
    curves = {arm: points for arm, by_runs in drawn.items() if (points := points_of(by_runs, where))}
    if not curves:
        return note("No cell has room between source-only and supervised: there is nothing to draw.")
    left, right = ends(curves.values())
    traces: list[object] = []
    for arm, points in curves.items():
        corners = staircase(points, left, right)
        xs, colour = [corner.steps for corner in corners], colours[arm]
        band = [corner.high for corner in corners] + [corner.low for corner in reversed(corners)]
        faint = {"x": [*xs, *xs[::-1]], "y": band, "fill": "toself", "fillcolor": _faint(colour)}
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
            )
        )
    layout: dict[str, object] = {"xaxis": {"title": BUDGET, "type": "log"}, "yaxis": {"title": SCORE}}
    more = " The other arms are in the table." if len(drawn) < len(arms) else ""
    said = note(
        "Anytime curves: the score of the weights that the arm would hand over after so many gradient steps; shaded "
        f"are 95 % intervals. Arms of one run are dotted after it; arms without a step begin at the left end.{more}"
    )
    return said + f'<div class="plot">{plot(traces, name=name, height=460, layout=layout)}</div>'


def profiles(group: Record, name: str, colours: Mapping[str, str]) -> str:
    """Draw the share of cells above each score, with pointwise 95 % bands, of the arms that have a colour."""
    import plotly.graph_objects as go

    found = group.get("profiles")
    if not isinstance(found, dict) or not found.get("arms"):
        return ""
    traces: list[object] = []
    edges, bands = found["thresholds"], found.get("bands") or {}
    for arm in sorted(set(found["arms"]) & set(colours), key=order):
        colour = colours[arm]
        if arm in bands:
            low, high = bands[arm]
            faint = {"x": [*edges, *edges[::-1]], "y": [*high, *low[::-1]], "fill": "toself"}
            traces.append(go.Scatter(**faint, **HIDDEN, fillcolor=_faint(colour), legendgroup=escape(arm)))
        traces.append(
            go.Scatter(
                x=edges,
                y=found["arms"][arm],
                name=escape(arm),
                mode="lines",
                line={"color": colour, "width": 3.5 if arm == POLICY else 2},
                hovertemplate=f"{escape(arm)}: %{{y:.0%}} above %{{x}}<extra></extra>",
                legendgroup=escape(arm),
            )
        )
    layout: dict[str, object] = {
        "xaxis": {"title": "normalised score"},
        "yaxis": {"title": "share of cells above it", "tickformat": ".0%"},
    }
    said = note("Performance profiles: each arm at its largest number of runs; higher is better everywhere.")
    return said + f'<div class="plot">{plot(traces, name=name, height=420, layout=layout)}</div>'


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"
