"""A population of runs side by side, and the file from which a killed one goes on."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lepton_rl import rollout as runs_of
from lepton_rl.agents.tuner import WORST_SCORE
from lepton_rl.checkpoint import Checkpoint, Checkpoints
from lepton_rl.controls import KEEP, ControlSettings
from lepton_rl.errors import InputError
from lepton_rl.rollout import RunResult
from lepton_rl.run import AdaptationRun
from lepton_rl.selection import ORIGINAL, Candidate, visible_score
from lepton_rl.solo import SoloEngine
from lepton_rl.task import VisibleTask

KEEP_SECONDS = 5.0  # of work that a kill may cost; quick populations write nothing


class Member:
    """One run of the population, with the checkpoints of the weights that it descends from.

    Args:
        task: What is adapted.
        seed: Of the batches, the same for all members.
        settings: Its knobs at the start.
    """

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
    def steps(self) -> int:
        """Gradient steps so far."""
        return int(self.engine.step_count[0])

    @property
    def score(self) -> float:
        """Visible score after the last decision."""
        last = self.candidates[-1].score
        return last if np.isfinite(last) and not self.diverged else WORST_SCORE

    def go_on(self) -> None:
        """Train until the next decision."""
        if self.run.over[0]:
            return
        _, outcome = self.run.step(torch.tensor([KEEP]))
        self.diverged = outcome.diverged[0]
        self._add(f"decision {self.run.decision[0]}")

    def become(self, other: "Member", settings: ControlSettings) -> None:
        """Copy another member's weights and history, with knobs of its own."""
        self.run.adopt(0, other.run.checkpoint(0))
        self.candidates = list(other.candidates)
        self.settings = settings
        self.run.controls = self.run.controls.put({0: settings})

    def finish(self, seconds: float) -> RunResult:
        """Let the guard choose, as in every run."""
        chosen, reason = runs_of.choose_weights(self.engine, self.candidates)
        return RunResult(
            engine=self.engine,
            chosen=chosen.name,
            reason=reason,
            score=chosen.score,
            steps=self.steps,
            seconds=seconds,
            diverged=self.diverged,
        )


class PopulationFile:
    """Keeps a population after a decision, at most every `KEEP_SECONDS`.

    Args:
        path: The file; None keeps nothing.
        seed: Of the search.
    """

    def __init__(self, path: Path | None, seed: int) -> None:
        self._files = None if path is None else Checkpoints(path, "population")
        self._seed = seed
        self._saved = time.monotonic()

    def keep(self, members: Sequence[Member], rng: np.random.Generator, spent: dict[str, float]) -> None:
        """Write the population, unless that was done a moment ago.

        Args:
            members: All of them.
            rng: Of the search.
            spent: `seconds` and `images` until now.
        """
        if self._files is None or time.monotonic() - self._saved < KEEP_SECONDS:
            return
        tensors: dict[str, Tensor] = {}
        told = []
        kept: dict[int, int] = {}  # members that descend from each other share weights
        for i, member in enumerate(members):
            for one in member.candidates:
                number = kept.setdefault(id(one.weights), len(kept))
                tensors |= {f"weights.{number}.{name}": value for name, value in one.weights.items()}
            tensors |= {f"state.{i}.{name}": value for name, value in member.run.state().items()}
            tensors[f"scores.{i}"] = torch.tensor([one.score for one in member.candidates], dtype=torch.float64)
            names = [[one.name, kept[id(one.weights)]] for one in member.candidates]
            told.append({"candidates": names, "settings": asdict(member.settings), "diverged": member.diverged})
        facts = {"members": told, "seed": self._seed, "rng": rng.bit_generator.state, "spent": spent}
        self._files.path.parent.mkdir(parents=True, exist_ok=True)
        self._files.save(Checkpoint(tensors=tensors, facts=facts))
        self._saved = time.monotonic()

    def restore(self, members: Sequence[Member], rng: np.random.Generator) -> dict[str, float]:
        """Put fresh members where they were when they were kept.

        Returns:
            What was `spent` until then, zeros if nothing was kept.

        Raises:
            InputError: If the file is damaged, or of another search.
        """
        found = None if self._files is None else self._files.load()
        if found is None:
            return {"seconds": 0.0, "images": 0}
        told = found.facts["members"]
        if found.facts["seed"] != self._seed or len(told) != len(members):
            raise InputError(f"{self._files and self._files.path} is of another search: delete it to begin anew")
        for i, (member, facts) in enumerate(zip(members, told, strict=True)):
            _restore(member, i, facts, found)
        rng.bit_generator.state = found.facts["rng"]
        spent: dict[str, float] = found.facts["spent"]
        return spent

    def forget(self) -> None:
        """Remove the file."""
        if self._files is not None:
            for path in (self._files.path, self._files.previous):
                path.unlink(missing_ok=True)


def _restore(member: Member, number: int, facts: dict[str, Any], found: Checkpoint) -> None:
    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in found.tensors.items() if k.startswith(prefix)}

    scores = found.tensors[f"scores.{number}"].tolist()
    member.candidates = [
        Candidate(name=name, weights=under(f"weights.{which}."), score=score)
        for (name, which), score in zip(facts["candidates"], scores, strict=True)
    ]
    member.settings, member.diverged = ControlSettings(**facts["settings"]), bool(facts["diverged"])
    member.run.load_state(under(f"state.{number}."), [member.candidates[-1].weights])
