"""What an arm of the benchmark is: one run, or a search over several.

An arm is given a `VisibleTask` and a seed, never an `AdaptationTask`: the harness alone holds the hidden
labels, evaluates the chosen weights and counts gradient steps and seconds.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

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

    def check(self) -> None:  # noqa: B027 - most arms need nothing
        """Raise `InputError` if something that the arm needs is not there; asked before any work is done."""

    def describe(self) -> dict[str, Any]:
        """Return what the manifest records of the arm beside its source; JSON values."""
        return {}

    @property
    def lessons(self) -> int:
        """How many training tasks the arm has to see beforehand; `lesson` is called once with each of them."""
        return 0

    def lesson(self, task: VisibleTask, seed: int) -> Any:  # noqa: ANN401
        """Take from a training task what the arm wants to know, as a JSON value."""
        raise NotImplementedError(f"arm {self.name!r} takes no lessons")

    def taught(self, lessons: Sequence[Any]) -> Self:
        """Return the arm with what its lessons gave, in the order of the training tasks."""
        del lessons
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
    """What a tuner did with one run's budget: as a rule one run, with a pruner perhaps several cut short.

    Attributes:
        score: Visible score, higher is better; the best trial so far is chosen by nothing else.
        steps: Gradient steps taken, those of runs that were pruned or diverged included.
        seconds: Wall-clock time, the tuner's own thinking included.
        settings: The knobs that were tried.
        result: Gives the run with its weights; may run it again when the trial was finished before a restart.
        remembered: How many of the steps were taken before a restart, so that no meter can have seen them.
        remembered_images: How many images were evaluated before a restart.
    """

    score: float
    steps: int
    seconds: float
    settings: ControlSettings
    result: Callable[[], RunResult]
    remembered: int = 0
    remembered_images: int = 0


@dataclass(frozen=True, kw_only=True)
class Database:
    """A study in a database that processes and machines share.

    Attributes:
        url: As SQLAlchemy writes it, for example `postgresql+psycopg://user@host/name`.
        study: Name of the study.
    """

    url: str
    study: str


Storage = Path | Database


@dataclass(frozen=True, kw_only=True)
class TunerArm(Arm):
    """An arm that runs several times and is judged by its best trial so far."""

    @property
    def whole(self) -> bool:
        """Whether a search of k runs is not the beginning of a longer one, so that each number is searched apart."""
        return False

    @property
    def needs_files(self) -> bool:
        """Whether its state is more than an Optuna study, and stays in files where studies are in a database."""
        return False

    def forget(self, storage: Storage | None, runs: Sequence[int]) -> None:
        """Remove what the search has kept and nobody needs any more: the rows of these numbers of runs are made."""

    @abstractmethod
    def search(self, task: VisibleTask, seed: int, runs: int, storage: Storage | None = None) -> Iterator[Trial]:
        """Run `runs` trials, one after the other.

        Args:
            task: All that may be seen.
            seed: Of the search, and of the lane of every trial (equal settings give equal results).
            runs: How many trials, each of at most the task's budget of gradient steps.
            storage: Where the search keeps its state, so that a killed one goes on; None = nowhere.

        Yields:
            Every trial when it is finished, in order; unless the search is `whole`, trial k does not depend on
            `runs`.
        """


def best_so_far(best: Trial | None, trial: Trial) -> Trial:
    """Choose by visible score alone; the earlier trial keeps a tie."""
    return trial if best is None or trial.score > best.score else best
