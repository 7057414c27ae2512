"""Find what the open-loop arms play: a tuned default per regime, and a tuned schedule.

Both are opponents of the policy, so they get an honest search: Optuna's TPE over training tasks only, paid by
`target_eval` as policies are, with the same pruning as the search of the tuned default.
"""

import functools
import itertools
import json
import multiprocessing
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import optuna
import torch
import tyro

from lepton_rl.agents.arms.found import PER_REGIME
from lepton_rl.agents.default_search import first_guesses
from lepton_rl.agents.search_space import Space
from lepton_rl.agents.validation import played_accuracy
from lepton_rl.cache import write_atomically
from lepton_rl.controls import tuned_default
from lepton_rl.envs.session import SessionConfig
from lepton_rl.policy import Policy
from lepton_rl.run import DECISIONS
from lepton_rl.suite import TaskSuite
from lepton_rl.task import REGIMES, Regime

Job = tuple[Policy, int, Regime | None]  # what to play, on which training task, under which regime


@dataclass(frozen=True, kw_only=True)
class OpenLoopSearchConfig:
    """Search over training tasks for a tuned default per regime, or for a tuned schedule."""

    what: Annotated[Literal["tuned-default-per-regime", "tuned-schedule"], tyro.conf.Positional]
    """The arm whose file is made."""
    out: Path | None = None
    """JSON file to write; default the arm's own, in lepton_rl/defaults."""
    suite: str = "digits"
    """Suite whose training part is used."""
    tasks: int = 36
    """Training tasks that a trial is judged by."""
    trials: int = 48
    """Trials, for each regime; poor ones stop after a third of the tasks."""
    workers: int = 2
    """Processes."""
    seed: int = 0
    """Seed of the sampler."""


def search_open_loop(config: OpenLoopSearchConfig) -> dict[str, Any]:
    """Search, write the JSON file and return its content."""
    began = time.perf_counter()
    suite = SessionConfig(suite=config.suite).make_suite()
    start = functools.partial(_start_worker, config.suite)
    with multiprocessing.get_context("spawn").Pool(config.workers, start) as pool:
        if config.what == PER_REGIME.name:
            found = _per_regime(config, suite, pool)
        else:
            space = Space(decisions=DECISIONS)
            jobs: list[tuple[int, Regime | None]] = [(index, None) for index in range(config.tasks)]
            best = _search(config, space, jobs, pool, config.what)
            found = {"settings": best["settings"], "actions": best["actions"], "mean_accuracy": best["mean_accuracy"]}
    found["search"] = {
        **{k: v for k, v in asdict(config).items() if k != "out"},
        "optuna": optuna.__version__,
        "seconds": round(time.perf_counter() - began),
    }
    out = config.out or Path(__file__).resolve().parent.parent / "lepton_rl" / "defaults" / f"{config.what}.json"
    write_atomically(out, (json.dumps(found, indent=2, sort_keys=True) + "\n").encode())
    return found


def _per_regime(config: OpenLoopSearchConfig, suite: TaskSuite, pool: Pool) -> dict[str, Any]:
    settings, accuracies = {}, {}
    for regime, source_free in itertools.product(REGIMES, (False, True)):
        name = regime + (", source-free" if source_free else "")
        jobs = [(index, regime) for index in itertools.islice(_indices(suite, regime, source_free), config.tasks)]
        best = _search(config, Space(source_free=source_free), jobs, pool, name)
        settings[name], accuracies[name] = best["settings"], best["mean_accuracy"]
    return {"settings": settings, "mean_accuracy": accuracies}


def _indices(suite: TaskSuite, regime: Regime, source_free: bool) -> Iterator[int]:
    """Return the training tasks that are source-free, or are not."""
    return (i for i in itertools.count() if suite.recipe("train", i, regime).source_free == source_free)


def _search(
    config: OpenLoopSearchConfig, space: Space, jobs: Sequence[tuple[int, Regime | None]], pool: Pool, name: str
) -> dict[str, Any]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():  # `group` and `multivariate` are marked experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            multivariate=True, group=True, constant_liar=False, n_startup_trials=12, seed=config.seed
        )
    third = max(1, len(jobs) // 3)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=8, n_warmup_steps=third)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    for settings in [tuned_default(), *first_guesses()]:
        study.enqueue_trial(space.parameters(settings))
    judged: dict[int, Policy] = {}
    for number in range(config.trials):
        trial = study.ask()
        policy = judged[trial.number] = space.policy(trial)
        scores: list[float] = []
        pruned = False
        while len(scores) < len(jobs) and not pruned:
            part = jobs[len(scores) : len(scores) + third]
            scores += pool.map(_play, [(policy, *job) for job in part], chunksize=1)
            trial.report(float(np.mean(scores)), len(scores))
            pruned = len(scores) < len(jobs) and trial.should_prune()
        study.tell(trial, None if pruned else float(np.mean(scores)), state=_state(pruned))
        print(f"{name}, trial {number}: {np.mean(scores):.4f} over {len(scores)} tasks", flush=True)
    best = judged[study.best_trial.number]
    return {
        "settings": asdict(best.settings),
        "actions": [list(action) for action in getattr(best, "actions", ())],
        "mean_accuracy": study.best_value,
    }


def _state(pruned: bool) -> optuna.trial.TrialState:
    return optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE


_suite: TaskSuite | None = None


def _start_worker(suite: str) -> None:
    global _suite
    torch.set_num_threads(1)
    _suite = SessionConfig(suite=suite).make_suite()


def _play(job: Job) -> float:
    policy, index, regime = job
    assert _suite is not None
    return played_accuracy(policy, _suite.task("train", index, regime))
