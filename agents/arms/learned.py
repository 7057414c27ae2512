"""The policy under test, and the same policy with its eyes crossed."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from lepton_rl.agents.arm import SingleArm
from lepton_rl.artifact import load_policy
from lepton_rl.controls import ControlSettings
from lepton_rl.policy import KeepPolicy, Policy
from lepton_rl.rollout import RunResult, rollout
from lepton_rl.signals import SIGNALS
from lepton_rl.task import VisibleTask

SHUFFLE_SEED = 20170701  # fixed, so that the shuffled policy is one arm and not a family


@dataclass(frozen=True, kw_only=True)
class LearnedArm(SingleArm):
    """One run under the learned policy.

    Attributes:
        policy: The policy; the harness binds the one under test.
    """

    policy: Policy = field(default_factory=KeepPolicy)

    @property
    def needs_policy(self) -> bool:
        """It does."""
        return True

    def bind(self, policy: str | Path | Policy) -> Self:
        """Return the arm with a policy, loaded by name or path."""
        return replace(self, policy=load_policy(policy))

    def single(self, task: VisibleTask, seed: int) -> RunResult:
        """Run the policy once."""
        return rollout(task, self.policy, seed=seed)


@dataclass(frozen=True, kw_only=True)
class ShuffledPolicy:
    """A policy whose observations arrive in a fixed wrong order: the same numbers, without their meaning.

    Attributes:
        policy: Sees the shuffled observations.
    """

    policy: Policy

    @property
    def settings(self) -> ControlSettings:
        """Knobs at the start of a run."""
        return self.policy.settings

    def act(self, observations: Tensor, decisions: Tensor, seeds: Tensor) -> Tensor:
        """Shuffle, then ask the policy."""
        order = torch.from_numpy(np.random.default_rng(SHUFFLE_SEED).permutation(len(SIGNALS)))
        return self.policy.act(observations[:, order], decisions, seeds)


@dataclass(frozen=True, kw_only=True)
class ShuffledArm(LearnedArm):
    """One run under the shuffled policy: does feedback matter?"""

    def bind(self, policy: str | Path | Policy) -> Self:
        """Return the arm with the shuffled policy."""
        return replace(self, policy=ShuffledPolicy(policy=load_policy(policy)))


ARM = LearnedArm(name="policy", source="the learned policy, one run")
SHUFFLED = ShuffledArm(name="policy-shuffled", source="control: the learned policy with permuted signals")
