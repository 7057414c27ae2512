"""Self-contained HTML pages for people, made from the files that a command left behind."""

from pathlib import Path

from lepton_rl.errors import InputError
from lepton_rl.report.adapt import adapt_report
from lepton_rl.report.benchmark import benchmark_report

__all__ = ["adapt_report", "benchmark_report", "write_report"]


def write_report(folder: Path) -> Path:
    """Write `report.html` for whatever command filled the folder, and return its path.

    Raises:
        InputError: when the folder holds the output of neither `lepton adapt` nor `lepton benchmark`.
    """
    if (folder / "history.jsonl").exists():
        return adapt_report(folder)
    if (folder / "rows.jsonl").exists():
        return benchmark_report(folder)
    raise InputError(
        f"{folder} holds neither history.jsonl (lepton adapt) nor rows.jsonl (lepton benchmark): "
        "name the folder that was given as --out"
    )
