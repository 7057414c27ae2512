"""One run under one policy, from the pretrained weights to the chosen ones.

`adapt()`, every arm of the benchmark and every trial of a tuner come through here, so that all of them take
the same steps, see the same data and choose their final weights by the same rule.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lepton_rl.controls import KNOBS, ControlSettings
from lepton_rl.domain import Domain
from lepton_rl.engine import Engine
from lepton_rl.guard import Guard, evidence
from lepton_rl.keeping import Keeper, Trail, arguments_of
from lepton_rl.normalisation import Side
from lepton_rl.policy import Policy
from lepton_rl.run import AdaptationRun
from lepton_rl.selection import AVERAGE, ORIGINAL, Candidate, average, choose, choose_by_gain, visible_score
from lepton_rl.signals import SIGNAL_NAMES
from lepton_rl.solo import SoloEngine
from lepton_rl.task import VisibleTask

MARGIN_PROBE, MARGIN_FREE = 0.05, 0.05

Row = dict[str, Any]
Callback = Callable[[Row], None]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run came to.

    Attributes:
        engine: Holds the chosen weights.
        chosen: Name of the chosen weights: `original`, `decision k` or `average`.
        reason: Why, in words.
        score: Visible score of the choice.
        steps: Gradient steps taken.
        seconds: Wall-clock time.
        diverged: Whether the run ended because weights became non-finite.
        history: One row per decision, row 0 the start.
    """

    engine: Engine
    chosen: str
    reason: str
    score: float
    steps: int
    seconds: float
    diverged: bool
    history: list[Row] = field(default_factory=list)

    def logits(self, images: np.ndarray) -> Tensor:
        """Predict with the chosen weights; uint8 images `[n, c, h, w]` -> `[n, k]`."""
        side: Side = "source" if self.chosen == ORIGINAL else "target"
        pixels = torch.from_numpy(np.ascontiguousarray(images))[None]
        return self.engine.predict(pixels.to(self.engine.device), side)[1][0]

    def accuracy(self, domain: Domain) -> float:
        """Return the accuracy on a labelled domain."""
        return float((self.logits(domain.images).argmax(1).cpu().numpy() == domain.labels).mean())


def rollout(
    task: VisibleTask,
    policy: Policy,
    *,
    seed: int,
    engine: Engine | None = None,
    settings: ControlSettings | None = None,
    callback: Callback | None = None,
    keeper: Keeper | None = None,
) -> RunResult:
    """Run a policy on a task, once.

    Args:
        task: What may be seen of the problem.
        policy: Steers the run.
        seed: Of the batches and of whatever the policy draws.
        engine: A one-lane engine to use; None makes a `SoloEngine`.
        settings: Knobs to start with; None = the policy's own.
        callback: Called with every row of the history as it is made; of a run that goes on, with the earlier ones too.
        keeper: Keeps the run at every decision, and knows where a killed one has to go on.
    """
    began = time.perf_counter()
    engine = engine or SoloEngine(task)
    run = AdaptationRun(engine)
    settings = settings or policy.settings
    observation = run.start({0: (task, seed, settings)})
    original, looked_at = _original(engine, run)
    guard: Guard | None = getattr(policy, "guard", None)  # a policy of somebody's own need not have one
    history = [_row(run, observation, None, original.score, None, began)]
    trail = Trail(observation=observation, candidates=[original], history=history)
    if keeper:
        trail = keeper.resume(run, trail, arguments_of(task, policy, settings, seed))
        began = time.perf_counter() - trail.history[-1]["seconds"]
    for row in trail.history:
        if callback:
            callback(row)
    while not run.over[0]:
        _decide(run, trail, policy, guard, looked_at, seed, began)
        if keeper:
            keeper.save(run, trail)
        if callback:
            callback(trail.history[-1])
    if guard is None:
        chosen, reason = choose_weights(engine, trail.candidates)
    else:
        gain = _expected_gain(guard, trail, looked_at, trail.candidates[-1].score)
        chosen, reason = choose_by_gain(trail.candidates, gain, guard.margin, has_probe=_has_probe(engine))
        engine.restore(0, chosen.weights)
    return RunResult(
        engine=engine,
        chosen=chosen.name,
        reason=reason,
        score=chosen.score,
        steps=int(engine.step_count[0]),
        seconds=time.perf_counter() - began,
        diverged=trail.diverged,
        history=trail.history,
    )


def _decide(
    run: AdaptationRun, trail: Trail, policy: Policy, guard: Guard | None, original: Tensor, seed: int, began: float
) -> None:
    """Take a decision and the gradient steps up to the next one."""
    action = policy.act(trail.observation, torch.tensor([run.decision[0]]), torch.tensor([seed]))
    trail.observation, outcome = run.step(action)
    trail.diverged = outcome.diverged[0]
    name = f"decision {run.decision[0]}"
    score = float(visible_score(run.engine, run.views)[0])
    # A learned guard chooses between the original and the last weights; the others need not be kept.
    before = trail.candidates if guard is None else trail.candidates[:1]
    trail.candidates = [*before, Candidate(name=name, weights=run.checkpoint(0), score=score)]
    gain = None if guard is None else _expected_gain(guard, trail, original, score)
    trail.history.append(_row(run, trail.observation, action, score, gain, began))


def _expected_gain(guard: Guard, trail: Trail, original: Tensor, score: float) -> float:
    """Return the points above the original that the guard expects of the last weights."""
    first = trail.history[0]["observation"]
    scores = torch.tensor([score, trail.candidates[0].score]).nan_to_num(0.0)
    seen = evidence(
        now=trail.observation[0].float().cpu(),
        start=torch.tensor([first[name] for name in SIGNAL_NAMES]),
        original=original,
        score=scores[0],
        original_score=scores[1],
    )
    return float(guard.gain(seen))


def _original(engine: Engine, run: AdaptationRun) -> tuple[Candidate, Tensor]:
    """Score and measure the untouched network, which normalises by its own, the source's, statistics."""
    views = engine.views("source")
    score = float(visible_score(engine, views)[0])
    measured = run.look_at_original(views)[0].float().cpu()
    return Candidate(name=ORIGINAL, weights=run.checkpoint(0), score=score), measured


def _has_probe(engine: Engine) -> bool:
    return bool(engine.length["target_probe"][0] > 0)


def choose_weights(engine: Engine, candidates: list[Candidate]) -> tuple[Candidate, str]:
    """Choose, and leave the engine with the chosen weights."""
    margin = MARGIN_PROBE if _has_probe(engine) else MARGIN_FREE
    late = candidates[1 + len(candidates) // 2 :]
    if len(late) > 1:
        weights = average(late)
        engine.restore(0, weights)
        score = float(visible_score(engine, engine.views())[0])
        candidates = [*candidates[:-1], Candidate(name=AVERAGE, weights=weights, score=score), candidates[-1]]
    chosen, reason = choose(candidates, margin)
    engine.restore(0, chosen.weights)
    return chosen, reason


def _row(
    run: AdaptationRun, observation: Tensor, action: Tensor | None, score: float, gain: float | None, began: float
) -> Row:
    seen = dict(zip(SIGNAL_NAMES, observation[0].tolist(), strict=True))
    return {
        "decision": run.decision[0],
        "step": int(run.engine.step_count[0]),
        "seconds": time.perf_counter() - began,
        "observation": seen,
        "action": None if action is None else dict(zip(KNOBS, action[0].tolist(), strict=True)),
        "controls": run.controls.row(0),
        "score": score,
        "expected_gain": gain,
        "probe_accuracy": seen["probe_accuracy"] if seen["has_probe"] else None,
    }
