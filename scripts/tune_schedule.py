"""Find the tuned schedule, settings with one later change, over the training tasks; see `lepton_rl.agents.search`."""

import sys

import tyro

from lepton_rl.agents.search import SCHEDULE, SearchConfig, search
from lepton_rl.cli import exit_code


def _tune() -> int:
    print(search(tyro.cli(SearchConfig), SCHEDULE)["settings"])
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(_tune))
