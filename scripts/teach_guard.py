"""Correct a policy's guard by runs of that policy; see `lepton_rl.agents.teach`."""

import sys

import tyro

from lepton_rl.agents.teach import TeachConfig, teach
from lepton_rl.cli import exit_code


def _teach() -> int:
    print(teach(tyro.cli(TeachConfig)))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(_teach))
