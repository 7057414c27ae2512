"""A guard from experience: what weights turned out to be worth, learnt from all that was seen of them.

Every decision of every run of the experience is an example. Networks that each know seven tasks in ten are averaged
(Breiman 1996, "Bagging predictors"): tasks are few, and examples of one task are alike. A guard that is there already
may be corrected: what it got wrong is learnt, and added (Friedman 2001, "Greedy function approximation").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lepton_rl.agents.experience import Experience
from lepton_rl.errors import InputError
from lepton_rl.guard import Guard, evidence
from lepton_rl.perceptron import Layers
from lepton_rl.signals import SIGNAL_NAMES
from lepton_rl.standardise import Standardiser

MEMBERS, HIDDEN, SHARE = 8, 24, 0.7
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 1500, 512, 3e-3, 1.0
CLIP, UNIT = 15.0, 5.0  # points: accidents beyond say little of the next; the networks' outputs count in fives
HUBER = 3.0  # points beyond which an error counts linearly
MARGIN = 0.0  # points: a gain has to be expected, or shown by a probe; docs/method.md has the others
MARGINS = (-1.0, 0.0, 1.0, 2.0, 3.0, 5.0)  # looked at in the table


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Weights at decisions of runs.

    Attributes:
        seen: Evidence, `[n, EVIDENCE]`.
        worth: Points above the untouched network, `[n]`.
        task: Number of the task, int64 `[n]`.
    """

    seen: Tensor
    worth: Tensor
    task: Tensor


def evidence_of(e: Experience) -> Tensor:
    """Return the evidence after every decision of every lane, `[lanes, decisions, EVIDENCE]`."""
    now, score = e.observations[:, 1:], e.scores[:, 1:]
    return evidence(
        now=now,
        start=e.observations[:, :1].expand_as(now),
        original=e.original_signals.expand(*now.shape[:-1], -1),
        score=score,
        original_score=e.original_score.expand_as(score),
    )


def worth_of(e: Experience) -> Tensor:
    """Return the points above the untouched network after every decision of every lane, `[lanes, decisions]`."""
    return 100 * (e.accuracies[:, 1:].mean(-1) - e.original.mean())


def examples(experience: Sequence[Experience]) -> Examples:
    """Return every decision of every run."""
    seen = [evidence_of(e).flatten(0, 1) for e in experience]
    return Examples(
        seen=torch.cat(seen),
        worth=torch.cat([worth_of(e).flatten() for e in experience]).clamp(-CLIP, CLIP),
        task=torch.cat([torch.full((len(rows),), i) for i, rows in enumerate(seen)]),
    )


def learn_guard(experience: Sequence[Experience], seed: int = 0, before: Guard | None = None) -> Guard:
    """Return a guard that has seen how the runs of the experience ended.

    Args:
        experience: Of training tasks.
        seed: Of the first weights, the batches and which tasks each network knows.
        before: A guard that `learn_guard` made from other tasks, to be corrected; None = there is none.

    Raises:
        InputError: If `before` has another number of layers.
    """
    data = examples(experience)
    scale = Standardiser.of(data.seen) if before is None else before.inputs
    inputs = scale(data.seen)
    known_before = torch.zeros(len(inputs)) if before is None else before.gain(data.seen)
    rng = torch.Generator().manual_seed(seed)
    known = torch.rand(MEMBERS, len(experience), generator=rng) < SHARE
    shapes = ((MEMBERS, HIDDEN, inputs.shape[1]), (MEMBERS, HIDDEN, 1), (MEMBERS, 1, HIDDEN), (MEMBERS, 1, 1))
    first, first_bias, second, second_bias = (
        nn.Parameter(torch.randn(shape, generator=rng) / shape[-1] ** 0.5 if shape[-1] > 1 else torch.zeros(shape))
        for shape in shapes
    )
    optimizer = torch.optim.AdamW((first, first_bias, second, second_bias), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(inputs), (BATCH,), generator=rng)
        expected = UNIT * (second @ torch.tanh(first @ inputs[rows].T + first_bias) + second_bias)[:, 0]
        target = (data.worth - known_before)[rows].expand_as(expected)
        errors = nn.functional.smooth_l1_loss(expected, target, reduction="none", beta=HUBER)
        loss = (errors * known[:, data.task[rows]]).mean() * MEMBERS
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    # The mean of networks with one hidden layer is one such network, MEMBERS times as wide.
    layers: Layers = (
        (first.detach().flatten(0, 1), first_bias.detach().flatten()),
        (second.detach().flatten()[None] * (UNIT / MEMBERS), UNIT * second_bias.detach().mean().reshape(1)),
    )
    return Guard(inputs=scale, layers=layers if before is None else _sum(before.layers, layers), margin=MARGIN)


def _sum(one: Layers, other: Layers) -> Layers:
    """Return one network that gives the sum of two with a hidden layer each: their hidden units side by side."""
    if len(one) != 2:
        raise InputError(f"the guard to be corrected has {len(one)} layers: expected 2, as lepton train makes them")
    (first, first_bias), (second, bias) = one
    (more, more_bias), (further, other_bias) = other
    hidden = (torch.cat([first, more]), torch.cat([first_bias, more_bias]))
    return hidden, (torch.cat([second, further], dim=1), bias + other_bias)


def expected_gains(
    experience: Sequence[Experience], seed: int = 0, folds: int = 5, before: Guard | None = None
) -> list[Tensor]:
    """Return what guards that did not see a task expect of its runs' last weights, per task `[lanes]`."""
    found: list[Tensor] = [torch.empty(0)] * len(experience)
    for fold in np.array_split(np.random.default_rng(seed).permutation(len(experience)), folds):
        guard = learn_guard([experience[i] for i in np.setdiff1d(np.arange(len(experience)), fold)], seed, before)
        for i in fold:
            found[i] = guard.gain(evidence_of(experience[i])[:, -1])
    return found


def has_probe(e: Experience) -> bool:
    """Return whether there were labelled target images that were not trained on."""
    return bool(e.observations[0, 0, SIGNAL_NAMES.index("has_probe")] > 0)


def guard_table(
    experience: Sequence[Experience],
    plans: np.ndarray,
    expected: Sequence[Sequence[Tensor]],
    before: Guard | None = None,
) -> str:
    """Return what ways to choose between the last weights and the original give, as Markdown.

    Args:
        experience: Of training tasks.
        plans: The lane whose run is judged, for each task.
        expected: `expected_gains`, of one seed or several.
        before: The guard that was corrected, if any; it has rows of its own.
    """
    worth = np.array([float(worth_of(e)[plan, -1]) for e, plan in zip(experience, plans, strict=True)])
    score = np.array([float(e.scores[p, -1] - e.original_score) for e, p in zip(experience, plans, strict=True)])
    learnt = [np.array([float(gains[p]) for gains, p in zip(one, plans, strict=True)]) for one in expected]
    regimes = np.array([str(e.facts["regime"]) for e in experience])
    probed = (score > 0) & np.array([has_probe(e) for e in experience])
    rules = {"none: the last weights": [np.full(len(worth), True)], "visible scores": [score >= 0]}
    if before is not None:
        first = np.array([float(before.gain(evidence_of(e)[p, -1])) for e, p in zip(experience, plans, strict=True)])
        rules |= {f"uncorrected, margin {m:g}": [first > m] for m in MARGINS}
    rules |= {f"learned, margin {m:g}": [gains > m for gains in learnt] for m in MARGINS}
    rules |= {f"learned, margin {m:g}, or the probe": [(gains > m) | probed for gains in learnt] for m in MARGINS}
    rules["hindsight"] = [worth > 0]
    names = sorted(set(regimes))
    lines = ["| guard | " + " | ".join(f"{name} ({int((regimes == name).sum())})" for name in names) + " |"]
    lines.append("|---|" + "---|" * len(names))
    for rule, kept in rules.items():
        cells = []
        for name in names:
            points = np.mean([np.where(keep, worth, 0.0)[regimes == name] for keep in kept], 0)
            losses = np.mean([np.where(keep, worth, 0.0)[regimes == name] < -1 for keep in kept])
            adapted = np.mean([keep[regimes == name] for keep in kept])
            error = points.std() / len(points) ** 0.5
            cells.append(
                f"{points.mean():+.2f} ± {error:.2f}, {100 * losses:.0f} % worse, {100 * adapted:.0f} % adapted"
            )
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
