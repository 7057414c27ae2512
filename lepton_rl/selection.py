"""The guard: choose the final weights by what can be seen, and keep the original where nothing shows a gain."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lepton_rl import validators
from lepton_rl.engine import Engine
from lepton_rl.views import Views

ORIGINAL = "original"
AVERAGE = "average"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Weights that a run could end with.

    Attributes:
        name: `original`, `decision k`, or `average`.
        weights: Snapshot of a lane; for `original` the untouched weights.
        score: Visible score, higher is better.
    """

    name: str
    weights: dict[str, Tensor]
    score: float


def visible_score(engine: Engine, views: Views) -> Tensor:
    """Score every lane by what policies and tuners may see; higher is better, `[lanes]`.

    With a probe: its accuracy, ties broken by its loss. Without: information maximisation (Liang et al. 2020),
    which rewards sure predictions only together with diverse ones, or with such as a known class prior says.
    """
    has_probe = engine.length["target_probe"] > 0
    free = validators.information_maximisation(
        target_logits=views.target.logits, n_classes=engine.n_classes, log_prior=engine.log_prior[:, None]
    )
    accuracy = validators.probe_accuracy(probe_logits=views.probe.logits, probe_labels=views.probe.labels)
    loss = -validators.negative_probe_loss(probe_logits=views.probe.logits, probe_labels=views.probe.labels)
    return torch.where(has_probe, accuracy - 0.01 * torch.tanh(loss), free)


def average(candidates: list[Candidate]) -> dict[str, Tensor]:
    """Average weights and statistics of checkpoints (Izmailov et al. 2018, "Averaging weights")."""
    return {
        name: torch.stack([candidate.weights[name] for candidate in candidates]).mean(0)
        for name in candidates[0].weights
    }


def choose_by_gain(
    candidates: list[Candidate], gain: float, margin: float, *, has_probe: bool
) -> tuple[Candidate, str]:
    """Choose between the last weights and the original by what a learned guard expects, and by a probe, if any.

    The original comes back when all witnesses are for it. Without labels the guard is the only one: the visible score
    is what the run was trained to raise. It is the only one, too, where more than some gain is asked for: that a
    handful of labelled images cannot show.

    Args:
        candidates: The original first, the last weights at the end.
        gain: Points expected of the last weights above the original.
        margin: Points that it takes; above 0 the guard alone decides.
        has_probe: Whether labelled images that were not trained on made the scores.

    Returns:
        The choice, and why, in words.
    """
    original, last = candidates[0], candidates[-1]
    said = f"learned guard: {gain:+.1f} points of accuracy expected of {last.name}"
    said += f", {margin:g} asked for" if margin else ""
    if gain > margin:
        return last, said
    if margin > 0:
        return original, said
    if has_probe and last.score > original.score:
        return (
            last,
            f"{said}, but the labelled images show a gain: score {last.score:.3f}, original {original.score:.3f}",
        )
    return original, f"{said}" + (", and the labelled images show no gain" if has_probe else "")


def choose(candidates: list[Candidate], margin: float) -> tuple[Candidate, str]:
    """Choose the final weights.

    The last candidate is the one to beat: an earlier checkpoint must be better by `margin`, because the best
    of many noisy scores is mostly noise. The original comes back when it scores at least as well as the choice.

    Args:
        candidates: The original first, then in the order of the run, the average before the last checkpoint.
        margin: By how much an earlier checkpoint must be better than the last.

    Returns:
        The choice, and why, in words.
    """
    original, *adapted = candidates
    if not adapted:
        return original, "the run was stopped before anything changed"
    last = adapted[-1]
    best = max(adapted, key=lambda candidate: candidate.score)
    chosen = best if best.score > last.score + margin else last
    if original.score > chosen.score:
        return original, f"visible score: original {original.score:.3f}, {chosen.name} only {chosen.score:.3f}"
    return chosen, f"visible score: {chosen.name} {chosen.score:.3f}, original {original.score:.3f}"
