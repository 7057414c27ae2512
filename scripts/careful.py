"""Print what it costs to ask the learned guard for more; see `lepton_rl.agents.caution`."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from lepton_rl.agents.caution import caution_table, play_all
from lepton_rl.agents.suites import SuiteChoice
from lepton_rl.artifact import SHIPPED
from lepton_rl.cli import exit_code
from lepton_rl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Play tasks under a policy with a guard, and say what each --min-gain of lepton adapt would have given."""

    suite: str = "digits"
    """digits, or data (with --data)."""
    data: Path | None = None
    """Folder of the .npz files of the suite data; default LEPTON_DATA."""
    size: int = 16
    """Side in pixels to which images of the suite data are brought: 8, 16 or 28."""
    policy: str = SHIPPED
    """Policy with a guard, by name or file."""
    splits: tuple[str, ...] = ("validation",)
    """Parts of the suite."""
    tasks: int = 32
    """Tasks of each split."""
    seeds: int = 1
    """Runs of each task."""
    workers: int = 2
    """Processes."""

    def __post_init__(self) -> None:
        """Refuse values that give nothing."""
        for name in ("tasks", "seeds", "workers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is out of range: expected 1 or more; raise --{name}")
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise InputError(f"splits {self.splits} is empty or repeats itself: expected each once; mend --splits")


def _careful() -> int:
    arguments = tyro.cli(Arguments)
    make_suite = SuiteChoice(name=arguments.suite, data=arguments.data, size=arguments.size).maker()
    runs = play_all(
        make_suite, arguments.policy, arguments.splits, arguments.tasks, arguments.seeds, arguments.workers
    )  # fmt: skip
    print(caution_table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(_careful))
