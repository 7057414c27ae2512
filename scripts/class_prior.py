"""Print what a known class prior is worth; see `lepton_rl.agents.prior_gain`."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from lepton_rl.agents.prior_gain import prior_gains, prior_table
from lepton_rl.agents.suites import SuiteChoice
from lepton_rl.cli import exit_code
from lepton_rl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Tell runs on validation tasks how frequent the classes are: rightly, roughly, wrongly, or not at all."""

    suite: str = "digits"
    """digits, or data (with --data)."""
    data: Path | None = None
    """Folder of the .npz files of the suite data; default LEPTON_DATA."""
    size: int = 16
    """Side in pixels to which images of the suite data are brought: 8, 16 or 28."""
    tasks: int = 40
    """Long-tailed tasks; half as many balanced ones beside them."""
    policies: tuple[str, ...] = ("tuned-default", "lepton-v1")
    """Policies, by name or file."""
    workers: int = 2
    """Processes."""

    def __post_init__(self) -> None:
        """Refuse values that give nothing."""
        if self.tasks < 1 or self.workers < 1 or not self.policies:
            raise InputError(
                f"tasks {self.tasks}, workers {self.workers}, policies {self.policies}: expected some of each"
            )


def _class_prior() -> int:
    arguments = tyro.cli(Arguments)
    make_suite = SuiteChoice(name=arguments.suite, data=arguments.data, size=arguments.size).maker()
    rows = prior_gains(make_suite, arguments.policies, arguments.tasks, arguments.workers)
    print(prior_table(rows, arguments.policies))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(_class_prior))
