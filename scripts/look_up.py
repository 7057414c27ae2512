"""Make the tuned default per regime from collected tasks; see `lepton_rl.agents.look_up`."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from lepton_rl.agents.experience import read_experience
from lepton_rl.agents.look_up import look_up
from lepton_rl.agents.search import write_found
from lepton_rl.cli import exit_code


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Find the best static plan of collected tasks for each label regime, with and without source data."""

    experience: Path = Path("runs/experience")
    """Folder of scripts/collect_experience.py."""
    out: Path = Path(__file__).resolve().parent.parent / "lepton_rl" / "defaults" / "tuned-default-per-regime.json"
    """JSON file to write."""


def _look_up() -> int:
    arguments = tyro.cli(Arguments)
    found = look_up(read_experience(arguments.experience))
    write_found(arguments.out, found)
    for case, told in found["search"]["cases"].items():
        print(f"{case}: {told['plan']}, {told['points_above_the_tuned_default']:+.2f} points in {told['tasks']} tasks")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(_look_up))
