"""Play training tasks under every plan of the portfolio; see `lepton_rl.agents.experience`."""

import sys

import tyro

from lepton_rl.agents.experience import ExperienceConfig, collect
from lepton_rl.cli import exit_code


def _collect() -> int:
    print(f"{len(collect(tyro.cli(ExperienceConfig)))} tasks")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(_collect))
