"""Run an arm under the meter and evaluate what it chose: what an arm says of itself is never taken for granted."""

import math
import time
from typing import Any

from lepton_rl.agents.arm import SingleArm, Storage, Trial, TunerArm, best_so_far
from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.meter import Meter, measuring
from lepton_rl.rollout import RunResult
from lepton_rl.task import AdaptationTask

Row = dict[str, Any]


def judged(arm: SingleArm, task: AdaptationTask, seed: int) -> Row:
    """Run an arm of one run and return its row, without what all rows of a cell have in common.

    Raises:
        InputError: If the arm took more gradient steps than it may, or than it says.
    """
    began = time.perf_counter()
    with measuring() as meter:
        result = arm.single(task.visible, seed)
    seconds = time.perf_counter() - began
    steps = _spent(arm.name, result.steps, meter, task.visible.budget)
    return _measured(1, steps, seconds, meter.images, result, result.accuracy(test_of(task)))


def tuned(
    arm: TunerArm, task: AdaptationTask, seed: int, runs: tuple[int, ...], storage: Storage | None = None
) -> list[Row]:
    """Search, and evaluate the trial that the visible score prefers after every number of runs asked for.

    Args:
        arm: The tuner.
        task: Its hidden part is read here alone.
        seed: Of the cell.
        runs: Numbers of runs, ascending.
        storage: Where the search keeps its state.

    Raises:
        InputError: If the arm ended early, or took more gradient steps than it may, or than it says.
    """
    trials = arm.search(task.visible, seed, max(runs), storage)
    best: Trial | None = None
    evaluated: tuple[Trial, RunResult, float] | None = None  # each reported number is evaluated once
    total, said, remembered = Meter(), 0, 0
    seconds, images, rows = 0.0, 0, []
    for number in range(1, max(runs) + 1):
        began = time.perf_counter()
        with measuring() as meter:
            trial = next(trials, None)
        if trial is None:
            raise InputError(f"arm {arm.name!r} ended before run {number}: expected {max(runs)} runs")
        # A trial remembered from before a restart took the time that it took then.
        seconds += max(time.perf_counter() - began, trial.seconds)
        total.engine_steps += meter.engine_steps
        total.optimizer_steps += meter.optimizer_steps
        said, remembered = said + trial.steps, remembered + trial.remembered
        images += meter.images + trial.remembered_images
        best = best_so_far(best, trial)
        if number in runs:
            # A search of many runs at once may be ahead of what it says; it may never be ahead of its budget.
            allowed = (max(runs) if arm.whole else number) * task.visible.budget
            steps = max(said, remembered + total.steps)
            _check_budget(arm.name, steps, allowed)
            if evaluated is None or evaluated[0] is not best:
                result = _weights_of(arm.name, best)
                evaluated = (best, result, result.accuracy(test_of(task)))
            rows.append(_measured(number, steps, seconds, images, evaluated[1], evaluated[2]))
    if remembered + total.steps > said:
        _accuse(arm.name, said, remembered + total.steps)
    return rows


def test_of(task: AdaptationTask) -> Domain:
    """Return the labelled images of the final report.

    Raises:
        InputError: If there are none.
    """
    test = task.hidden.target_test
    if test is None or len(test) == 0 or not test.has_labels:
        raise InputError(f"task {task.name!r} has no labelled target_test: expected some to report accuracy; add them")
    return test


def _weights_of(arm: str, trial: Trial) -> RunResult:
    """Return a trial's run; only one from before a restart may be run again."""
    with measuring() as meter:
        result = trial.result()
    if meter.steps > trial.remembered:
        _accuse(arm, trial.steps, trial.steps + meter.steps)
    return result


def _spent(arm: str, said: int, meter: Meter, allowed: int) -> int:
    steps = max(said, meter.steps)
    _check_budget(arm, steps, allowed)
    if meter.steps > said:
        _accuse(arm, said, meter.steps)
    return steps


def _check_budget(arm: str, steps: int, allowed: int) -> None:
    if steps > allowed:
        raise InputError(
            f"arm {arm!r} took {steps} gradient steps: expected at most its budget of {allowed}; mend the arm"
        )


def _accuse(arm: str, said: int, counted: int) -> None:
    raise InputError(
        f"arm {arm!r} says that it took {said} gradient steps, the meter counted {counted}: expected every step of "
        "every run, those of discarded ones too; mend the arm"
    )


def _measured(runs: int, steps: int, seconds: float, images: int, result: RunResult, accuracy: float) -> Row:
    return {
        "runs": runs,
        "steps": steps,
        "seconds": round(seconds, 3),
        "images": images,
        "score": result.score if math.isfinite(result.score) else None,
        "chosen": result.chosen,
        "accuracy": accuracy,
    }
