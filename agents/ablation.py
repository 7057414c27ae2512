"""What the choice of plans rests on: the same choice with something taken away or added, several seeds each.

Judged as the choice itself is, by trees that did not see a task; no run is made. What PPO adds is not in here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lepton_rl.agents.distill import (
    CLIP,
    MARGINS,
    Choice,
    choose_plans,
    clipped_returns,
    distil,
    first_signals,
    plans_for,
)
from lepton_rl.agents.experience import Experience
from lepton_rl.agents.recorded import recorded_points
from lepton_rl.controls import tuned_default
from lepton_rl.signals import SIGNALS

Context = Callable[[Experience], np.ndarray]
LEVEL = 0.3  # points: less is neither won nor lost


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to choose.

    Attributes:
        name: For people.
        context: What the choice looks at.
        share: Of the tasks that are learnt from and judged, 0..1.
        margins: As in `choose_plans`.
    """

    name: str
    context: Context = first_signals
    share: float = 1.0
    margins: Sequence[float] = MARGINS

    def choose(self, experience: Sequence[Experience], seed: int) -> Choice:
        """Choose for the tasks of one seed."""
        chosen = np.random.default_rng(seed).permutation(len(experience))[: round(self.share * len(experience))]
        return choose_plans([experience[i] for i in np.sort(chosen)], seed, self.context, self.margins)


def only(*groups: str) -> Context:
    """Look at the first signals of some groups alone."""
    kept = [i for i, signal in enumerate(SIGNALS) if signal.group in groups]
    return lambda e: first_signals(e)[kept]


def without(*groups: str) -> Context:
    """Look at the first signals without some groups."""
    return only(*({signal.group for signal in SIGNALS} - set(groups)))


def one_window_later(e: Experience) -> np.ndarray:
    """Look at the first signals and at what the tuned default's first window of steps made of them."""
    return e.observations[0, :2].flatten().numpy()


def privileged(experience: Sequence[Experience]) -> Context:
    """Look at the first signals and at all that the generator knows of a task; no policy can."""
    kinds = sorted({name for e in experience for name, _ in _shifts(e)})
    bases = sorted({str(e.facts["base"]) for e in experience})

    def look(e: Experience) -> np.ndarray:
        severities = dict.fromkeys(kinds, 0.0)
        for name, severity in _shifts(e):
            severities[name] += severity
        known = [float(e.facts["label_skew"]), float(e.facts["label_noise"]), float(e.accuracies[0, 0].mean())]
        known += [float(e.facts["base"] == base) for base in bases]
        return np.concatenate([first_signals(e), known, list(severities.values())])

    return look


def _shifts(e: Experience) -> list[tuple[str, float]]:
    found = []
    for shift in filter(None, str(e.facts["shifts"]).split("+")):
        name = shift.rstrip("0123456789.")
        found.append((name, float(shift[len(name) :])))
    return found


def variants(experience: Sequence[Experience]) -> list[Variant]:
    """Return the choice as it is, first, and what it is compared with."""
    return [
        Variant(name="all first signals"),
        Variant(name="labels or none, source data or none", context=only("availability")),
        Variant(name="the same, and facts of the task", context=only("availability", "facts")),
        Variant(name="without facts of the task", context=without("facts", "availability")),
        Variant(name="without scores and gap", context=without("scores")),
        Variant(name="history: one window later as well", context=one_window_later),
        Variant(name="privileged facts as well", context=privileged(experience)),
        Variant(name="no margin", margins=(0.0,)),
        Variant(name="half of the tasks", share=0.5),
        Variant(name="a quarter of the tasks", share=0.25),
    ]


def ablation_table(experience: Sequence[Experience], seeds: int = 5) -> str:
    """Return the points above the tuned default of every variant as a Markdown table."""
    lines = [
        f"| the choice looks at | points, mean of {seeds} seeds | lowest to highest seed | against the first row |",
        "|---|---|---|---|",
    ]
    reference: np.ndarray | None = None
    for variant in variants(experience):
        found = [variant.choose(experience, seed) for seed in range(seeds)]
        gains = [choice.gain for choice in found]
        cells = [variant.name, f"{np.mean(gains):+.2f}", f"{min(gains):+.2f} to {max(gains):+.2f}"]
        points = np.mean([choice.points for choice in found], 0) if variant.share == 1 else None
        if reference is None:
            reference = points
        cells.append("" if points is None or points is reference else _difference(points - reference))
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(_row("the best plan for everybody", [choose_plans(experience, seed).single for seed in range(seeds)]))
    return "\n".join(lines)


def _row(name: str, gains: Sequence[float]) -> str:
    return f"| {name} | {np.mean(gains):+.2f} | {min(gains):+.2f} to {max(gains):+.2f} | |"


def _difference(points: np.ndarray[Any, Any]) -> str:
    return f"{points.mean():+.2f} ± {points.std() / len(points) ** 0.5:.2f}"


def cloning_table(experience: Sequence[Experience], glances: Tensor, seeds: int = 3) -> str:
    """Return how much of the forest's choice an actor keeps that clones it, with and without glances, as Markdown.

    On tasks that neither saw, four folds. An actor may move knobs as no plan does; it is paid as the recorded run that
    differs from it in the fewest sub-actions.
    """
    worth = clipped_returns(experience)
    seen = np.stack([first_signals(e) for e in experience])
    actors: dict[str, tuple[Tensor, float]] = {
        "an actor without glances": (glances[:0], 1.0),
        "an actor with glances that learnt every knob apart": (glances, 0.0),
        "an actor with glances": (glances, 1.0),
    }
    paid: dict[str, list[np.ndarray]] = {name: [] for name in ("the forest", *actors)}
    for seed in range(seeds):
        points = {name: np.zeros(len(experience)) for name in paid}
        for fold in np.array_split(np.random.default_rng(seed).permutation(len(experience)), 4):
            others = [experience[i] for i in np.setdiff1d(np.arange(len(experience)), fold)]
            margin = choose_plans(others, seed).margin
            points["the forest"][fold] = worth[fold, plans_for(seen[fold], others, margin, seed)]
            for name, (some, whole) in actors.items():
                actor = distil(others, some, margin, tuned_default(), whole=whole, seed=seed)
                points[name][fold] = recorded_points(actor, [experience[i] for i in fold])[0].clip(-CLIP, CLIP)
        for name, values in points.items():
            paid[name].append(values)
    lines = [f"| who chooses | points, mean of {seeds} seeds | lowest to highest seed | |", "|---|---|---|---|"]
    return "\n".join([*lines, *(_row(name, [float(one.mean()) for one in found]) for name, found in paid.items())])


def strangers_table(experience: Sequence[Experience], seeds: int = 3) -> str:
    """Return what the choice gives where trees saw nothing like the task, as Markdown.

    A task is judged by trees that saw no task of its base sets, or none in which the kind of its last shift occurs; it
    is left out where this leaves nothing to learn from.
    """
    worth = clipped_returns(experience)
    seen = np.stack([first_signals(e) for e in experience])
    numbers = np.arange(len(experience))
    bases = [frozenset(str(e.facts["base"]).split("-")) for e in experience]
    kinds = [frozenset(name for name, _ in _shifts(e)) for e in experience]
    last = [frozenset(name for name, _ in _shifts(e)[-1:]) for e in experience]
    lines = ["| left out of the trees' experience | points | won | lost |", "|---|---|---|---|"]
    for name, known, judged in (("its base sets", bases, bases), ("the kind of its last shift", kinds, last)):
        points = []
        for group in filter(None, set(judged)):
            fold = numbers[[one == group for one in judged]]
            others = [e for e, one in zip(experience, known, strict=True) if not one & group]
            if others:  # else all tasks are alike in this
                points += [worth[fold, plans_for(seen[fold], others, 0.0, seed)] for seed in range(seeds)]
        if not points:
            lines.append(f"| {name} | nothing else was played | | |")
            continue
        paid = np.concatenate(points)
        error = paid.std() / (len(paid) / seeds) ** 0.5
        won, lost = (100 * (sign * paid > LEVEL).mean() for sign in (1, -1))
        lines.append(f"| {name} | {paid.mean():+.2f} ± {error:.2f} | {won:.0f} % | {lost:.0f} % |")
    return "\n".join(lines)


def control_variate(experience: Sequence[Experience]) -> tuple[float, float]:
    """Return the standard deviation of the return of a run, in points, as it is and less the tuned default's run.

    Both runs have the same task, seed and batches.
    """
    last, first = (np.stack([100 * e.accuracies[:, at].mean(-1).numpy() for e in experience]) for at in (-1, 0))
    return float((last - first)[:, 1:].std()), float((last - last[:, :1])[:, 1:].std())
