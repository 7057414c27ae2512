"""A policy from experience, to start PPO from.

Two steps. A forest learns from the signals at the start of a run what each plan of the portfolio is worth there, in
points above the tuned default; where no plan promises more than a margin the tuned default is kept. How good its
choices are is told by forests that never saw the task. Then the actor clones what the forest chooses (Pomerleau 1991,
"Efficient training of artificial neural networks for autonomous navigation"): whole runs of the played tasks, and the
first decision on many more that were only glanced at, without which a network learns little more of a forest than the
points it was trained on (Bucila et al. 2006, "Model compression"). An actor decides on every knob apart; it
learns whole decisions too, against those of the other plans, as what matters is which plan it is. Labels are smoothed,
so that PPO has something left to explore.

Learning is from the labels of target_eval, as PPO's is, on training tasks only. What is cloned sees signals alone.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from lepton_rl.agents.experience import Experience, read_experience, read_glances
from lepton_rl.agents.guarding import learn_guard
from lepton_rl.agents.plans import CHOICES, PLANS, STOPPED
from lepton_rl.controls import ACTION_SIZES, ControlSettings, tuned_default
from lepton_rl.errors import InputError
from lepton_rl.policy import NetworkPolicy
from lepton_rl.standardise import Standardiser

if TYPE_CHECKING:
    from sklearn.ensemble import ExtraTreesRegressor

CLIP = 15.0  # points; one run in a hundred is an accident that says little of the next
FOLDS = 5
TREES, LEAF, FEATURES = 200, 2, 0.3
MARGINS = (0.0, 0.25, 0.5, 1.0, 2.0)
EPOCHS, LEARNING_RATE, WEIGHT_DECAY = 600, 3e-3, 1e-3


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which plan each task of the experience gets from trees that did not see it, and what that gives.

    Attributes:
        plans: Number of the plan among `CHOICES` per task, int64 `[tasks]`; 0 = the tuned default.
        points: Above the tuned default that this choice gave, per task, clipped, `[tasks]`.
        margin: Points that a plan had to promise.
        single: Mean points of the one plan that is best over all tasks, chosen on the other folds.
        oracle: Mean points of the best plan per task, chosen on one half of target_eval and paid on the other.
    """

    plans: np.ndarray
    points: np.ndarray
    margin: float
    single: float
    oracle: float

    @property
    def gain(self) -> float:
        """Mean points above the tuned default."""
        return float(self.points.mean())

    @property
    def standard_error(self) -> float:
        """Of the gain."""
        return float(self.points.std() / len(self.points) ** 0.5)


def first_signals(e: Experience) -> np.ndarray:
    """Return what is seen before the first decision, `[signals]`."""
    return e.observations[0, 0].numpy()


def choose_plans(
    experience: Sequence[Experience],
    seed: int = 0,
    context: Callable[[Experience], np.ndarray] = first_signals,
    margins: Sequence[float] = MARGINS,
) -> Choice:
    """Learn what plans are worth where, and choose.

    Args:
        experience: Of training tasks.
        seed: Of the trees, and of which tasks are judged together.
        context: What the choice may look at.
        margins: Points that a plan may have to promise; the best of them is taken.
    """
    worth = clipped_returns(experience)
    expected, single = _cross_fitted(np.stack([context(e) for e in experience]), worth, seed)
    best = expected.argmax(1)
    rows = np.arange(len(worth))
    gains = {m: np.where(expected[rows, best] > m, worth[rows, best], 0.0) for m in margins}
    margin = max(margins, key=lambda m: float(gains[m].mean()))
    return Choice(
        plans=np.where(expected[rows, best] > margin, best, 0),
        points=gains[margin],
        margin=margin,
        single=single,
        oracle=float(np.mean([_oracle(e) for e in experience])),
    )


def _forest(context: np.ndarray, worth: np.ndarray, seed: int) -> "ExtraTreesRegressor":
    """Return trees that tell what every plan is worth."""
    from sklearn.ensemble import ExtraTreesRegressor

    forest = ExtraTreesRegressor(TREES, min_samples_leaf=LEAF, max_features=FEATURES, bootstrap=True, random_state=seed)
    return forest.fit(context, worth)


def _cross_fitted(context: np.ndarray, worth: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Return what every plan is expected to be worth on every task, and what the best single plan gave."""
    expected = np.zeros_like(worth)
    single = []
    folds = np.array_split(np.random.default_rng(seed).permutation(len(worth)), FOLDS)
    for fold in folds:
        others = np.setdiff1d(np.arange(len(worth)), fold)
        expected[fold] = _forest(context[others], worth[others], seed).predict(context[fold])
        single += worth[fold, worth[others].mean(0).argmax()].tolist()
    return expected, float(np.mean(single))


def clipped_returns(experience: Sequence[Experience]) -> np.ndarray:
    """Return what every choice gave on every task, accidents cut off, `[tasks, choices]`."""
    return np.stack([returns(e) for e in experience]).clip(-CLIP, CLIP)


def returns(e: Experience) -> np.ndarray:
    """Return the points above the tuned default of every choice on a task, `[choices]`."""
    default = e.accuracies[0].mean(-1)
    stopped = [100 * (default[plan.end(len(default) - 1)] - default[-1]) for plan in STOPPED]
    return torch.cat([e.returns, torch.stack(stopped)]).numpy()


def cloned(e: Experience, choice: int) -> tuple[Tensor, Tensor]:
    """Return what a choice saw and did on a task: observations `[decisions, signals]`, actions `[decisions, 12]`."""
    lane = choice if choice < len(PLANS) else 0  # a stopped run is the tuned default's up to there
    actions = CHOICES[choice].actions(e.actions.shape[1])
    return e.observations[lane, : len(actions)], actions


def repertoire() -> Tensor:
    """Return every decision that a plan takes, once, int64 `[decisions, 12]`."""
    decisions: Tensor = torch.unique(torch.cat([choice.actions(4) for choice in CHOICES]), dim=0)
    return decisions


def _oracle(e: Experience) -> float:
    """Return the points of the best plan, chosen on one half of target_eval and paid on the other."""
    last = e.accuracies[:, -1]
    halves = ((0, 1), (1, 0))
    return 100 * float(np.mean([last[last[:, a].argmax(), b] - last[0, b] for a, b in halves]))


def plans_for(seen: np.ndarray, experience: Sequence[Experience], margin: float, seed: int = 0) -> np.ndarray:
    """Return the plan that all of the experience recommends for first signals, `[n, signals]` -> int64 `[n]`."""
    expected = _forest(np.stack([first_signals(e) for e in experience]), clipped_returns(experience), seed).predict(
        seen
    )
    return np.where(expected.max(1) > margin, expected.argmax(1), 0)


def distil(
    experience: Sequence[Experience],
    glances: Tensor,
    margin: float,
    start: ControlSettings,
    *,
    hidden: Sequence[int] = (64, 64),
    smoothing: float = 0.07,
    whole: float = 1.0,
    seed: int = 0,
) -> NetworkPolicy:
    """Return an actor that clones the plans which the experience recommends.

    Args:
        experience: Of training tasks.
        glances: First signals of further ones, `[tasks, signals]`.
        margin: Points that a plan has to promise.
        start: The knobs that a run starts with: those that the experience started with.
        hidden: Units of the actor's hidden layers.
        smoothing: Probability that is spread over the sub-actions, and the decisions, that were not taken.
        whole: Weight of whole decisions in the loss, beside the sub-actions; 0 for ablations.
        seed: Of the trees and the first weights.
    """
    inputs = Standardiser.of(torch.cat([e.observations.flatten(0, 1) for e in experience]))
    looked_at = np.concatenate([np.stack([first_signals(e) for e in experience]), glances.numpy()])
    plans = plans_for(looked_at, experience, margin, seed).tolist()
    played, glanced = plans[: len(experience)], plans[len(experience) :]
    runs = [cloned(e, plan) for e, plan in zip(experience, played, strict=True)]
    # What a plan does first does not depend on how many decisions follow.
    runs += [(seen[None], CHOICES[plan].actions(2)[:1]) for seen, plan in zip(glances, glanced, strict=True)]
    states = inputs(torch.cat([seen for seen, _ in runs]))
    actions = torch.cat([done for _, done in runs])
    decisions = repertoire()
    decided = (actions[:, None] == decisions).all(-1).int().argmax(1)
    taken_by = torch.cat([nn.functional.one_hot(decisions[:, k], n) for k, n in enumerate(ACTION_SIZES)], 1).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(states.shape[1], hidden)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        logits = network(states)
        loss = whole * nn.functional.cross_entropy(logits @ taken_by.T, decided, label_smoothing=smoothing)
        for k, part in enumerate(logits.split(ACTION_SIZES, dim=1)):
            loss = loss + nn.functional.cross_entropy(part, actions[:, k], label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    layers = tuple((layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in linear)
    return NetworkPolicy(inputs=inputs, layers=layers, settings=start)


def distilled(
    folder: Path, *, hidden: Sequence[int], keep: float, seed: int
) -> tuple[NetworkPolicy, dict[str, float | int]]:
    """Return the policy distilled from a folder of experience, and facts for its card.

    Args:
        folder: Of `scripts/collect_experience.py`.
        hidden: Units of the actor's hidden layers.
        keep: How likely the actor takes a cloned sub-action; the rest is for PPO to explore.
        seed: Of the trees and the first weights.

    Raises:
        InputError: If the experience was made with another start than today's tuned default, or with other plans.
    """
    experience, glances = read_experience(folder), read_glances(folder)
    start = tuned_default()
    for e in experience:
        if e.facts["settings"] != asdict(start):
            raise InputError(
                f"{folder}: task {e.facts['name']} was played from other settings: expected today's tuned default; "
                "collect it again"
            )
        if len(e.actions) != len(PLANS):
            raise InputError(
                f"{folder}: task {e.facts['name']} was played under {len(e.actions)} plans: expected today's "
                f"{len(PLANS)}; collect it again"
            )
    choice = choose_plans(experience, seed)
    facts = {
        "tasks": len(experience),
        "glances": len(glances),
        "runs": sum(len(e.actions) for e in experience),
        "steps": sum(len(e.actions) * int(e.facts["budget"]) for e in experience),
        "margin": choice.margin,
        "gain": choice.gain,
        "gain_standard_error": choice.standard_error,
        "gain_of_the_best_single_plan": choice.single,
        "gain_of_the_best_plan_per_task": choice.oracle,
    }
    actor = distil(experience, glances, choice.margin, start, hidden=hidden, smoothing=1 - keep, seed=seed)
    return replace(actor, guard=learn_guard(experience, seed)), facts


def _network(signals: int, hidden: Sequence[int]) -> nn.Sequential:
    sizes = [signals, *hidden]
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], sum(ACTION_SIZES)))
