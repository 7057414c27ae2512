"""The rules of the benchmark as tests that any arm can be put through.

```python
# test_my_arm.py
from lepton_rl.agents.contract import ArmContract
from my_arms import HALF_WAY

class TestHalfWay(ArmContract):
    arm = HALF_WAY
```

pytest collects the methods; nothing else is needed.
"""

import functools
from dataclasses import replace
from typing import ClassVar

import torch

from lepton_rl.agents.arm import Arm, SingleArm, TunerArm, best_so_far
from lepton_rl.agents.judge import judged, tuned
from lepton_rl.domain import Domain
from lepton_rl.rollout import RunResult
from lepton_rl.suite import TaskSuite
from lepton_rl.task import AdaptationTask, Regime

RUNS = 2
SEED = 5


@functools.cache
def _task(regime: Regime) -> AdaptationTask:
    """Return a real task that takes a second."""
    suite = TaskSuite("digits-contract", {"digits": Domain.digits}, pretrain_steps=30, budgets=(10,))
    return suite.task("held-out-tasks", 0, regime)


class ArmContract:
    """What every arm promises. Set `arm`; `policy` is bound to arms that need one.

    Attributes:
        arm: The arm under test.
        policy: Name or path of a policy.
        regimes: Label regimes that the arm is tested under.
    """

    arm: ClassVar[Arm]
    policy: ClassVar[str] = "tuned-default"
    regimes: ClassVar[tuple[Regime, ...]] = ("few-label", "label-free")

    def test_it_says_where_it_is_from(self) -> None:
        """`source` names a paper, or says which control it is."""
        assert self.arm.name
        assert self.arm.source
        assert isinstance(self.arm, SingleArm | TunerArm)

    def test_it_takes_no_more_steps_than_it_may_and_says_all_of_them(self) -> None:
        """The meter counts; an arm that discards runs, or trains by hand, fails here."""
        for regime in self.regimes:
            task = _task(regime)
            arm = self._bound()
            if isinstance(arm, TunerArm):
                assert [row["runs"] for row in tuned(arm, task, SEED, (1, RUNS))] == [1, RUNS]
            else:
                assert isinstance(arm, SingleArm)
                assert judged(arm, task, SEED)["runs"] == 1

    def test_two_calls_give_the_same_weights(self) -> None:
        """All that the arm draws comes from its seed."""
        for regime in self.regimes:
            assert _equal(self._run(_task(regime)), self._run(_task(regime)))

    def test_hidden_labels_change_nothing(self) -> None:
        """Not one weight differs when every hidden label is another one."""
        for regime in self.regimes:
            task = _task(regime)
            test = task.hidden.target_test
            assert test is not None
            wrong = replace(test, labels=(test.labels + 1) % test.n_classes)
            hidden = replace(task.hidden, target_eval=wrong, target_test=wrong)
            assert _equal(self._run(task), self._run(replace(task, hidden=hidden)))

    def test_the_task_is_left_as_it_was(self) -> None:
        """Arms of a cell share the pretrained network and the images."""
        task = _task(self.regimes[0])
        before = {name: value.clone() for name, value in task.visible.model.state_dict().items()}
        images = task.visible.target_unlabelled.images.copy()
        self._run(task)
        assert all(torch.equal(before[name], value) for name, value in task.visible.model.state_dict().items())
        assert (images == task.visible.target_unlabelled.images).all()

    def _bound(self) -> Arm:
        arm = self.arm.bind(self.policy)
        lessons = [arm.lesson(_task("few-label").visible, number) for number in range(min(2, arm.lessons))]
        return arm.taught(lessons) if lessons else arm

    def _run(self, task: AdaptationTask) -> RunResult:
        arm = self._bound()
        if isinstance(arm, TunerArm):
            best = None
            for trial in arm.search(task.visible, SEED, RUNS):
                best = best_so_far(best, trial)
            assert best is not None
            return best.result()
        assert isinstance(arm, SingleArm)
        return arm.single(task.visible, SEED)


def _equal(one: RunResult, two: RunResult) -> bool:
    mine, theirs = one.engine.snapshot(0), two.engine.snapshot(0)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
