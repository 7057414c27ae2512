"""A policy from experience, to start PPO from: what is each sub-action worth, and when is it time to stop?

The return of a run above the tuned default is explained as the sum of what its moved knobs were worth where they were
moved,

    R = sum over decisions d and knobs k of A_k(s_d, a_dk),   A_k(s, keep) = 0,

with one network from signals to all A_k: the dueling form of Wang et al. 2016 ("Dueling network architectures", eq. 7)
with *keep* as the anchor, and the return decomposed over an episode as in Arjona-Medina et al. 2019 ("RUDDER"). What
stopping is worth is regressed directly, on the accuracy lost or won from there to the end. The network's outputs,
divided by a temperature and with a margin in favour of *keep*, are the logits of an actor: the same network, read as a
policy. Several networks, each taught by its own draw of the tasks, are averaged, and so moves that the data do not bear
out cancel (Breiman 1996, "Bagging predictors").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lepton_rl.agents.experience import Experience
from lepton_rl.controls import ACTION_SIZES, KEEP, KNOBS, ControlSettings
from lepton_rl.policy import NetworkPolicy
from lepton_rl.signals import SIGNALS

CLIP = 15.0  # points; one run in a hundred is an accident that says little of the next
STOP = KNOBS.index("stop")
MIN_STD = 0.05  # signals that hardly move in training must not explode on a task where they do


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """How a policy is made from experience.

    Attributes:
        members: Networks that are averaged.
        hidden: Units of a member's one hidden layer.
        epochs: Passes over the tasks.
        learning_rate: Of Adam.
        weight_decay: Of Adam, decoupled.
        margin: Points that a move must be worth before it is made.
        temperature: Points per unit of logit: how freely PPO explores from here.
        seed: Of weights, draws and order.
    """

    members: int = 8
    hidden: int = 16
    epochs: int = 60
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    margin: float = 0.5
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Episodes:
    """All lanes of all tasks, padded to the longest run.

    Attributes:
        states: Normalised observations before each decision, `[n, decisions, signals]`.
        moves: 1 where a sub-action other than keep was taken, `[n, decisions, sum of sizes]`.
        returns: Points above the default, `[n]`.
        stops: Points that stopping before each decision would have given, `[n, decisions]`.
        real: Which decisions there were, bool `[n, decisions]`.
        task: Number of each episode's task, int64 `[n]`.
    """

    states: Tensor
    moves: Tensor
    returns: Tensor
    stops: Tensor
    real: Tensor
    task: Tensor


class Member(nn.Module):
    """Signals to the worth of every sub-action; nothing is worth anything before there is evidence."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(len(SIGNALS), hidden), nn.Linear(hidden, sum(ACTION_SIZES))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Return outputs `[..., sum of sizes]`."""
        out: Tensor = self.last(torch.tanh(self.first(states)))
        return out


def distil(experience: Sequence[Experience], settings: DistillSettings, start: ControlSettings) -> NetworkPolicy:
    """Return the policy whose logits are what the sub-actions are worth.

    Args:
        experience: Of training tasks.
        settings: How to learn from it.
        start: The knobs that a run starts with: those of the experience's lane 0.
    """
    everything = torch.cat([e.observations.flatten(0, 1) for e in experience])
    mean, std = everything.mean(0), everything.std(0).clamp(min=MIN_STD)
    episodes = _episodes(experience, mean, std)
    members = [_member(episodes, settings, settings.seed * 1000 + i) for i in range(settings.members)]
    return NetworkPolicy(mean=mean, std=std, layers=_as_actor(members, settings), settings=start)


def _episodes(experience: Sequence[Experience], mean: Tensor, std: Tensor) -> _Episodes:
    longest = max(e.actions.shape[1] for e in experience)
    parts = [_padded(e, longest) for e in experience]
    states, moves, stops, real = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Episodes(
        states=((states - mean) / std).clamp(-5, 5),
        moves=moves,
        returns=torch.cat([e.returns for e in experience]).clamp(-CLIP, CLIP),
        stops=stops.clamp(-CLIP, CLIP),
        real=real,
        task=torch.cat([torch.full((len(e.returns),), i) for i, e in enumerate(experience)]),
    )


def _padded(e: Experience, longest: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lanes, decisions = e.actions.shape[:2]
    moves = torch.cat(
        [
            nn.functional.one_hot(e.actions[..., k], size) * (e.actions[..., k] != KEEP[k])[..., None]
            for k, size in enumerate(ACTION_SIZES)
        ],
        dim=-1,
    )
    accuracy = e.accuracies.mean(-1)
    pad = longest - decisions
    grow = nn.functional.pad
    return (
        grow(e.observations[:, :-1], (0, 0, 0, pad)),
        grow(moves.float(), (0, 0, 0, pad)),
        grow(100 * (accuracy[:, :-1] - accuracy[:, -1:]), (0, pad)),
        grow(torch.ones(lanes, decisions, dtype=torch.bool), (0, pad)),
    )


def _member(episodes: _Episodes, settings: DistillSettings, seed: int) -> Member:
    """Teach one network on tasks drawn with replacement."""
    rng = np.random.default_rng(seed)
    n_tasks = int(episodes.task.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Member(settings.hidden)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    drawn = rng.integers(0, n_tasks, n_tasks)
    of_task = [torch.nonzero(episodes.task == i)[:, 0] for i in range(n_tasks)]
    for _ in range(settings.epochs):
        for batch in np.array_split(rng.permutation(drawn), max(1, n_tasks // 16)):
            loss = _loss(network, episodes, torch.cat([of_task[i] for i in batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network


def _loss(network: nn.Module, episodes: _Episodes, rows: Tensor) -> Tensor:
    worth = anchored(network(episodes.states[rows]))
    explained = (worth * episodes.moves[rows]).sum((1, 2))
    moved = nn.functional.huber_loss(explained, episodes.returns[rows], delta=3.0)
    real = episodes.real[rows]
    stop = worth[..., sum(ACTION_SIZES[:STOP]) + 1][real]
    return moved + nn.functional.huber_loss(stop, episodes.stops[rows][real], delta=3.0)


def anchored(outputs: Tensor) -> Tensor:
    """Subtract keep's output from every knob's: `[..., sum of sizes]`, 0 at keep."""
    parts = outputs.split(ACTION_SIZES, dim=-1)
    return torch.cat([part - part[..., keep : keep + 1] for part, keep in zip(parts, KEEP, strict=True)], dim=-1)


@torch.no_grad()
def _as_actor(members: Sequence[Member], settings: DistillSettings) -> tuple[tuple[Tensor, Tensor], ...]:
    """Put the members side by side: one network whose logits are their mean, less the margin, over the temperature."""
    first = [(member.first.weight, member.first.bias) for member in members]
    scale = 1 / (len(members) * settings.temperature)
    margin = torch.cat(
        [
            torch.nn.functional.one_hot(torch.tensor(keep), size) * settings.margin
            for keep, size in zip(KEEP, ACTION_SIZES, strict=True)
        ]
    )
    last_weight = torch.cat([_anchored_rows(member.last.weight) for member in members], dim=1) * scale
    last_bias = sum((_anchored_rows(member.last.bias[:, None])[:, 0] for member in members), torch.zeros(()))
    return (
        (torch.cat([weight for weight, _ in first]).clone(), torch.cat([bias for _, bias in first]).clone()),
        (last_weight, last_bias * scale + margin / settings.temperature),
    )


def _anchored_rows(weight: Tensor) -> Tensor:
    return anchored(weight.T).T
