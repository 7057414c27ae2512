"""What it is worth to tell a run how frequent the classes of the target are, on tasks with and without label shift.

Played on validation tasks and judged by `target_eval`, guard included.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lepton_rl.agents.crew import Crew
from lepton_rl.agents.suites import MakeSuite
from lepton_rl.artifact import load_policy
from lepton_rl.envs.session import eval_hits
from lepton_rl.policy import Policy
from lepton_rl.rollout import rollout
from lepton_rl.run import AdaptationRun
from lepton_rl.selection import ORIGINAL
from lepton_rl.solo import SoloEngine
from lepton_rl.suite import Suite
from lepton_rl.task import AdaptationTask

SPLIT = "validation"
UNKNOWN, KNOWN, ROUGH, WRONG = "unknown", "known", "roughly known", "wrong"
ROUGHNESS = 0.5  # standard deviation of the logarithm by which rough shares are off
Prior = NDArray[np.float64] | None
Row = Mapping[str, float]


def priors_of(task: AdaptationTask) -> dict[str, Prior]:
    """Return what a run is told of the class prior, by name: the truth, something like it, or a long tail of its own.

    The truth is counted over all target images whose labels the task hides.
    """
    hidden = task.hidden
    assert hidden.target_train_labels is not None
    assert hidden.target_eval is not None
    labels = np.concatenate([hidden.target_train_labels, hidden.target_eval.labels])
    k = task.visible.n_classes
    true = np.bincount(labels, minlength=k) / len(labels)
    rng = np.random.default_rng(int(task.facts["seed"]))
    rough = true * np.exp(rng.normal(0, ROUGHNESS, k))
    wrong = rng.permutation(1 / (1.0 + np.arange(k)))
    return {UNKNOWN: None, KNOWN: true, ROUGH: rough / rough.sum(), WRONG: wrong / wrong.sum()}


def points(task: AdaptationTask, policy: Policy, prior: Prior) -> float:
    """Return the accuracy, 0..100, of the weights that a run ends with; privileged."""
    run = rollout(replace(task.visible, class_prior=prior), policy, seed=int(task.facts["seed"]))
    return _points(run.engine, task, untouched=run.chosen == ORIGINAL)


def prior_gains(make_suite: MakeSuite, policies: tuple[str, ...], tasks: int, workers: int) -> list[Row]:
    """Play as many long-tailed tasks, and half as many balanced ones, under each policy and prior.

    Returns:
        Of every task `skew`, `source-only`, and accuracies under `POLICY, PRIOR`, all 0..100.

    Raises:
        InputError: If a policy cannot be read.
        RuntimeError: If a task failed twice.
    """
    for name in policies:
        load_policy(name)  # says at once what there is not
    wanted, rows = list(_numbers(make_suite(), tasks)), []
    with Crew(workers, functools.partial(_player, make_suite, policies)) as crew:
        for done in crew.run(wanted):
            if done.problem is not None:
                raise RuntimeError(f"{SPLIT} task {done.job} failed: {done.problem}")
            rows.append(done.value)
            print(f"{len(rows)} of {len(wanted)} tasks", file=sys.stderr, flush=True)
    return rows


def prior_table(rows: list[Row], policies: tuple[str, ...]) -> str:
    """Return points above the same policy untold, and the share made worse than source-only, as Markdown."""
    parts = [("long-tailed", [r for r in rows if r["skew"] > 0]), ("balanced", [r for r in rows if r["skew"] == 0])]
    parts = [(name, part) for name, part in parts if part]
    lines = ["| | " + " | ".join(f"{name} ({len(part)})" for name, part in parts) + " |", "|---|" + "---|" * len(parts)]
    for policy in policies:
        for prior in (UNKNOWN, KNOWN, ROUGH, WRONG):
            cells = [_cell(part, f"{policy}, {prior}", f"{policy}, {UNKNOWN}") for _, part in parts]
            lines.append(f"| {policy}, {prior} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(rows: list[Row], told: str, untold: str) -> str:
    gained = np.array([row[told] - row[untold] for row in rows])
    worse = np.mean([row[told] < row["source-only"] - 1 for row in rows])
    return f"{gained.mean():+.2f} ± {gained.std() / len(rows) ** 0.5:.2f}, {100 * worse:.0f} % worse"


def _numbers(suite: Suite, tasks: int) -> Iterator[int]:
    left = {True: tasks, False: tasks // 2}
    index = 0
    while any(left.values()):
        tailed = suite.recipe(SPLIT, index).label_skew > 0
        if left[tailed]:
            left[tailed] -= 1
            yield index
        index += 1


def _player(make_suite: MakeSuite, policies: tuple[str, ...]) -> Callable[[int], Row]:
    suite = make_suite()
    actors = {name: load_policy(name) for name in policies}

    def play(index: int) -> Row:
        task = suite.task(SPLIT, index)
        untouched = SoloEngine(task.visible)
        AdaptationRun(untouched).start({0: (task.visible, 0, next(iter(actors.values())).settings)})
        row = {"skew": float(task.facts["label_skew"]), "source-only": _points(untouched, task, untouched=True)}
        for prior, told in priors_of(task).items():
            row |= {f"{name}, {prior}": points(task, actor, told) for name, actor in actors.items()}
        return row

    return play


def _points(engine: object, task: AdaptationTask, *, untouched: bool) -> float:
    assert isinstance(engine, SoloEngine)
    return 100 * float(eval_hits(engine, [task], "source" if untouched else "target")[0].mean())
