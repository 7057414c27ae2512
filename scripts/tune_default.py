"""Find the tuned default over the training tasks; see `lepton_rl.agents.search`."""

import sys

import tyro

from lepton_rl.agents.search import DEFAULT, SearchConfig, search
from lepton_rl.cli import exit_code


def _tune() -> int:
    print(search(tyro.cli(SearchConfig), DEFAULT)["settings"])
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(_tune))
