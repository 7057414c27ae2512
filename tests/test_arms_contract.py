"""The contract that third parties inherit, on arms that keep it and on arms that break it."""

import pytest

from lepton_rl.agents.arms import SingleArm, find_arm
from lepton_rl.agents.contract import ArmContract
from lepton_rl.errors import InputError
from lepton_rl.policy import KeepPolicy
from lepton_rl.rollout import rollout


class TestAutoRgn(ArmContract):
    arm = find_arm("auto-rgn")


class TestPopulation(ArmContract):
    arm = find_arm("pbt-warm")


class TestReplayed(ArmContract):
    arm = find_arm("policy-replayed")


class Greedy(SingleArm):
    def single(self, task, seed):
        rollout(task, KeepPolicy(), seed=seed)
        return rollout(task, KeepPolicy(), seed=seed)


class Forgetful(SingleArm):
    """Draws from a state of its own, not from the seed."""

    def single(self, task, seed):
        calls.append(seed)
        return rollout(task, KeepPolicy(), seed=len(calls))


class Careless(SingleArm):
    """Trains the network that all arms share."""

    def single(self, task, seed):
        next(iter(task.model.parameters())).data.add_(0.01)
        return rollout(task, KeepPolicy(), seed=seed)


calls = []


@pytest.mark.parametrize(
    ("kind", "broken", "error"),
    [
        (Greedy, "test_it_takes_no_more_steps_than_it_may_and_says_all_of_them", InputError),
        (Forgetful, "test_two_calls_give_the_same_weights", AssertionError),
        (Careless, "test_the_task_is_left_as_it_was", AssertionError),
    ],
)
def test_an_arm_that_breaks_a_rule_fails_its_test(kind, broken, error):
    class Broken(ArmContract):
        arm = kind(name="broken", source="x")

    with pytest.raises(error):
        getattr(Broken(), broken)()
