"""Optuna as a tuner of the knobs that the policy moves: ask and tell, and a memory that outlives a kill."""

import functools
import itertools
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast

import numpy as np
import optuna

from lepton_rl.agents.arm import Storage, Trial, TunerArm, best_so_far
from lepton_rl.agents.book import Book, open_book
from lepton_rl.agents.search_space import Space
from lepton_rl.controls import tuned_default
from lepton_rl.meter import measuring
from lepton_rl.policy import Policy
from lepton_rl.rollout import Row, RunResult, rollout
from lepton_rl.run import decisions_of
from lepton_rl.task import VisibleTask

STARTUP_TRIALS = 10
OPTIONS: dict[str, dict[str, Any]] = {
    "tpe": {
        "multivariate": True,
        "group": True,  # loss weights exist only while their term is on
        "constant_liar": False,  # one trial at a time: nothing to lie about
        "n_startup_trials": STARTUP_TRIALS,
        "n_ei_candidates": 24,
    },
    "random": {},
    "gp": {"n_startup_trials": STARTUP_TRIALS, "deterministic_objective": True},  # equal settings, equal results
}
SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "gp": optuna.samplers.GPSampler,
}
WORST_SCORE = -1.0  # below every visible score; for a run whose score is no number, and for a pruned one


class _Pruned(Exception):
    """A run that the pruner ended."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self.steps = steps


@dataclass(frozen=True, kw_only=True)
class OptunaTuner(TunerArm):
    """Search what a run starts with, by the same visible score that the guard uses.

    Attributes:
        sampler: `tpe`, `random` or `gp`.
        warm: Whether the first trial is the tuned default.
        schedule: Whether one later change is searched as well.
        hyperband: Whether poor trials are pruned at their decisions; the steps that this saves go into more
            trials, so that k runs stay k budgets of gradient steps.
    """

    sampler: Literal["tpe", "random", "gp"]
    warm: bool = False
    schedule: bool = False
    hyperband: bool = False

    def search(self, task: VisibleTask, seed: int, runs: int, storage: Storage | None = None) -> Iterator[Trial]:
        """Run trials; those that the storage has finished already are not run again."""
        space = Space.of(task, schedule=self.schedule, flat=self.sampler == "gp")
        trials = self._trials(task, seed, space, open_book(storage, space))
        if not self.hyperband:
            yield from itertools.islice(trials, runs)
            return
        spent = 0
        for number in range(runs):
            group = []
            while spent <= number * task.budget:  # there is room for a whole run
                group.append(next(trials))
                spent += max(1, group[-1].steps)
            yield _joined(group)

    def describe(self) -> dict[str, Any]:
        """Return what the manifest records."""
        return {
            "sampler": SAMPLERS[self.sampler].__name__,
            "options": OPTIONS[self.sampler],
            "pruner": "HyperbandPruner over decisions, reduction factor 3" if self.hyperband else "none",
            "space": "settings and one later change" if self.schedule else "settings",
            "start": "tuned default" if self.warm else "cold",
            "optuna": optuna.__version__,
        }

    def _trials(self, task: VisibleTask, seed: int, space: Space, book: Book) -> Iterator[Trial]:
        finished = book.finished()
        for kept in finished:
            yield _remembered(kept, space, task, seed)
        study = book.study
        for number in itertools.count(len(finished)):
            began = time.perf_counter()
            # A sampler per trial: what trial k draws depends on the seed, k and the trials before it, not on
            # whether the process was killed in between.
            study.sampler = make_sampler(self.sampler, seed, number)
            study.pruner = self._make_pruner(task)
            if self.warm and number == 0:
                study.enqueue_trial(space.parameters(tuned_default()))
            asked = study.ask()
            policy = space.policy(asked)
            with measuring() as meter:
                result, steps = self._run(asked, task, policy, seed)
            seconds = time.perf_counter() - began
            score = None if result is None else _finite(result.score)
            book.tell(asked, score, {"steps": steps, "seconds": round(seconds, 4), "images": meter.images})
            yield Trial(
                score=WORST_SCORE if score is None else score,
                steps=steps,
                seconds=time.perf_counter() - began,
                settings=policy.settings,
                result=functools.partial(_same, result) if result else _gone,
            )

    def _run(self, trial: optuna.Trial, task: VisibleTask, policy: Policy, seed: int) -> tuple[RunResult | None, int]:
        """Return the run, None when it was pruned, and its gradient steps."""
        if not self.hyperband:
            result = rollout(task, policy, seed=seed)
            return result, result.steps
        decisions = decisions_of(task.budget)

        def watch(row: Row) -> None:
            if 0 < row["decision"] < decisions:
                trial.report(_finite(row["score"]), row["decision"])
                if trial.should_prune():
                    raise _Pruned(row["step"])

        try:
            result = rollout(task, policy, seed=seed, callback=watch)
        except _Pruned as pruned:
            return None, pruned.steps
        return result, result.steps

    def _make_pruner(self, task: VisibleTask) -> optuna.pruners.BasePruner:
        if not self.hyperband:
            return optuna.pruners.NopPruner()
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=decisions_of(task.budget))


def make_sampler(kind: str, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of trial `number`, with a stream of its own."""
    words = np.random.SeedSequence((seed, number, zlib.crc32(kind.encode()))).generate_state(1)
    with warnings.catch_warnings():  # `group`, `multivariate` and Gaussian processes are marked experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        make = cast(Any, SAMPLERS[kind])
        return cast(optuna.samplers.BaseSampler, make(seed=int(words[0]), **OPTIONS[kind]))


def _finite(score: float) -> float:
    return float(np.nan_to_num(score, nan=WORST_SCORE, neginf=WORST_SCORE))


def _joined(group: Sequence[Trial]) -> Trial:
    """Return several trials as what one run's budget gave."""
    best = functools.reduce(best_so_far, group[1:], group[0])
    return Trial(
        score=best.score,
        steps=sum(trial.steps for trial in group),
        seconds=sum(trial.seconds for trial in group),
        settings=best.settings,
        result=best.result,
        remembered=sum(trial.remembered for trial in group),
        remembered_images=sum(trial.remembered_images for trial in group),
    )


def _remembered(trial: optuna.trial.FrozenTrial, space: Space, task: VisibleTask, seed: int) -> Trial:
    """Return a trial finished before a restart; its weights are made again if it is the best."""
    run = trial.user_attrs["run"]
    policy = space.policy(optuna.trial.FixedTrial(trial.params))
    pruned = trial.state == optuna.trial.TrialState.PRUNED
    return Trial(
        score=WORST_SCORE if pruned else float(cast(float, trial.value)),
        steps=int(run["steps"]),
        seconds=float(run["seconds"]),
        settings=policy.settings,
        result=_gone if pruned else functools.cache(functools.partial(rollout, task, policy, seed=seed)),
        remembered=int(run["steps"]),
        remembered_images=int(run["images"]),
    )


def _same(result: RunResult) -> RunResult:
    return result


def _gone() -> NoReturn:
    raise RuntimeError("a pruned run has no weights: it scores below every other and is never chosen")
