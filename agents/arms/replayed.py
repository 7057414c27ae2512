"""The policy without its eyes: its most frequent actions over training tasks, replayed on every task.

What is left of the policy when feedback is taken away. The actions are recorded on training tasks, never on the
task at hand.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from lepton_rl.agents.arms.found import checked_actions
from lepton_rl.agents.arms.learned import LearnedArm
from lepton_rl.controls import KNOBS
from lepton_rl.policy import SchedulePolicy
from lepton_rl.rollout import RunResult, rollout
from lepton_rl.task import VisibleTask

TASKS = 16

Actions = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ReplayedArm(LearnedArm):
    """One run under the recorded schedule.

    Attributes:
        actions: One per decision.
    """

    actions: Actions = ()

    @property
    def lessons(self) -> int:
        """The policy is watched on this many training tasks."""
        return TASKS

    def lesson(self, task: VisibleTask, seed: int) -> list[list[int]]:
        """Return the policy's actions on a training task."""
        history = rollout(task, self.policy, seed=seed).history
        return [[row["action"][knob] for knob in KNOBS] for row in history if row["action"] is not None]

    def taught(self, lessons: Sequence[Any]) -> Self:
        """Return the arm with the most frequent actions."""
        recorded = [checked_actions(one, "a recorded run") for one in lessons]
        return replace(self, actions=most_frequent(recorded))

    def single(self, task: VisibleTask, seed: int) -> RunResult:
        """Replay."""
        return rollout(task, SchedulePolicy(actions=self.actions, settings=self.policy.settings), seed=seed)


def most_frequent(recorded: Sequence[Actions]) -> Actions:
    """Return per decision and knob the most frequent sub-action; the smaller one in a tie.

    A run that was stopped has no say in what comes after: it is counted at the decision that stopped it, and
    with `stop` at every later one, so that the schedule ends where half of the runs had ended.
    """
    longest = max(map(len, recorded), default=0)
    return tuple(tuple(_mode(recorded, at, knob) for knob in range(len(KNOBS))) for at in range(longest))


def _mode(recorded: Sequence[Actions], at: int, knob: int) -> int:
    stop = knob == KNOBS.index("stop")
    votes = [run[at][knob] for run in recorded if at < len(run)]
    votes += [1 for run in recorded if stop and len(run) <= at and run and run[-1][knob] == 1]
    counts = Counter(votes)
    return min(counts, key=lambda value: (-counts[value], value))


ARM = ReplayedArm(
    name="policy-replayed", source="control: the learned policy's most frequent actions, without feedback"
)
