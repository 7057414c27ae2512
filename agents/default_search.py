"""Find the tuned default: the one static setting that is best over the training tasks.

It is the zero action of every policy and the opponent in every benchmark, so it deserves an honest search:
Optuna's TPE over the same knobs, on training tasks only, paid by `target_eval` as policies are.
"""

import itertools
import json
import multiprocessing
import time
from dataclasses import asdict, dataclass
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import optuna
import torch

from lepton_rl.agents.search_space import parameters_of, suggest
from lepton_rl.cache import write_atomically
from lepton_rl.controls import LOSS_TERMS, ControlSettings
from lepton_rl.envs.session import DefaultRuns, SessionConfig
from lepton_rl.suite import TaskSuite

_suite: TaskSuite | None = None


@dataclass(frozen=True, kw_only=True)
class DefaultSearchConfig:
    """Search the tuned default over training tasks."""

    out: Path
    """JSON file to write: the settings, their score and what the search cost."""
    suite: str = "digits"
    """Suite whose training part is used."""
    tasks: int = 36
    """Training tasks that a trial is judged by."""
    trials: int = 48
    """Settings to try; poor ones stop after a third of the tasks."""
    workers: int = 2
    """Processes."""
    seed: int = 0
    """Seed of the sampler."""


def search_default(config: DefaultSearchConfig) -> dict[str, object]:
    """Search, write the JSON file and return its content."""
    began = time.perf_counter()
    sampler = optuna.samplers.TPESampler(
        multivariate=True, group=True, constant_liar=False, n_startup_trials=12, seed=config.seed
    )
    pruner = optuna.pruners.MedianPruner(n_startup_trials=8, n_warmup_steps=config.tasks // 3)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    for settings in first_guesses():
        study.enqueue_trial(parameters_of(settings))
    context = multiprocessing.get_context("spawn")
    runs = 0
    judged: dict[int, ControlSettings] = {}
    with context.Pool(config.workers, _start_worker, (config.suite,)) as pool:
        for number in range(config.trials):
            trial = study.ask()
            settings = judged[trial.number] = suggest(trial)
            score, done, pruned = _judge(pool, settings, config.tasks, trial)
            runs += done
            study.tell(trial, state=optuna.trial.TrialState.PRUNED) if pruned else study.tell(trial, score)
            print(
                f"trial {number}: {score:.4f} over {done} tasks, best {study.best_value:.4f}, "
                f"{time.perf_counter() - began:.0f} s",
                flush=True,
            )
    best = judged[study.best_trial.number]
    found = {
        "settings": asdict(best),
        "mean_accuracy": study.best_value,
        "search": {
            **{k: v for k, v in asdict(config).items() if k != "out"},
            "sampler": "TPESampler(multivariate, group, 12 start-up trials)",
            "optuna": optuna.__version__,
            "runs": runs,
            "seconds": round(time.perf_counter() - began),
        },
    }
    write_atomically(config.out, (json.dumps(found, indent=2, sort_keys=True) + "\n").encode())
    return found


def first_guesses() -> list[ControlSettings]:
    """Return what a careful person would try first; the search starts from them."""
    guesses = []
    for rate, unsupervised in itertools.product((1e-3, 2e-3, 5e-3), (0.0, 0.1, 0.3)):
        weights = dict.fromkeys(LOSS_TERMS, 0.0) | {"source": 1.0}
        if unsupervised:
            weights |= dict.fromkeys(("alignment", "entropy", "diversity", "self_training"), unsupervised)
        guesses.append(ControlSettings(learning_rate=rate, weights=weights))
    return guesses


def _judge(pool: Pool, settings: ControlSettings, tasks: int, trial: optuna.Trial) -> tuple[float, int, bool]:
    """Return mean accuracy, tasks played, and whether the pruner stopped the trial."""
    scores: list[float] = []
    third = max(1, tasks // 3)
    for first in range(0, tasks, third):
        batch = [(settings, index) for index in range(first, min(first + third, tasks))]
        scores += pool.map(_play, batch, chunksize=1)
        trial.report(float(np.mean(scores)), len(scores))
        if len(scores) < tasks and trial.should_prune():
            return float(np.mean(scores)), len(scores), True
    return float(np.mean(scores)), len(scores), False


def _start_worker(suite: str) -> None:
    global _suite
    torch.set_num_threads(1)
    _suite = SessionConfig(suite=suite).make_suite()


def _play(job: tuple[ControlSettings, int]) -> float:
    settings, index = job
    assert _suite is not None
    task = _suite.task("train", index)
    accuracies = DefaultRuns(settings, "cpu").accuracies(task, int(task.facts["seed"]))
    return accuracies[-1]
