"""Plots of a benchmark for papers, as SVG and PNG: anytime curves, performance profiles, and the tasks one by one.

They need matplotlib (the optional extra `plots`) and are left out without it; `report.html` has the same plots. The
arms are those of the page's plots, as more could not be told apart in print.
"""

import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lepton_rl.report.arms import OPPONENT, POLICY, ByRuns, arms_of, colours, ends, points_of, staircase
from lepton_rl.report.tasks import Match, matches

SIZE = (5.2, 3.4)  # inches, a column and a half
DPI = 200
WHERE = "the summary"


def write_figures(folder: Path, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> list[Path]:
    """Write `figures/*.svg` and `*.png` and return their paths; none without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    out = folder / "figures"
    out.mkdir(exist_ok=True)
    paint = colours(arms_of(summary, WHERE), WHERE)
    written = []
    for group in summary.get("groups") or [{**summary, "regime": "all", "split": "all"}]:
        name = re.sub(r"[^\w-]", "-", f"{group['regime']}-{group['split']}")
        arms = {arm: by_runs for arm, by_runs in arms_of(group, WHERE).items() if arm in paint}
        written += _save(_anytime(arms, paint), out / f"anytime-{name}")
        written += _save(_profiles(group, paint), out / f"profiles-{name}")
        here = [row for row in rows if (row["regime"], row["split"]) == (group["regime"], group["split"])]
        found = matches(here, WHERE)
        if found:
            written += _save(_tasks(found), out / f"tasks-{name}")
    return written


def _figure(x: str, y: str) -> tuple[Any, Any]:
    # The object alone: no display, no global state.
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _style(arm: str, paint: Mapping[str, str], *, dotted: bool = False) -> dict[str, Any]:
    style = ":" if dotted and arm != POLICY else "-"
    return {"color": paint[arm], "linewidth": 2.6 if arm == POLICY else 1.5, "label": arm, "linestyle": style}


def _anytime(arms: Mapping[str, ByRuns], paint: Mapping[str, str]) -> Any:  # noqa: ANN401
    figure, axes = _figure("gradient steps on the new domain (mean per task)", "best-so-far score (IQM)")
    curves = {arm: points for arm, by_runs in arms.items() if (points := points_of(by_runs, WHERE))}
    left, right = ends(curves.values())
    for arm, points in curves.items():
        steps, score, low, high = zip(*staircase(points, left, right), strict=True)
        axes.fill_between(steps, low, high, color=paint[arm], alpha=0.13, linewidth=0)
        axes.plot(steps, score, **_style(arm, paint, dotted=len(points) == 1))
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    _legend(axes)
    return figure


def _profiles(group: Mapping[str, Any], paint: Mapping[str, str]) -> Any:  # noqa: ANN401
    figure, axes = _figure("normalised score", "share of cells above it")
    found = group["profiles"]
    for arm in paint:
        if arm not in found["arms"]:
            continue
        if arm in found.get("bands", {}):
            axes.fill_between(found["thresholds"], *found["bands"][arm], color=paint[arm], alpha=0.13, linewidth=0)
        axes.plot(found["thresholds"], found["arms"][arm], **_style(arm, paint))
    axes.set_ylim(-0.02, 1.02)
    _legend(axes)
    return figure


def _tasks(found: Sequence[Match]) -> Any:  # noqa: ANN401
    figure, axes = _figure("tasks, the worst first", f"{POLICY} minus {OPPONENT}, points")
    points = [100 * match.difference for match in found]
    painted = ["#d6336c" if point < 0 else "#1f9d6b" for point in points]
    axes.bar(range(1, len(points) + 1), points, color=painted, width=0.85)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _legend(axes: Any) -> None:  # noqa: ANN401
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _save(figure: Any, path: Path) -> list[Path]:  # noqa: ANN401
    matplotlib = importlib.import_module("matplotlib")
    written = [path.with_suffix(end) for end in (".svg", ".png")]
    with matplotlib.rc_context({"svg.hashsalt": path.name}):  # the same bytes every time
        figure.savefig(written[0], metadata={"Date": None})
    figure.savefig(written[1], dpi=DPI, metadata={"Software": None})
    return written
