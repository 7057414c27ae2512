"""The shell of every report: one HTML file that needs no network, reads on a phone and follows dark mode.

Whatever comes from a file passes through `escape` on its way into the page.
"""

import html
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from lepton_rl.cache import naming
from lepton_rl.report.style import SCRIPT, STYLE

PALETTE = ("#2a78d6", "#e2711d", "#1f9d6b", "#9b5de5", "#d6336c", "#0f9bb3", "#b08900", "#7a8594")
"""Line colours that keep their contrast on light and on dark ground."""


class Cell(NamedTuple):
    """A table cell with a CSS class, such as `good` or `bad`, and a smaller second line."""

    text: str
    kind: str = ""
    below: str = ""


class Section(NamedTuple):
    """A part of the page: a heading (plain text) and a body (HTML that is already escaped)."""

    heading: str
    body: str


Row: TypeAlias = Sequence[str | Cell]


def escape(value: object) -> str:
    """Make any value safe inside HTML text, attributes and the labels of a plot."""
    return html.escape(str(value), quote=True)


def figures(value: float | None, digits: int = 3) -> str:
    """Write a number for people; a dash where there is none."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> Cell:
    """Write a difference with its sign, coloured by whether it is good (above zero) or bad."""
    if value is None or math.isnan(value):
        return Cell("-")
    shown = f"{value:+.{digits}f}"
    if float(shown) == 0:
        return Cell(shown.replace("-", "+"))
    return Cell(shown, "good" if value > 0 else "bad")


def table(header: Sequence[str], rows: Sequence[Row], *, words: int = 1) -> str:
    """Write a table that scrolls sideways where it does not fit; every cell is escaped.

    Args:
        header: titles of the columns.
        rows: the cells.
        words: how many columns from the left hold words; the others are aligned as numbers.
    """
    head = "".join(f"<th{_kind(i, words)}>{escape(title)}</th>" for i, title in enumerate(header))
    body = "".join(f"<tr>{_cells(row, words)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def folded(title: str, body: str) -> str:
    """Fold a long part away under its title; the body is HTML that is already escaped."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def note(content: str) -> str:
    """Write a paragraph of plain text; it is escaped."""
    return f'<p class="note">{escape(content)}</p>'


def plot(traces: Sequence[object], *, name: str, height: int, layout: dict[str, object]) -> str:
    """Draw a plot as a division of the page; the library itself is inlined once by `page`.

    Args:
        traces: plotly trace objects; their texts must be escaped already.
        name: identity of the division, letters, digits and dashes.
        height: in pixels.
        layout: further settings of the plotly layout.
    """
    import plotly.graph_objects as go

    axis = {
        "gridcolor": "rgba(128,128,128,0.22)",
        "zerolinecolor": "rgba(128,128,128,0.35)",
        "automargin": True,
    }
    # Given at once: every update of a figure goes through all of it again.
    common = {
        "template": "none",
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#7a8594"},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
        "xaxis": axis,
        "yaxis": axis,
    }
    figure = go.Figure(data=list(traces), layout=common)
    figure.update_layout(**layout)
    settings = {"responsive": True, "displayModeBar": False, "scrollZoom": False}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=settings))


def manifest_table(manifest: dict[str, object]) -> str:
    """List how the run was made, one line per entry; nested values are written as JSON."""
    import json

    rows = []
    for key in sorted(manifest):
        value = manifest[key]
        rows.append((key, value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)))
    return '<div class="facts">' + table(("entry", "value"), rows, words=2) + "</div>"


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Put a whole page together.

    Args:
        title: plain text.
        lead: HTML under the title, escaped already.
        sections: the parts in their order.
    """
    from plotly.offline import get_plotlyjs

    body = "\n".join(f"<section><h2>{escape(s.heading)}</h2>{s.body}</section>" for s in sections)
    policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1>{lead}</header>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def write_whole(path: Path, content: str) -> Path:
    """Write a text file whole or not at all, and return its path."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with naming(path):
            part.write_text(content, encoding="utf-8")
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _cells(row: Row, words: int) -> str:
    cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
    return "".join(
        f"<td{_kind(i, words, c.kind)}>{escape(c.text)}{f'<small>{escape(c.below)}</small>' if c.below else ''}</td>"
        for i, c in enumerate(cells)
    )


def _kind(column: int, words: int, kind: str = "") -> str:
    names = " ".join(name for name in ("" if column < words else "number", kind) if name)
    return f' class="{names}"' if names else ""
