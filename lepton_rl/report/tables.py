"""The summary of a benchmark as tables for papers: Markdown and LaTeX, one block per regime and split."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lepton_rl.report.page import write_whole

HEADER = ("arm", "runs", "IQM", "95 % interval", "median", "mean", "gap", "accuracy", "made worse", "P(policy better)")
LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"})


def write_tables(folder: Path, summary: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write `tables.md` and `tables.tex` and return their paths."""
    blocks = list(_blocks(summary))
    markdown = "\n".join(f"### {title}\n\n{_markdown(lines)}" for title, lines in blocks)
    latex = "\n".join(_latex(title, lines) for title, lines in blocks)
    return write_whole(folder / "tables.md", markdown), write_whole(folder / "tables.tex", latex)


def _blocks(summary: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    groups = summary.get("groups") or []
    if len(groups) != 1:
        yield "all regimes and splits", _lines(summary)
    for group in groups:
        yield f"{group['regime']}, {group['split']}", _lines(group)


def _lines(part: Mapping[str, Any]) -> list[list[str]]:
    lines = []
    for arm, entry in part["arms"].items():
        better = part.get("improvement", {}).get(arm)
        for runs, one in entry["by_runs"].items():
            low, high = one["ci"]
            last = int(runs) == entry["runs"]  # the comparison is at the largest number of runs
            lines.append(
                [
                    arm,
                    str(runs),
                    _figure(one["iqm"]),
                    "-" if low is None else f"{low:.3f} to {high:.3f}",
                    *(_figure(one[key]) for key in ("median", "mean", "optimality_gap", "mean_accuracy")),
                    f"{one['negative_transfer']:.0%}",
                    _figure(better) if last else "-",
                ]
            )
    return lines


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(HEADER) - 1)
    return "".join("| " + " | ".join(line) + " |\n" for line in (HEADER, rule, *_escaped(lines)))


def _escaped(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[cell.replace("|", "\\|") for cell in line] for line in lines]


def _latex(title: str, lines: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(cell.translate(LATEX) for cell in cells) + r" \\"

    columns = "l" + "r" * (len(HEADER) - 1)
    body = "\n".join(line(cells) for cells in lines)
    return (
        f"% {title}\n\\begin{{tabular}}{{{columns}}}\n\\hline\n{line(HEADER)}\n\\hline\n{body}\n\\hline\n"
        f"\\end{{tabular}}\n"
    )
