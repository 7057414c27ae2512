"""What an arm of the benchmark is: one run, or a search over several.

An arm is given a `VisibleTask` and a seed, never an `AdaptationTask`: the harness alone holds the hidden
labels, evaluates the chosen weights and counts gradient steps and seconds.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lepton_rl.controls import ControlSettings
from lepton_rl.policy import Policy
from lepton_rl.rollout import RunResult, rollout
from lepton_rl.task import VisibleTask


@dataclass(frozen=True, kw_only=True)
class Arm(ABC):
    """What every arm has.

    Attributes:
        name: As on the command line and in the rows.
        source: Where the method is from: authors, year, title.
    """

    name: str
    source: str

    @property
    def needs_policy(self) -> bool:
        """Whether the arm runs the learned policy that is under test."""
        return False

    def bind(self, policy: str | Path | Policy) -> Self:
        """Return the arm with the policy under test; arms that need none are returned as they are."""
        del policy
        return self


@dataclass(frozen=True, kw_only=True)
class SingleArm(Arm):
    """An arm that runs once."""

    @abstractmethod
    def single(self, task: VisibleTask, seed: int) -> RunResult:
        """Run once.

        Args:
            task: All that may be seen.
            seed: Of the lane, the same for every arm of a cell: the same batches in the same order.
        """


@dataclass(frozen=True, kw_only=True)
class PolicyArm(SingleArm):
    """An arm that is one run under a policy.

    Attributes:
        policy_for: Makes the policy for a task; schedules depend on the number of its decisions.
    """

    policy_for: Callable[[VisibleTask], Policy]

    def single(self, task: VisibleTask, seed: int) -> RunResult:
        """Run the policy once."""
        return rollout(task, self.policy_for(task), seed=seed)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One finished run of a tuner.

    Attributes:
        score: Visible score, higher is better; the best trial so far is chosen by nothing else.
        steps: Gradient steps taken, those of a run that diverged included.
        seconds: Wall-clock time, the tuner's own thinking included.
        settings: The knobs that were tried.
        result: Gives the run with its weights; may run it again when the trial was finished before a restart.
    """

    score: float
    steps: int
    seconds: float
    settings: ControlSettings
    result: Callable[[], RunResult]


@dataclass(frozen=True, kw_only=True)
class TunerArm(Arm):
    """An arm that runs several times and is judged by its best trial so far."""

    @abstractmethod
    def search(self, task: VisibleTask, seed: int, runs: int, storage: Path | None = None) -> Iterator[Trial]:
        """Run `runs` trials, one after the other.

        Args:
            task: All that may be seen.
            seed: Of the search, and of the lane of every trial (equal settings give equal results).
            runs: How many trials.
            storage: File for the state of the search, so that a killed one goes on; None = nowhere.

        Yields:
            Every trial when it is finished, in order; trial k does not depend on `runs`.
        """


def best_so_far(best: Trial | None, trial: Trial) -> Trial:
    """Choose by visible score alone; the earlier trial keeps a tie."""
    return trial if best is None or trial.score > best.score else best
