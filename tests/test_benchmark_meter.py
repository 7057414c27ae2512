"""The meter: every gradient step is counted, whatever an arm says of itself, and cheating arms are caught."""

import dataclasses
import functools

import pytest
import torch
from test_benchmark import TinySuite, bench, place
from tiny import task

from lepton_rl.agents.arms import SingleArm, Trial, TunerArm, register, unregister
from lepton_rl.agents.cells import Cell
from lepton_rl.controls import tuned_default
from lepton_rl.errors import InputError
from lepton_rl.meter import count, measuring
from lepton_rl.policy import KeepPolicy
from lepton_rl.rollout import rollout


def rows(arm):
    register(arm)
    try:
        return bench().rows(Cell(place=place(), arm=arm.name), TinySuite().task("held-out-tasks", 0))
    finally:
        unregister(arm.name)


class Discarding(SingleArm):
    """Runs three times and shows the best of them as its only run."""

    def single(self, task, seed):
        return max((rollout(task, KeepPolicy(), seed=seed + k) for k in range(3)), key=lambda result: result.score)


class Modest(SingleArm):
    """Takes its budget and says that it took half of it."""

    def single(self, task, seed):
        return dataclasses.replace(rollout(task, KeepPolicy(), seed=seed), steps=task.budget // 2)


class ByHand(SingleArm):
    """Trains a network of its own before its run, with an optimizer that no engine knows of."""

    def single(self, task, seed):
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for _ in range(task.budget):
            (weight**2).sum().backward()
            optimizer.step()
        return rollout(task, KeepPolicy(), seed=seed)


class Tuner(TunerArm):
    """Runs twice per trial, tells one, or makes it look remembered, or runs it when it is chosen."""

    def search(self, task, seed, runs, storage=None):
        for number in range(runs):
            run = functools.partial(rollout, task, KeepPolicy(), seed=seed + number)
            result = run()
            words = {"score": result.score, "steps": 10, "seconds": 0.0, "settings": tuned_default()}
            if self.name == "twice":
                run()
            if self.name == "forgetful":
                words["remembered"] = 10
            yield Trial(**words, result=run if self.name == "late" else lambda result=result: result)


@pytest.mark.parametrize(
    ("arm", "told"),
    [
        (Discarding(name="discarding", source="x"), "'discarding' took 30 gradient steps: expected at most .* 10"),
        (Modest(name="modest", source="x"), "'modest' says that it took 5 gradient steps, the meter counted 10"),
        (ByHand(name="by-hand", source="x"), "'by-hand' took 20 gradient steps: expected at most"),
        (Tuner(name="twice", source="x"), "'twice' took 20 gradient steps: expected at most its budget of 10"),
        (Tuner(name="forgetful", source="x"), "'forgetful' took 20 gradient steps"),
        (Tuner(name="late", source="x"), "'late' says that it took 10 gradient steps, the meter counted 20"),
    ],
)
def test_a_cheating_arm_is_caught(arm, told):
    with pytest.raises(InputError, match=told) as error:
        rows(arm)
    assert "\n" not in str(error.value)


def test_an_honest_tuner_is_not_accused():
    assert [row["steps"] for row in rows(Tuner(name="honest", source="x"))] == [10, 20]


def test_validation_passes_are_counted():
    [one] = bench().rows(Cell(place=place(), arm="tuned-default"), TinySuite().task("held-out-tasks", 0))
    [none] = bench().rows(Cell(place=place(), arm="source-only"), TinySuite().task("held-out-tasks", 0))
    probe, views = 7, 2 * 128  # target and source, 128 images each, small sets repeated
    # Before the run: the original, then the start; after it: two decisions and the average of the last half.
    assert one["images"] >= 4 * (views + probe)
    assert one["images"] % (views + probe) == 0
    assert none["images"] == views + probe


def test_meters_nest_and_count_every_lane():
    with measuring() as outer:
        count(3, images=5)
        with measuring() as inner:
            count(4)
        rollout(task(1, budget=10), KeepPolicy(), seed=3)
    count(100)
    assert (inner.steps, inner.images) == (4, 0)
    assert outer.engine_steps == 17
    assert outer.optimizer_steps == 10
    assert outer.images > 5
    assert outer.steps == 17


def test_a_cell_leaves_the_shared_task_as_it_was():
    """The pretrained network, the images and the split are the same before and after every kind of arm."""
    shared = TinySuite().task("held-out-tasks", 0)
    before = {name: value.clone() for name, value in shared.visible.model.state_dict().items()}
    images = shared.visible.target_unlabelled.images.copy()
    for name in ("full-finetune", "tpe", "pbt", "policy-replayed"):
        bench().rows(Cell(place=place(), arm=name), shared)
    assert all(torch.equal(before[name], value) for name, value in shared.visible.model.state_dict().items())
    assert (shared.visible.target_unlabelled.images == images).all()


class Careless(SingleArm):
    """Trains the network that all arms of a cell share."""

    def single(self, task, seed):
        next(iter(task.model.parameters())).data.add_(0.01)
        return rollout(task, KeepPolicy(), seed=seed)


def test_an_arm_that_changes_what_all_share_is_caught_and_harms_no_other():
    do = bench().start()
    honest = Cell(place=place(), arm="adabn")
    [before] = do(honest)
    register(Careless(name="careless", source="x"))
    try:
        with pytest.raises(InputError, match="'careless' changed the task that all arms share"):
            do(Cell(place=place(), arm="careless"))
    finally:
        unregister("careless")
    [after] = do(honest)
    assert {**before, "seconds": 0} == {**after, "seconds": 0}
