"""Points above the tuned default on validation tasks, for choosing among policies in training."""

import multiprocessing
from functools import partial

import torch

from lepton_rl.envs.session import DefaultRuns, SessionConfig, eval_accuracy
from lepton_rl.policy import KeepPolicy, Policy
from lepton_rl.run import AdaptationRun
from lepton_rl.solo import SoloEngine
from lepton_rl.suite import TaskSuite

_suites: dict[str, TaskSuite] = {}


def greedy_gains(policy: Policy, *, suite: str, tasks: int, workers: int, split: str = "validation") -> list[float]:
    """Play each task once and return 100 x (final accuracy - the tuned default's) on target_eval, per task."""
    play = partial(_gain, policy, suite, split)
    if workers == 1:
        return [play(index) for index in range(tasks)]
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        return pool.map(play, range(tasks), chunksize=1)


def _gain(policy: Policy, suite: str, split: str, index: int) -> float:
    if suite not in _suites:
        _suites[suite] = SessionConfig(suite=suite).make_suite()
    task = _suites[suite].task(split, index)
    seed = int(task.facts["seed"])
    default = DefaultRuns(KeepPolicy().settings, "cpu").accuracies(task, seed)[-1]
    engine = SoloEngine(task.visible)
    run = AdaptationRun(engine)
    observation = run.start({0: (task.visible, seed, policy.settings)})
    while not run.over[0]:
        action = policy.act(observation, torch.tensor([run.decision[0]]), torch.tensor([seed]))
        observation, _ = run.step(action)
    return 100 * (eval_accuracy(engine, [task])[0] - default)
