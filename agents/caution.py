"""What it costs to be careful: the original kept or not, by how much gain the learned guard is asked for.

Every run is played once, and what it ended in and the original are judged once. Which of them somebody would get who
asks for so many points follows from that, by the rule that runs go by.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lepton_rl.agents.arms.source_only import ARM as SOURCE_ONLY
from lepton_rl.agents.cells import Place
from lepton_rl.agents.crew import Crew
from lepton_rl.agents.suites import MakeSuite
from lepton_rl.artifact import load_policy
from lepton_rl.domain import Domain
from lepton_rl.policy import Policy, asking_for
from lepton_rl.rollout import rollout
from lepton_rl.selection import ORIGINAL, Candidate, choose_by_gain
from lepton_rl.task import AdaptationTask

ASKED = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
ALWAYS = -100.0  # points; no guard expects less
WORSE = 1.0  # points below the original that count as harm


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run with the original and the last weights, judged.

    Attributes:
        split: Part of the suite.
        index: Number of the task.
        regime: `few-label` or `label-free`.
        has_probe: Whether the task had labelled images that were not trained on.
        scores: Visible scores of the original and of the last weights.
        expected: Points above the original that the guard expected of the last weights.
        accuracies: Of the original and the last weights, 0..100; hidden from the run.
    """

    split: str
    index: int
    regime: str
    has_probe: bool
    scores: tuple[float, float]
    expected: float
    accuracies: tuple[float, float]

    def gained(self, asked: float) -> float | None:
        """Return the points above the original for somebody who asks for so many, None where it was kept."""
        both = [Candidate(name=n, weights={}, score=s) for n, s in zip((ORIGINAL, "last"), self.scores, strict=True)]
        chosen, _ = choose_by_gain(both, self.expected, asked, has_probe=self.has_probe)
        return None if chosen.name == ORIGINAL else self.accuracies[1] - self.accuracies[0]


def ended(task: AdaptationTask, policy: Policy, place: Place) -> Ended:
    """Play a task to its end, and judge by target_test, or by target_eval where there is none; privileged."""
    hidden = task.hidden.target_test or task.hidden.target_eval
    assert isinstance(hidden, Domain)
    seed = place.lane_seed(0)
    run = rollout(task.visible, asking_for(policy, ALWAYS), seed=seed)
    original = SOURCE_ONLY.single(task.visible, seed).accuracy(hidden)
    return Ended(
        split=place.split,
        index=place.index,
        regime=task.visible.regime,
        has_probe=task.visible.target_probe is not None,
        scores=(run.history[0]["score"], run.history[-1]["score"]),
        expected=run.history[-1]["expected_gain"],
        accuracies=(100 * original, 100 * run.accuracy(hidden)),
    )


def play_all(
    make_suite: MakeSuite, policy: str, splits: Sequence[str], tasks: int, seeds: int, workers: int
) -> list[Ended]:
    """Play the first tasks of some splits, each with some seeds, those of the benchmark.

    Raises:
        InputError: If there is no such policy or split, or the policy has no guard.
        RuntimeError: If a task failed twice.
    """
    asking_for(load_policy(policy), ALWAYS)  # says at once what there is not
    suite = make_suite()
    for split in splits:
        suite.recipe(split, 0)
    wanted = [(split, index) for split in splits for index in range(tasks)]
    found: list[Ended] = []
    with Crew(workers, functools.partial(_player, make_suite, policy, seeds)) as crew:
        for number, done in enumerate(crew.run(wanted), 1):
            if done.problem is not None:
                raise RuntimeError(f"task {done.job} failed: {done.problem}")
            found += done.value
            print(f"{number} of {len(wanted)} tasks", file=sys.stderr, flush=True)
    return found


def _player(make_suite: MakeSuite, policy: str, seeds: int) -> Callable[[tuple[str, int]], list[Ended]]:
    suite, actor = make_suite(), load_policy(policy)

    def play(job: tuple[str, int]) -> list[Ended]:
        split, index = job
        task = suite.task(split, index)
        return [ended(task, actor, Place(split=split, index=index, seed=seed)) for seed in range(seeds)]

    return play


def caution_table(runs: Sequence[Ended], asked: Sequence[float] = ASKED) -> str:
    """Return points above the original, harm, and how often it was not kept, by what is asked for, as Markdown.

    Runs of a task count as one, by their mean.
    """
    regimes = ["all", *sorted({run.regime for run in runs})]
    tasks: dict[tuple[str, int], list[Ended]] = {}
    for run in runs:
        tasks.setdefault((run.split, run.index), []).append(run)
    groups = [[t for t in tasks.values() if name in ("all", t[0].regime)] for name in regimes]
    head = [f"{name} ({len(group)})" for name, group in zip(regimes, groups, strict=True)]
    lines = ["| asked for | " + " | ".join(head) + " |", "|---|" + "---|" * len(groups)]
    rows = {"nothing: always adapted": ALWAYS} | {f"{points:g}": points for points in asked}
    for name, points in rows.items():
        lines.append(f"| {name} | " + " | ".join(_cell(group, points) for group in groups) + " |")
    return "\n".join(lines)


def _cell(tasks: list[list[Ended]], asked: float) -> str:
    gains = [[run.gained(asked) for run in runs] for runs in tasks]
    points = np.array([np.mean([gain or 0.0 for gain in of_task]) for of_task in gains])
    adapted = np.mean([gain is not None for of_task in gains for gain in of_task])
    error = points.std() / len(points) ** 0.5
    return f"{points.mean():+.2f} ± {error:.2f}, {np.mean(points < -WORSE):.1%} worse, {adapted:.0%} adapted"
