"""Figures of both models on labelled images: scores with intervals, classes, confusion, calibration."""

from collections.abc import Sequence

from lepton_rl.errors import InputError
from lepton_rl.report.page import PALETTE, Cell, Row, escape, figures, note, plot, signed, table
from lepton_rl.report.records import Record, mapping, number, optional_number

MATRIX_CLASSES = 40
"""With more classes a matrix cannot be read: the pairs that are mixed up most are listed instead."""
PAIRS = 15
WORDS = {"ece": "calibration error (ECE)", "f1": "F1", "precision": "precision (mean)"}


def measured(comparison: Record, where: str) -> str:
    """Write the parts for a comparison, as `metrics.Comparison.to_json` made it."""
    before, after = mapping(comparison, "before", where), mapping(comparison, "after", where)
    images = int(number(before, "images", where))
    said = note(f"Measured on {images} labelled images that no run has seen; ranges are 95 % bootstrap intervals.")
    return "".join(
        (
            said + score_table(comparison, where),
            _head("Class by class, before > after") + _class_table(before, after, where),
            _head("Confusion") + _confusion(before, after, where),
            _head("Calibration") + _calibration(before, after, where),
        )
    )


def score_table(comparison: Record, where: str) -> str:
    """Write the scores over all classes."""
    before, after, change = (mapping(comparison, key, where) for key in ("before", "after", "change"))
    rows: list[Row] = []
    for name in change:
        moved = mapping(change, name, where)
        value = optional_number(moved, "value", where)
        # Less calibration error is better.
        colour = signed(None if value is None else (-value if name == "ece" else value)).kind
        rows.append(
            (
                WORDS.get(name, name.replace("_", " ")),
                *(_estimate(mapping(part, "scores", where), name, where) for part in (before, after)),
                Cell(signed(value).text, colour, _range(moved, where, signs=True)),
            )
        )
    return table(("score", "before", "after", "change"), rows)


def _head(title: str) -> str:
    return f'<h3 class="part">{escape(title)}</h3>'


def _estimate(scores: Record, name: str, where: str) -> Cell:
    found = mapping(scores, name, where)
    return Cell(figures(optional_number(found, "value", where)), below=_range(found, where))


def _range(estimate: Record, where: str, *, signs: bool = False) -> str:
    ends = [optional_number(estimate, key, where) for key in ("low", "high")]
    if None in ends:
        return ""
    low, high = (signed(end, 2).text if signs else figures(end, 2) for end in ends)
    return f"{low} .. {high}"


def _class_table(before: Record, after: Record, where: str) -> str:
    old, new = (mapping(part, "per_class", where) for part in (before, after))
    counts = [int(sum(row)) for row in matrix(before, where)]
    rows: list[Row] = []
    for name, images in zip(old, counts, strict=True):
        was, now = mapping(old, name, where), mapping(new, name, where)
        cells = [
            Cell(
                f"{_value(was, score, where)} > {_value(now, score, where)}",
                below=_range(mapping(now, score, where), where),
            )
            for score in was
        ]
        rows.append((Cell(name, below=f"{images} images"), *cells))
    scores = list(mapping(old, next(iter(old)), where)) if old else []
    return table(("class", *(WORDS.get(score, score).removesuffix(" (mean)") for score in scores)), rows)


def _value(scores: Record, name: str, where: str) -> str:
    return figures(optional_number(mapping(scores, name, where), "value", where), 2)


def matrix(part: Record, where: str) -> list[list[float]]:
    """Read a confusion matrix, one row a class.

    Raises:
        InputError: If it is not a square of numbers.
    """
    rows = part.get("confusion")
    size = len(mapping(part, "per_class", where))
    good = isinstance(rows, list) and len(rows) == size
    for row in rows if good and isinstance(rows, list) else []:
        good = good and isinstance(row, list) and len(row) == size and all(type(n) is int for n in row)
    if not good or not isinstance(rows, list):
        raise InputError(f"{where}: confusion is no {size} x {size} matrix of counts: run the command again")
    return rows


def _confusion(before: Record, after: Record, where: str) -> str:
    names = list(mapping(before, "per_class", where))
    parts = [(title, matrix(part, where)) for title, part in (("before", before), ("after", after))]
    if len(names) > MATRIX_CLASSES:
        return "".join(_mixed_up(title, rows, names) for title, rows in parts)
    drawn = "".join(f"<div><h3>{title}</h3>{_heatmap(title, rows, names)}</div>" for title, rows in parts)
    return note("Row: true class; column: what the model says; colour: share of the row.") + (
        f'<div class="pair">{drawn}</div>'
    )


def _heatmap(title: str, rows: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    import plotly.graph_objects as go

    # Numbers on the axes and names as their texts: two long names may be cut to the same label.
    shown = [escape(name if len(name) <= 12 else name[:11] + "…") for name in names]
    places = list(range(len(names)))
    trace = go.Heatmap(
        x=places,
        y=places,
        z=[[count / max(sum(row), 1) for count in row] for row in rows],
        text=[[str(count) if count else "" for count in row] for row in rows],
        texttemplate="%{text}" if len(names) <= 12 else None,
        hovertext=[
            [f"{escape(true)}, said to be {escape(said)}: {n}" for said, n in zip(names, row, strict=True)]
            for true, row in zip(names, rows, strict=True)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
        colorscale=[[0, "rgba(128,128,128,0.10)"], [1, PALETTE[0]]],
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        showscale=False,
    )
    ticks = {"tickvals": places, "ticktext": shown, "showgrid": False, "zeroline": False, "tickfont": {"size": 10}}
    layout: dict[str, object] = {"xaxis": {**ticks, "tickangle": -60}, "yaxis": {**ticks, "autorange": "reversed"}}
    height = 130 + 22 * max(len(names), 5)
    return f'<div class="plot">{plot([trace], name=f"confusion-{title}", height=height, layout=layout)}</div>'


def _mixed_up(title: str, rows: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    pairs = [(n, i, j) for i, row in enumerate(rows) for j, n in enumerate(row) if n and i != j]
    worst = sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))[:PAIRS]
    lines = [(names[i], names[j], str(int(n))) for n, i, j in worst]
    return f"<h3>{escape(title)}</h3>" + table(("true class", "said to be", "images"), lines, words=2)


def _calibration(before: Record, after: Record, where: str) -> str:
    import plotly.graph_objects as go

    line = {"color": "#7a8594", "dash": "dot"}
    traces = [go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, name="exact", hoverinfo="skip")]
    for title, part, colour in (("before", before, PALETTE[7]), ("after", after, PALETTE[0])):
        bins = [(n, sure, right) for n, sure, right in _bins(part, where) if n]
        traces.append(
            go.Scatter(
                x=[sure for _, sure, _ in bins],
                y=[right for _, _, right in bins],
                text=[f"{title}: {n:.0f} images, sure {sure:.2f}, right {right:.2f}" for n, sure, right in bins],
                hovertemplate="%{text}<extra></extra>",
                name=title,
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"size": [5 + 9 * (n / max(m for m, *_ in bins)) ** 0.5 for n, *_ in bins]},
            )
        )
    layout: dict[str, object] = {
        "xaxis": {"title": "how sure the model is", "range": [0, 1.03]},
        "yaxis": {"title": "how often it is right", "range": [-0.03, 1.05]},
        "showlegend": True,
    }
    said = note("On the dotted line the model is as often right as it is sure; below it is too sure of itself.")
    return said + f'<div class="plot">{plot(traces, name="calibration", height=300, layout=layout)}</div>'


def _bins(part: Record, where: str) -> list[tuple[float, float, float]]:
    rows = part.get("reliability")
    good = isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == 3 and all(type(x) in (int, float) for x in row) for row in rows
    )
    if not good or not isinstance(rows, list):
        raise InputError(f"{where}: reliability is no list of three numbers each: run the command again")
    return [(row[0], row[1], row[2]) for row in rows]
