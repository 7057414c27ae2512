"""Population-based training: k runs side by side, the poor ones go on from the weights and knobs of the good ones.

k runs in all, whatever happens to them, so its budget is that of k runs of any other tuner. After every decision
the worst fifth (one of two to nine) copies weights and knobs of the best fifth (exploit) and moves the learning
rate and the loss weights by 1.2 or 1 / 1.2 each (explore). Optimizer moments start anew with the copied weights.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optuna

from lepton_rl.agents.arm import Storage, Trial, TunerArm
from lepton_rl.agents.population import Member, PopulationFile
from lepton_rl.agents.search_space import Space
from lepton_rl.agents.tuner import WORST_SCORE
from lepton_rl.controls import LEARNING_RATE_RANGE, WEIGHT_RANGE, ControlSettings, tuned_default
from lepton_rl.meter import measuring
from lepton_rl.task import VisibleTask

FACTOR = 1.2
SHARE = 5  # the worst and the best fifth


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

    @property
    def needs_files(self) -> bool:
        """Weights are no business of a database of studies."""
        return True

    def search(self, task: VisibleTask, seed: int, runs: int, storage: Storage | None = None) -> Iterator[Trial]:
        """Train the population and yield its members; a killed one goes on from the decision that was kept last."""
        began = time.perf_counter()
        rng = np.random.default_rng((seed, runs))
        kept = PopulationFile(_file(storage, runs), seed)
        with measuring() as meter:
            with measuring() as restart:
                members = [Member(task, seed, settings) for settings in self._beginning(task, seed, runs)]
                before = kept.restore(members, rng)
            resumed = bool(before["seconds"])
            remembered = [member.steps for member in members]
            while not all(member.run.over[0] for member in members):
                for member in members:
                    member.go_on()
                exploit(members, rng)
                seen = meter.images - (restart.images if resumed else 0) + before["images"]
                kept.keep(members, rng, {"seconds": before["seconds"] + time.perf_counter() - began, "images": seen})
        seconds = before["seconds"] + time.perf_counter() - began
        for number, member in enumerate(members):
            result = member.finish(seconds / runs)
            score = float(np.nan_to_num(result.score, nan=WORST_SCORE, neginf=WORST_SCORE))
            yield Trial(
                score=score,
                steps=result.steps,
                seconds=0.0 if number else seconds,  # all of them were trained before the first is told
                settings=member.settings,
                result=lambda result=result: result,  # type: ignore[misc]
                remembered=remembered[number],
                # The images of coming back are no part of the search.
                remembered_images=0 if number or not resumed else int(before["images"]) - restart.images,
            )

    def forget(self, storage: Storage | None, runs: Sequence[int]) -> None:
        """Remove the weights that were kept."""
        for number in runs:
            PopulationFile(_file(storage, number), 0).forget()

    def _beginning(self, task: VisibleTask, seed: int, runs: int) -> list[ControlSettings]:
        space = Space.of(task)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        drawn = [space.settings(study.ask()) for _ in range(runs)]
        return [tuned_default(), *drawn[1:]] if self.warm else drawn


def exploit(members: list[Member], rng: np.random.Generator) -> None:
    """Let the worst members become copies of the best ones, unless the run is over."""
    alive = sorted((m for m in members if not m.run.over[0]), key=lambda m: m.score)  # stable: ties by number
    count = max(1, len(alive) // SHARE) if len(alive) > 1 else 0
    best = alive[-count:] if count else []
    for worst in alive[:count]:
        teacher = best[int(rng.integers(count))]
        if teacher.score > worst.score:
            worst.become(teacher, explored(teacher.settings, rng))


def explored(settings: ControlSettings, rng: np.random.Generator) -> ControlSettings:
    """Move the learning rate and every loss weight that is on by the factor or its inverse, within the ranges."""

    def moved(value: float, low: float, high: float) -> float:
        return float(np.clip(value * FACTOR ** rng.choice((-1.0, 1.0)), low, high))

    weights = {t: moved(w, *WEIGHT_RANGE) if w else 0.0 for t, w in settings.weights.items()}
    return replace(settings, learning_rate=moved(settings.learning_rate, *LEARNING_RATE_RANGE), weights=weights)


def _file(storage: Storage | None, runs: int) -> Path | None:
    return storage.with_suffix(f".{runs}.safetensors") if isinstance(storage, Path) else None


_SOURCE = "Jaderberg et al. 2017, Population based training of neural networks"
ARMS = (
    PopulationBased(name="pbt", source=_SOURCE),
    PopulationBased(name="pbt-warm", source=_SOURCE, warm=True),
)
