"""Population-based training: k runs side by side, the poor ones go on from the weights and knobs of the good ones.

k runs in all, whatever happens to them, so its budget is that of k runs of any other tuner. After every decision
the worst fifth (one of two to nine) copies weights and knobs of the best fifth (exploit) and moves the learning
rate and the loss weights by 1.2 or 1 / 1.2 each (explore). Optimizer moments start anew with the copied weights.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import optuna
import torch

from lepton_rl import rollout as runs_of
from lepton_rl.agents.arm import Storage, Trial, TunerArm
from lepton_rl.agents.search_space import Space
from lepton_rl.agents.tuner import WORST_SCORE
from lepton_rl.controls import KEEP, LEARNING_RATE_RANGE, WEIGHT_RANGE, ControlSettings, tuned_default
from lepton_rl.rollout import RunResult
from lepton_rl.run import AdaptationRun
from lepton_rl.selection import ORIGINAL, Candidate, visible_score
from lepton_rl.solo import SoloEngine
from lepton_rl.task import VisibleTask

FACTOR = 1.2
SHARE = 5  # the worst and the best fifth


class _Member:
    """One run of the population, with the checkpoints of the weights that it descends from."""

    def __init__(self, task: VisibleTask, seed: int, settings: ControlSettings) -> None:
        self.engine, self.settings = SoloEngine(task), settings
        self.run = AdaptationRun(self.engine)
        self.run.start({0: (task, seed, settings)})
        self.diverged = False
        self.candidates: list[Candidate] = []
        self._add(ORIGINAL, "source")

    def _add(self, name: str, side: str = "target") -> None:
        views = self.engine.views("source") if side == "source" else self.run.views
        score = float(visible_score(self.engine, views)[0])
        self.candidates.append(Candidate(name=name, weights=self.run.checkpoint(0), score=score))

    @property
    def score(self) -> float:
        last = self.candidates[-1].score
        return last if np.isfinite(last) and not self.diverged else WORST_SCORE

    def go_on(self) -> None:
        """Train until the next decision."""
        if self.run.over[0]:
            return
        _, outcome = self.run.step(torch.tensor([KEEP]))
        self.diverged = outcome.diverged[0]
        self._add(f"decision {self.run.decision[0]}")

    def become(self, other: "_Member", rng: np.random.Generator) -> None:
        """Copy another member and explore around its knobs."""
        self.engine.restore(0, other.run.checkpoint(0))
        self.candidates = list(other.candidates)
        self.settings = explored(other.settings, rng)
        self.run.controls = self.run.controls.put(0, self.settings)

    def finish(self, seconds: float) -> RunResult:
        """Let the guard choose, as in every run."""
        chosen, reason = runs_of.choose_weights(self.engine, self.candidates)
        return RunResult(
            engine=self.engine,
            chosen=chosen.name,
            reason=reason,
            score=chosen.score,
            steps=int(self.engine.step_count[0]),
            seconds=seconds,
            diverged=self.diverged,
        )


@dataclass(frozen=True, kw_only=True)
class PopulationBased(TunerArm):
    """Train a population of as many members as there are runs.

    Attributes:
        warm: Whether the first member starts with the tuned default.
    """

    warm: bool = False

    @property
    def whole(self) -> bool:
        """A population of four is not the beginning of one of eight."""
        return True

    def search(self, task: VisibleTask, seed: int, runs: int, storage: Storage | None = None) -> Iterator[Trial]:
        """Train the population and yield its members; a killed one begins anew."""
        del storage
        began = time.perf_counter()
        rng = np.random.default_rng((seed, runs))
        members = [_Member(task, seed, settings) for settings in self._beginning(task, seed, runs)]
        while not all(member.run.over[0] for member in members):
            for member in members:
                member.go_on()
            exploit(members, rng)
        seconds = (time.perf_counter() - began) / runs
        for member in members:
            result = member.finish(seconds)
            score = float(np.nan_to_num(result.score, nan=WORST_SCORE, neginf=WORST_SCORE))
            yield Trial(
                score=score,
                steps=result.steps,
                seconds=seconds,
                settings=member.settings,
                result=lambda result=result: result,  # type: ignore[misc]
            )

    def _beginning(self, task: VisibleTask, seed: int, runs: int) -> list[ControlSettings]:
        space = Space.of(task)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        drawn = [space.settings(study.ask()) for _ in range(runs)]
        return [tuned_default(), *drawn[1:]] if self.warm else drawn


def exploit(members: list[_Member], rng: np.random.Generator) -> None:
    """Let the worst members become copies of the best ones, unless the run is over."""
    alive = sorted((m for m in members if not m.run.over[0]), key=lambda m: m.score)  # stable: ties by number
    count = max(1, len(alive) // SHARE) if len(alive) > 1 else 0
    best = alive[-count:] if count else []
    for worst in alive[:count]:
        teacher = best[int(rng.integers(count))]
        if teacher.score > worst.score:
            worst.become(teacher, rng)


def explored(settings: ControlSettings, rng: np.random.Generator) -> ControlSettings:
    """Move the learning rate and every loss weight that is on by the factor or its inverse, within the ranges."""

    def moved(value: float, low: float, high: float) -> float:
        return float(np.clip(value * FACTOR ** rng.choice((-1.0, 1.0)), low, high))

    weights = {t: moved(w, *WEIGHT_RANGE) if w else 0.0 for t, w in settings.weights.items()}
    return replace(settings, learning_rate=moved(settings.learning_rate, *LEARNING_RATE_RANGE), weights=weights)


_SOURCE = "Jaderberg et al. 2017, Population based training of neural networks"
ARMS = (
    PopulationBased(name="pbt", source=_SOURCE),
    PopulationBased(name="pbt-warm", source=_SOURCE, warm=True),
)
