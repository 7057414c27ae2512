"""How well a policy does on validation tasks, for choosing among policies in training."""

from collections.abc import Callable
from functools import partial

import torch

from lepton_rl.agents.crew import Crew
from lepton_rl.datasets import SuiteSource
from lepton_rl.envs.session import eval_accuracy
from lepton_rl.policy import Policy
from lepton_rl.run import AdaptationRun
from lepton_rl.solo import SoloEngine
from lepton_rl.suite import Suite
from lepton_rl.task import AdaptationTask

_suites: dict[SuiteSource, Suite] = {}


def greedy_accuracies(
    policy: Policy, *, suite: SuiteSource, tasks: int, workers: int, split: str = "validation"
) -> list[float]:
    """Play each task once and return the final accuracy on target_eval, 0..1 per task."""
    play = partial(_accuracy, policy, suite, split)
    if workers == 1:
        return [play(index) for index in range(tasks)]
    found: dict[int, float] = {}
    with Crew(workers, partial(_same, play)) as crew:  # a worker that dies costs one task a second try
        for done in crew.run(range(tasks)):
            if done.problem is not None:
                raise RuntimeError(f"validation task {done.job} failed: {done.problem}")
            found[done.job] = done.value
    return [found[index] for index in range(tasks)]


def _same(play: Callable[[int], float]) -> Callable[[int], float]:
    return play


def _accuracy(policy: Policy, suite: SuiteSource, split: str, index: int) -> float:
    if suite not in _suites:
        _suites[suite] = suite()
    return played_accuracy(policy, _suites[suite].task(split, index))


def played_accuracy(policy: Policy, task: AdaptationTask) -> float:
    """Play a task once, without the guard, and return the final accuracy on target_eval, 0..1; privileged."""
    seed = int(task.facts["seed"])
    engine = SoloEngine(task.visible)
    run = AdaptationRun(engine)
    observation = run.start({0: (task.visible, seed, policy.settings)})
    while not run.over[0]:
        action = policy.act(observation, torch.tensor([run.decision[0]]), torch.tensor([seed]))
        observation, _ = run.step(action)
    return eval_accuracy(engine, [task])[0]
