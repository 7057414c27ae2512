"""Plots of a benchmark for papers, as SVG and PNG: scores against budget, and performance profiles.

They need matplotlib (the optional extra `plots`) and are left out without it; `report.html` has the same plots.
"""

import importlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lepton_rl.report.page import PALETTE

POLICY = "policy"
SIZE = (5.2, 3.4)  # inches, a column and a half
DPI = 200
DASHES = ("-", "--", "-.", ":")  # more arms than colours


def write_figures(folder: Path, summary: Mapping[str, Any]) -> list[Path]:
    """Write `figures/*.svg` and `*.png` and return their paths; none without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    out = folder / "figures"
    out.mkdir(exist_ok=True)
    written = []
    for group in summary.get("groups") or [{**summary, "regime": "all", "split": "all"}]:
        name = re.sub(r"[^\w-]", "-", f"{group['regime']}-{group['split']}")
        written += _save(_budget(group), out / f"budget-{name}")
        written += _save(_profiles(group), out / f"profiles-{name}")
    return written


def _figure(x: str, y: str) -> tuple[Any, Any]:
    # The object alone: no display, no global state.
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def _style(number: int, arm: str) -> dict[str, Any]:
    dash = DASHES[number // len(PALETTE) % len(DASHES)]
    width = 2.4 if arm == POLICY else 1.4
    return {"color": PALETTE[number % len(PALETTE)], "linestyle": dash, "linewidth": width, "label": arm}


def _budget(group: Mapping[str, Any]) -> Any:  # noqa: ANN401
    figure, axes = _figure("runs on the new domain", "normalised score (IQM)")
    every = sorted({int(runs) for entry in group["arms"].values() for runs in entry["by_runs"]})
    ends = [every[0], max(every[-1], 2 * every[0])]
    for number, (arm, entry) in enumerate(group["arms"].items()):
        points = [(int(k), one["iqm"], *one["ci"]) for k, one in entry["by_runs"].items() if one["iqm"] is not None]
        if not points:
            continue
        x, middle, low, high = (list(column) for column in zip(*points, strict=True))
        if len(points) == 1:
            x, middle, low, high = ends, middle * 2, low * 2, high * 2
        style = _style(number, arm)
        axes.plot(x, middle, **style)
        axes.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(runs) for runs in every])
    _legend(axes)
    return figure


def _profiles(group: Mapping[str, Any]) -> Any:  # noqa: ANN401
    figure, axes = _figure("normalised score", "share of cells above it")
    found = group["profiles"]
    for number, (arm, shares) in enumerate(found["arms"].items()):
        axes.step(found["thresholds"], shares, where="post", **_style(number, arm))
    _legend(axes)
    return figure


def _legend(axes: Any) -> None:  # noqa: ANN401
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="xx-small", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _save(figure: Any, path: Path) -> list[Path]:  # noqa: ANN401
    matplotlib = importlib.import_module("matplotlib")
    written = [path.with_suffix(end) for end in (".svg", ".png")]
    with matplotlib.rc_context({"svg.hashsalt": path.name}):  # the same bytes every time
        figure.savefig(written[0], metadata={"Date": None})
    figure.savefig(written[1], dpi=DPI, metadata={"Software": None})
    return written
