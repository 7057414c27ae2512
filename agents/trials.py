"""The trials of a search over training tasks: what is played, how a trial is judged, and where it is kept."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from lepton_rl.agents.book import Book
from lepton_rl.agents.crew import Crew
from lepton_rl.agents.search_space import Space
from lepton_rl.agents.suites import MakeSuite
from lepton_rl.agents.tuner import make_sampler
from lepton_rl.agents.validation import played_accuracy
from lepton_rl.controls import ControlSettings
from lepton_rl.meter import measuring
from lepton_rl.policy import KeepPolicy, Policy, SchedulePolicy
from lepton_rl.stopping import Unfinished
from lepton_rl.task import Regime

FREE_TRIALS = 8  # that no pruner stops
Found = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Game:
    """One policy on one training task, as it travels to a worker.

    Attributes:
        settings: What the run starts with, as JSON.
        actions: What is done at its decisions.
        index: Number of the training task.
        regime: Label regime, or None for the task's own.
    """

    settings: str
    actions: tuple[tuple[int, ...], ...]
    index: int
    regime: Regime | None

    @property
    def policy(self) -> Policy:
        """What is played."""
        settings = ControlSettings.from_json(self.settings)
        return (
            SchedulePolicy(actions=self.actions, settings=settings) if self.actions else KeepPolicy(settings=settings)
        )


@dataclass(frozen=True, kw_only=True)
class Played:
    """What came of a game.

    Attributes:
        accuracy: On `target_eval`, 0..1.
        steps: Gradient steps.
        images: Images evaluated outside of training steps.
    """

    accuracy: float
    steps: int
    images: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """A search of its own.

    Attributes:
        name: For people, and of the file of its trials.
        space: What is searched.
        tasks: Number and regime of the tasks that a trial is judged by, in their order.
        guesses: Tried first.
    """

    name: str
    space: Space
    tasks: tuple[tuple[int, Regime | None], ...]
    guesses: tuple[ControlSettings, ...]


class Search:
    """The trials of a part, those of an earlier process included.

    Args:
        part: What is searched.
        seed: Of the sampler.
        folder: Where finished trials are kept.
    """

    def __init__(self, part: Part, seed: int, folder: Path) -> None:
        self.part, self._seed = part, seed
        self._book = Book(folder / f"{part.name.replace(', ', '-')}.jsonl", part.space)

    @property
    def done(self) -> int:
        """How many trials are finished."""
        return len(self._book.finished())

    def spent(self, what: str) -> float:
        """Sum up what all trials took: `steps`, `seconds`, `images` or `games`."""
        return float(sum(trial.user_attrs["run"][what] for trial in self._book.finished()))

    def best(self) -> Found:
        """Return the best trial that was judged by all tasks."""
        best = self._book.study.best_trial
        policy = self.part.space.policy(optuna.trial.FixedTrial(best.params))
        return {
            "settings": asdict(policy.settings),
            "actions": [list(action) for action in getattr(policy, "actions", ())],
            "mean_accuracy": best.value,
        }

    def trial(self, crew: Crew) -> str:
        """Make one trial and say what came of it."""
        began, number, study = time.perf_counter(), self.done, self._book.study
        # A sampler per trial: what trial k draws does not depend on whether the search was killed in between.
        study.sampler = make_sampler("tpe", self._seed, number)
        third = max(1, len(self.part.tasks) // 3)
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=FREE_TRIALS, n_warmup_steps=third)
        if number < len(self.part.guesses):
            study.enqueue_trial(self.part.space.parameters(self.part.guesses[number]))
        asked = study.ask()
        games = self._games(self.part.space.policy(asked))
        played: list[Played] = []
        pruned = False
        while len(played) < len(games) and not pruned:
            played += _play_all(crew, games[len(played) : len(played) + third])
            asked.report(_mean(played), len(played))
            pruned = len(played) < len(games) and asked.should_prune()
        run = {
            "games": len(played),
            "steps": sum(one.steps for one in played),
            "images": sum(one.images for one in played),
            "seconds": round(time.perf_counter() - began, 3),
        }
        self._book.tell(asked, None if pruned else _mean(played), run)
        return f"{self.part.name}, trial {number}: {_mean(played):.4f} over {len(played)} tasks"

    def _games(self, policy: Policy) -> list[Game]:
        settings, actions = policy.settings.to_json(), getattr(policy, "actions", ())
        return [Game(settings=settings, actions=actions, index=i, regime=regime) for i, regime in self.part.tasks]


def _play_all(crew: Crew, games: Sequence[Game]) -> list[Played]:
    found: dict[Game, Played] = {}
    for done in crew.run(games):
        if done.problem is not None:
            raise Unfinished(
                f"training task {done.job.index} failed: {done.problem}; finished trials are kept, and the same "
                "command goes on"
            )
        found[done.job] = done.value
    return [found[game] for game in games]


def _mean(played: Sequence[Played]) -> float:
    return float(np.mean([one.accuracy for one in played]))


def player(make_suite: MakeSuite) -> Callable[[Game], Played]:
    """Return what plays a game; called in every worker."""
    suite = make_suite()

    def play(game: Game) -> Played:
        task = suite.task("train", game.index, game.regime)
        with measuring() as meter:
            accuracy = played_accuracy(game.policy, task)
        return Played(accuracy=accuracy, steps=meter.steps, images=meter.images)

    return play
