"""One cell of the benchmark: one arm on one task with one seed. Only here are hidden labels read."""

import math
import re
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lepton_rl.agents.arms import SingleArm, Trial, TunerArm, best_so_far, find_arm
from lepton_rl.agents.arms.settings import cross_entropy_only
from lepton_rl.agents.arms.source_only import ARM as SOURCE_ONLY
from lepton_rl.controls import KEEP
from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.rollout import RunResult
from lepton_rl.run import AdaptationRun
from lepton_rl.solo import SoloEngine
from lepton_rl.task import AdaptationTask, Regime

SUPERVISED_STEPS = 160  # the upper bound trains for twice the task's budget, and at least for twice this many
SUPERVISED_LEARNING_RATE = 2e-3

Row = dict[str, Any]


class Suite(Protocol):
    """Anything that makes task number `index` of a split, the same one every time."""

    def task(self, split: str, index: int, regime: Regime | None = None) -> AdaptationTask:
        """Make a task."""
        ...


@dataclass(frozen=True, kw_only=True, order=True)
class Place:
    """A task and a seed: what all arms share.

    Attributes:
        split: Part of the suite.
        index: Number of the task within it.
        seed: Number of the repetition, 0, 1, ...
    """

    split: str
    index: int
    seed: int

    def lane_seed(self, seed: int) -> int:
        """Return the seed of every run at this place, whatever the arm and the number of tasks (paired)."""
        entropy = (seed, zlib.crc32(self.split.encode()), self.index, self.seed)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """An arm at a place; made once, and making it again gives the same rows.

    Attributes:
        place: Task and seed.
        arm: Name of the arm.
    """

    place: Place
    arm: str

    def journal(self, folder: Path) -> Path:
        """Return the file in which a tuner keeps its state."""
        name = f"{self.arm}-{self.place.split}-{self.place.index:04d}-{self.place.seed}"
        return folder / (re.sub(r"[^\w.-]", "_", name) + ".journal")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Does the jobs of a benchmark; one lives in every worker.

    Attributes:
        make_suite: Makes the suite.
        regime: Label regime of all tasks, or None to leave it to each.
        seed: Of the benchmark.
        runs: After how many runs of a tuner a row is made, ascending.
        policy: Name or path of the policy under test.
        journals: Folder of the tuners' states, or None.
    """

    make_suite: Callable[[], Suite]
    regime: Regime | None
    seed: int
    runs: tuple[int, ...]
    policy: str
    journals: Path | None = None

    def start(self) -> Callable[[Place | Cell], Any]:
        """Return what does a job: the reference accuracies of a place, or the rows of a cell."""
        suite = self.make_suite()

        def do(job: Place | Cell) -> Row | list[Row]:
            place = job if isinstance(job, Place) else job.place
            task = suite.task(place.split, place.index, self.regime)
            return self.reference(place, task) if isinstance(job, Place) else self.rows(job, task)

        return do

    def reference(self, place: Place, task: AdaptationTask) -> Row:
        """Measure the two ends of the normalised score."""
        test = _test_of(task)
        seed = place.lane_seed(self.seed)
        return {
            **_where(place, task),
            "source_only": SOURCE_ONLY.single(task.visible, seed).accuracy(test),
            "supervised": supervised_accuracy(task, seed),
        }

    def rows(self, cell: Cell, task: AdaptationTask) -> list[Row]:
        """Run the cell's arm; the two reference accuracies are filled in by who knows them."""
        test = _test_of(task)
        seed = cell.place.lane_seed(self.seed)
        arm = find_arm(cell.arm, self.policy)
        common = {**_where(cell.place, task), "arm": cell.arm}
        if isinstance(arm, TunerArm):
            return [common | row for row in self._tune(arm, cell, task, seed, test)]
        assert isinstance(arm, SingleArm)  # the registry takes no other
        began = time.perf_counter()
        result = arm.single(task.visible, seed)
        seconds = time.perf_counter() - began
        _check_budget(cell.arm, result.steps, task.visible.budget)
        return [common | _measured(1, result.steps, seconds, result, result.accuracy(test))]

    def _tune(self, arm: TunerArm, cell: Cell, task: AdaptationTask, seed: int, test: Domain) -> list[Row]:
        """Search; after every number of runs asked for, evaluate the trial that the visible score prefers."""
        journal = None if self.journals is None else cell.journal(self.journals)
        trials = arm.search(task.visible, seed, max(self.runs), journal)
        best: Trial | None = None
        judged: tuple[Trial, RunResult, float] | None = None  # each reported number is evaluated once
        steps, seconds, rows = 0, 0.0, []
        for number in range(1, max(self.runs) + 1):
            began = time.perf_counter()
            trial = next(trials, None)
            if trial is None:
                raise InputError(f"arm {arm.name!r} ended before run {number}: expected {max(self.runs)} runs")
            # A trial remembered from before a restart took the time that it took then.
            seconds += max(time.perf_counter() - began, trial.seconds)
            steps += trial.steps
            _check_budget(arm.name, steps, number * task.visible.budget)
            best = best_so_far(best, trial)
            if number in self.runs:
                if judged is None or judged[0] is not best:
                    result = best.result()
                    judged = (best, result, result.accuracy(test))
                rows.append(_measured(number, steps, seconds, judged[1], judged[2]))
        return rows


def _where(place: Place, task: AdaptationTask) -> Row:
    return {
        "task": task.name,
        "split": place.split,
        "regime": task.visible.regime,
        "index": place.index,
        "seed": place.seed,
    }


def _measured(runs: int, steps: int, seconds: float, result: RunResult, accuracy: float) -> Row:
    return {
        "runs": runs,
        "steps": steps,
        "seconds": round(seconds, 3),
        "score": result.score if math.isfinite(result.score) else None,
        "chosen": result.chosen,
        "accuracy": accuracy,
    }


def _check_budget(arm: str, steps: int, allowed: int) -> None:
    if steps > allowed:
        raise InputError(
            f"arm {arm!r} took {steps} gradient steps: expected at most its budget of {allowed}; mend the arm"
        )


def _test_of(task: AdaptationTask) -> Domain:
    test = task.hidden.target_test
    if test is None or len(test) == 0 or not test.has_labels:
        raise InputError(f"task {task.name!r} has no labelled target_test: expected some to report accuracy; add them")
    return test


def supervised_accuracy(task: AdaptationTask, seed: int) -> float:
    """Train on all target labels and return the test accuracy: the harness's own upper bound, never an arm.

    Every label of `target_unlabelled`, cross-entropy alone, all stages, twice the budget (320 steps or more),
    and the last weights, without the guard.
    """
    labels = task.hidden.target_train_labels
    if labels is None:
        raise InputError(f"task {task.name!r} has no target_train_labels: expected them for the upper bound; add them")
    visible = replace(
        task.visible,
        budget=2 * max(task.visible.budget, SUPERVISED_STEPS),
        source_train=None,
        source_val=None,
        target_support=replace(task.visible.target_unlabelled, labels=labels),
        target_probe=None,
    )
    settings = cross_entropy_only(learning_rate=SUPERVISED_LEARNING_RATE)
    engine = SoloEngine(visible)
    run = AdaptationRun(engine)
    run.start({0: (visible, seed, settings)})
    while not run.over[0]:
        run.step(torch.tensor([KEEP]))
    test = _test_of(task)
    logits = engine.predict(torch.from_numpy(np.ascontiguousarray(test.images))[None], "target")[1][0]
    return float((logits.argmax(1).cpu().numpy() == test.labels).mean())
