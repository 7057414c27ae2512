"""Find a tuned default per regime, or a tuned schedule; see `lepton_rl.agents.search`."""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from lepton_rl.agents.search import SearchConfig, search
from lepton_rl.cli import exit_code


@dataclass(frozen=True, kw_only=True)
class OpenLoopSearchConfig(SearchConfig):
    """Search over training tasks for a tuned default per regime, or for a tuned schedule."""

    what: Annotated[Literal["tuned-default-per-regime", "tuned-schedule"], tyro.conf.Positional]
    """The arm whose file is made."""


def _tune() -> int:
    config = tyro.cli(OpenLoopSearchConfig)
    print(search(config, config.what)["settings"])
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(_tune))
