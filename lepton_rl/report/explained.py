"""Why each decision was taken, which images changed class, and where the features of both domains went."""

import re
from collections.abc import Mapping, Sequence

from lepton_rl.errors import InputError
from lepton_rl.report.actions import readable
from lepton_rl.report.page import PALETTE, Section, escape, figures, note, plot
from lepton_rl.report.records import Record, mapping, number, text

SHOWN = 6  # signals for each decision
PNG = re.compile(r"iVBORw0KGgo[A-Za-z0-9+/]+={0,2}")
MAX_PNG = 200_000
KINDS = ("became right", "became wrong", "stayed wrong", "label unknown")
GROUPS = (("before", ("source before", "target before")), ("after", ("source after", "target after")))


def why(explanation: Record, seen: Mapping[int, Mapping[str, float]], where: str) -> dict[int, str]:
    """Return, for every decision, what weighed most in it; empty for a policy that does not look.

    Args:
        explanation: The content of `explanation.json`.
        seen: For each decision, the signals that it was taken by.
        where: Names the file.
    """
    if explanation.get("decisions") is None:
        return {}
    found = {}
    for row in _records(explanation, "decisions", where):
        which = int(number(row, "decision", f"{where}: decision"))
        found[which] = _weighed(row, seen.get(which, {}), f"{where}: decision {which}")
    return found


def _weighed(row: Record, seen: Mapping[str, float], where: str) -> str:
    chance, typical = (number(row, key, where) for key in ("probability", "typical"))
    knobs = mapping(row, "knobs", where)
    moved = [
        f"{readable(str(knob))}: {', '.join(readable(str(name)) for name in mapping(knobs, str(knob), where))}"
        for knob in knobs
    ]
    said = f"Probability of all this together {chance:.2f}; at a typical observation {typical:.2f}."
    return f'<p class="note">{escape(said)}</p>{bars(mapping(row, "signals", where), seen, where)}' + "".join(
        f'<p class="note">{escape(line)}</p>' for line in moved
    )


def bars(weights: Mapping[str, object], seen: Mapping[str, float], where: str) -> str:
    """Draw the signals with the largest weights as bars, to the right for the action and to the left against it."""
    values = {str(name): number(weights, name, where) for name in weights}
    largest = sorted(values, key=lambda name: -abs(values[name]))[:SHOWN]
    full = max((abs(values[name]) for name in largest), default=0.0)
    if full == 0:
        return note("No signal moved this decision away from what the policy does at a typical observation.")
    rows = []
    for name in largest:
        width = 50 * abs(values[name]) / full
        side = f"left:50%;width:{width:.1f}%" if values[name] >= 0 else f"right:50%;width:{width:.1f}%"
        kind = "for" if values[name] >= 0 else "against"
        rows.append(
            f'<div class="bar"><span>{escape(readable(name))} <small>{figures(seen.get(name), 2)}</small></span>'
            f'<i><b class="{kind}" style="{side}"></b></i><em>{values[name]:+.3f}</em></div>'
        )
    return f'<div class="bars">{"".join(rows)}</div>'


def examples_section(explanation: Record, where: str) -> Section:
    """Show images that changed class."""
    found = mapping(explanation, "examples", where)
    images, changed = (int(number(found, key, where)) for key in ("images", "changed"))
    of = text(found, "of", where)
    counts = mapping(found, "counts", where)
    parts = [f"{int(number(counts, kind, where))} {kind}" for kind in counts]
    said = f"{changed} of {images} {of} images changed class" + (f": {', '.join(parts)}." if parts else ".")
    shown = _records(found, "shown", where)
    drawn = ""
    for kind in KINDS:
        cards = "".join(_card(row, where) for row in shown if row.get("kind") == kind)
        drawn += f'<h3 class="part">{kind}</h3><div class="images">{cards}</div>' if cards else ""
    return Section("Images that changed class", note(said) + drawn)


def labels_section(explanation: Record, where: str) -> list[Section]:
    """Show labels that the network contradicts; nothing for a run without labels."""
    if explanation.get("labels") is None:
        return []
    found = mapping(explanation, "labels", where)
    images, count = (int(number(found, key, where)) for key in ("images", "doubtful"))
    said = (
        f"{count} of {images} labelled target images have a label that the network contradicts, more surely than it "
        "is, on average, of the images labelled so. Struck out is the label that was given. Labels that were trained "
        "on are judged by the model from before the run, the others by the one after it. The network may be wrong too."
    )
    cards = "".join(_card(row, where) for row in _records(found, "shown", where))
    return [Section("Labels worth a look", note(said) + (f'<div class="images">{cards}</div>' if cards else ""))]


def _card(row: Record, where: str) -> str:
    png = text(row, "png", where)
    if len(png) > MAX_PNG or not PNG.fullmatch(png):
        raise InputError(f"{where}: an example is no small PNG image: run the command again")
    before, after = text(row, "before", where), text(row, "after", where)
    sure = row.get("sure")
    if not isinstance(sure, list) or len(sure) != 2 or not all(type(x) in (int, float) for x in sure):
        raise InputError(f"{where}: an example has no two probabilities: run the command again")
    label = row.get("label")
    true = f"<span>is {escape(label)}</span>" if isinstance(label, str) else ""
    return (
        f'<figure><img alt="{escape(f"{before}, then {after}")}" src="data:image/png;base64,{png}">'
        f"<figcaption><span><s>{escape(before)}</s> {figures(sure[0], 2)}</span>"
        f"<span><strong>{escape(after)}</strong> {figures(sure[1], 2)}</span>{true}</figcaption></figure>"
    )


def maps_section(explanation: Record, where: str) -> Section:
    """Draw the features of both domains before and after, in the same plane."""
    heading = "Feature maps"
    if explanation.get("maps") is None:
        return Section(heading, note("The features span no plane: there is nothing to draw."))
    found = mapping(explanation, "maps", where)
    points = mapping(found, "points", where)
    shares = found.get("explained")
    if not isinstance(shares, list) or len(shares) != 2 or not all(type(x) in (int, float) for x in shares):
        raise InputError(f"{where}: the maps have no two shares of variance: run the command again")
    said = (
        "Every point is an image: what reaches the model's head, seen along the two directions in which the features "
        f"of both domains, before and after, differ most ({sum(shares):.0%} of their variance). Where the domains "
        "overlap, the head treats them alike."
    )
    drawn = "".join(
        f"<div><h3>{title}</h3>{_scatter(title, [name for name in names if name in points], points, where)}</div>"
        for title, names in GROUPS
    )
    return Section(heading, note(said) + f'<div class="pair">{drawn}</div>')


def _scatter(title: str, names: Sequence[str], points: Record, where: str) -> str:
    import plotly.graph_objects as go

    traces = []
    for name in names:
        rows = points.get(name)
        good = isinstance(rows, list) and all(
            isinstance(row, list) and len(row) == 2 and all(type(x) in (int, float) for x in row) for row in rows
        )
        if not good or not isinstance(rows, list):
            raise InputError(f"{where}: the map {name!r} is no list of points: run the command again")
        domain = name.split(" ")[0]
        colour = PALETTE[0] if domain == "source" else PALETTE[1]
        symbol = "circle" if domain == "source" else "diamond"
        traces.append(
            go.Scatter(
                x=[row[0] for row in rows],
                y=[row[1] for row in rows],
                mode="markers",
                name=domain,
                hoverinfo="name",
                marker={"color": colour, "size": 6, "opacity": 0.55, "symbol": symbol},
            )
        )
    axis = {"range": [-1.08, 1.08], "showticklabels": False, "fixedrange": True}
    layout: dict[str, object] = {"xaxis": axis, "yaxis": axis, "showlegend": True}
    return f'<div class="plot">{plot(traces, name=f"map-{title}", height=320, layout=layout)}</div>'


def _records(record: Record, key: str, where: str) -> list[Record]:
    rows = record.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{where}: field {key!r} is no list of objects: run the command again")
    return rows
