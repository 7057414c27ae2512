"""Policies: what maps observations to actions. A trained one, a fixed schedule, a rule, a random one."""

import math
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from lepton_rl import streams
from lepton_rl.controls import ACTION_SIZES, KEEP, ControlSettings, tuned_default
from lepton_rl.errors import InputError
from lepton_rl.guard import Guard
from lepton_rl.perceptron import Layers, feed_forward
from lepton_rl.standardise import Standardiser

ACTION_STREAM = 100  # apart from the engine's streams


class Policy(Protocol):
    """Anything that can steer a run.

    One that has a `guard` as well, as `NetworkPolicy` has, chooses the final weights by it.

    Attributes:
        settings: The knobs that a run under this policy starts with.
    """

    @property
    def settings(self) -> ControlSettings:
        """Knobs at the start of a run."""
        ...

    def act(self, observations: Tensor, decisions: Tensor, seeds: Tensor) -> Tensor:
        """Choose actions.

        Args:
            observations: float32 `[n, signals]`.
            decisions: Number of each run's decision, int64 `[n]`, from 0.
            seeds: Seed of each run, int64 `[n]`, for policies that draw.

        Returns:
            int64 `[n, 12]` in the order of `controls.KNOBS`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class KeepPolicy:
    """Keep every knob where it starts; with the tuned default's settings this is the strongest zero-cost rule."""

    settings: ControlSettings = field(default_factory=tuned_default)

    def act(self, observations: Tensor, decisions: Tensor, seeds: Tensor) -> Tensor:
        """Return `KEEP` for every run."""
        del decisions, seeds
        return torch.tensor(KEEP).expand(observations.shape[0], -1)


@dataclass(frozen=True, kw_only=True)
class SchedulePolicy:
    """Play back fixed actions without looking (open loop).

    Attributes:
        actions: One action vector per decision; after the last one everything is kept.
    """

    actions: tuple[tuple[int, ...], ...]
    settings: ControlSettings = field(default_factory=tuned_default)

    def act(self, observations: Tensor, decisions: Tensor, seeds: Tensor) -> Tensor:
        """Return the action that the schedule has for each run's decision."""
        del observations, seeds
        table = torch.tensor([*self.actions, KEEP])
        return table[decisions.clamp(max=len(self.actions))]


@dataclass(frozen=True, kw_only=True)
class RandomPolicy:
    """Draw every sub-action uniformly; never stops early, which would flatter or harm it by chance alone."""

    settings: ControlSettings = field(default_factory=tuned_default)

    def act(self, observations: Tensor, decisions: Tensor, seeds: Tensor) -> Tensor:
        """Return actions that depend on the run's seed and decision alone."""
        del observations
        draws = streams.uniform(seeds.cpu(), ACTION_STREAM, decisions.cpu()[:, None], len(ACTION_SIZES))[:, 0]
        actions = (draws * torch.tensor(ACTION_SIZES)).long()
        actions[:, -1] = 0
        return actions


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkPolicy:
    """A trained actor: observation normalisation, two hidden layers, the most likely sub-actions.

    Attributes:
        inputs: From the observations of the training.
        layers: Weights `[out, in]` and biases `[out]` of the layers, hidden ones followed by tanh.
        settings: The knobs that a run starts with.
        guard: Helps to choose between the final weights and the original; None = the visible scores do alone.
    """

    inputs: Standardiser
    layers: Layers
    settings: ControlSettings = field(default_factory=tuned_default)
    guard: Guard | None = None

    def logits(self, observations: Tensor) -> Tensor:
        """Return the logits of all sub-actions side by side, `[n, sum(ACTION_SIZES)]`."""
        return feed_forward(self.inputs(observations), self.layers)

    def act(self, observations: Tensor, decisions: Tensor, seeds: Tensor) -> Tensor:
        """Return the most likely sub-actions."""
        del decisions, seeds
        parts = self.logits(observations.to(self.inputs.mean)).split(ACTION_SIZES, dim=1)
        return torch.stack([part.argmax(1) for part in parts], dim=1)


def asking_for(policy: Policy, min_gain: float) -> Policy:
    """Return a policy whose guard keeps the original unless it expects so much.

    Args:
        policy: One with a learned guard.
        min_gain: Points of accuracy, -100 to 100.

    Raises:
        InputError: If the policy has no guard, or there are no such points.
    """
    points = math.nan if isinstance(min_gain, bool) or not isinstance(min_gain, int | float) else min_gain
    if not -100 <= points <= 100:
        raise InputError(f"min_gain {min_gain!r} is out of range: expected points of accuracy, -100 to 100")
    guard: Guard | None = getattr(policy, "guard", None)
    if guard is None or not is_dataclass(policy) or isinstance(policy, type):
        raise InputError(
            f"min_gain {min_gain!r} asks a learned guard, and {type(policy).__name__} has none: expected a trained "
            "policy, such as lepton-v1; leave min_gain out, or take another policy"
        )
    changes: dict[str, Any] = {"guard": replace(guard, margin=float(min_gain))}
    return replace(policy, **changes)
