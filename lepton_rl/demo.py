"""The table that `lepton demo` prints: every arm on every held-out domain, as measured."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from lepton_rl.suite import TaskSuite

SPLIT = "held-out-shifts"  # kinds of shift that no policy is trained on
ARMS = ("source-only", "tuned-default", "policy", "tpe")
RUNS = (1, 4, 8)
TITLES = {
    "source-only": "source\nonly",
    "tuned-default": "tuned\ndefault\n",
    "policy": "policy\n",
    "tpe": "Optuna\n",
}

Row = Mapping[str, Any]
Column = tuple[str, int]  # arm, number of runs


def demo_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Arrange the rows of a benchmark: one line per held-out domain, one column per arm and number of runs.

    Args:
        rows: Objects of `rows.jsonl` of the digits suite; `accuracy` is that on the target's test images.

    Returns:
        Titles, and lines of cells; the last two lines are the mean accuracy and the mean number of gradient steps.
    """
    columns = sorted({_column(row) for row in rows}, key=lambda column: (ARMS.index(column[0]), column[1]))
    suite = TaskSuite.digits()
    lines = []
    for split, index in sorted({(row["split"], row["index"]) for row in rows}):
        recipe = suite.recipe(split, index)
        shifts = "\n".join(f"{shift.kind} {shift.severity:g}" for shift in recipe.target_shifts)
        labels = str(recipe.labels_per_class) if recipe.labels_per_class else "none"
        mine = [row for row in rows if (row["split"], row["index"]) == (split, index)]
        lines.append([shifts, labels, *_means(mine, columns, "accuracy", ".3f")])
    lines.append(["mean accuracy", "", *_means(rows, columns, "accuracy", ".3f")])
    lines.append(["gradient steps", "", *_means(rows, columns, "steps", ".0f")])
    return ["held-out domain", "labels\na class", *map(_title, columns)], lines


def _column(row: Row) -> Column:
    return row["arm"], row["runs"]


def _title(column: Column) -> str:
    arm, runs = column
    return TITLES[arm] if arm == "source-only" else f"{TITLES[arm]}{runs} run{'s' * (runs != 1)}"


def _means(rows: Sequence[Row], columns: Sequence[Column], key: str, form: str) -> list[str]:
    values = [[float(row[key]) for row in rows if _column(row) == column] for column in columns]
    return [format(fmean(found), form) if found else "-" for found in values]
