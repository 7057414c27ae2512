"""Runs of the experience as an environment: PPO plays thousands of episodes in the time of one real run.

An episode is a task of the experience. An action is answered from the recorded run that comes nearest to all actions
so far, by the number of differing sub-actions; these differences cost, as nothing is known of what they would have
done. Stopping is known of every recorded run. Rewards are those of `FineTuneEnv`, from the same function.

What is learnt here is no more than the experience holds. It is where PPO begins, and where its settings are compared:
tabular benchmarks do the same for tuners (Klein and Hutter 2019, "Tabular benchmarks for joint architecture and
hyperparameter optimization").
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from lepton_rl.agents.experience import Experience
from lepton_rl.controls import KEEP, KNOBS
from lepton_rl.envs.reward import reward
from lepton_rl.envs.spaces import action_space, observation_space
from lepton_rl.policy import Policy

STOP = KNOBS.index("stop")
OFF_RECORD = 0.5  # points per sub-action in which the nearest recorded run differs


class RecordedRun:
    """A run through what was recorded of a task.

    Args:
        experience: Of the task; it is not changed.

    Attributes:
        default: Accuracies of the tuned default's run, at its start and after each decision.
        ended: Whether the run is over.
        decision: How many decisions with gradient steps were taken.
        apart: In how many sub-actions the nearest recorded run differs so far.
        observation: What is seen now, `[signals]`.
        before: What was seen one decision earlier, `[signals]`; at the start, the same.
        accuracy: On target_eval now, 0..1.
    """

    def __init__(self, experience: Experience) -> None:
        self._observations = experience.observations.numpy()
        self._actions = experience.actions.numpy()
        self._accuracies = experience.accuracies.mean(-1).numpy()
        self._apart = np.zeros(len(self._actions), dtype=np.int64)
        self.default: list[float] = self._accuracies[0].tolist()
        self.ended = False
        self._move(0, 0)
        self.before = self.observation

    def seen(self, *, stacked: bool = False) -> np.ndarray:
        """Return what a policy sees now, `[signals]`; stacked, what it saw before behind it, `[2 * signals]`."""
        return np.concatenate([self.observation, self.before]) if stacked else self.observation.copy()

    def _move(self, lane: int, decision: int) -> None:
        self.decision = decision
        self.apart = int(self._apart[lane])
        self.observation: np.ndarray = self._observations[lane, decision]
        self.accuracy = float(self._accuracies[lane, decision])

    def step(self, action: np.ndarray) -> None:
        """Take an action, int64 `[12]`; a stop ends the run where it is."""
        if action[STOP]:
            self.ended = True
            return
        self._apart += (self._actions[:, self.decision] != action).sum(1)
        self.before = self.observation
        self._move(int(self._apart.argmin()), self.decision + 1)
        self.ended = self.decision == self._actions.shape[1]


class RecordedEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """`FineTuneEnv` on recorded runs; same spaces, same reward.

    Args:
        experience: Of the tasks to draw from.
        action_cost: Points per moved knob.
        off_record: Points per sub-action in which the nearest recorded run differs.
        control_variate: Whether the tuned default's gains are subtracted, as in `FineTuneEnv`; for ablations.
        stacked: Whether the observation before is seen as well; for ablations.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self,
        experience: Sequence[Experience],
        *,
        action_cost: float = 0.0,
        off_record: float = OFF_RECORD,
        control_variate: bool = True,
        stacked: bool = False,
    ) -> None:
        space = observation_space()
        self.observation_space = Box(np.tile(space.low, 2), np.tile(space.high, 2)) if stacked else space
        self.action_space = action_space()
        self._experience = experience
        self._costs = action_cost, off_record
        self._control_variate, self._stacked = control_variate, stacked

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a run on a task drawn from the environment's own generator."""
        super().reset(seed=seed)
        self.task = self._experience[int(self.np_random.integers(len(self._experience)))]
        self._run = RecordedRun(self.task)
        return self._seen(), {}

    def _seen(self) -> np.ndarray:
        return self._run.seen(stacked=self._stacked)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply one action."""
        run, (action_cost, off_record) = self._run, self._costs
        accuracy, apart, decision = run.accuracy, run.apart, run.decision + 1
        run.step(np.asarray(action))
        paid = reward(
            run.accuracy,
            accuracy,
            run.default if self._control_variate else [0.0] * len(run.default),
            decision,
            ended=run.ended,
            diverged=False,
            changed=int((action != np.array(KEEP)).sum()),
            action_cost=action_cost,
        )
        return self._seen(), paid - off_record * (run.apart - apart), run.ended, False, {}


def recorded_points(
    policy: Policy, experience: Sequence[Experience], *, stacked: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Play a policy greedily on recorded runs.

    Args:
        policy: The policy.
        experience: Of the tasks to play.
        stacked: Whether it sees the observation before as well.

    Returns:
        Points above the tuned default at the end of each run, `[tasks]`, and in how many sub-actions the recorded run
        that is paid differs from what the policy did, int64 `[tasks]`.
    """
    runs = [RecordedRun(e) for e in experience]
    while going := [run for run in runs if not run.ended]:
        seen = torch.from_numpy(np.stack([run.seen(stacked=stacked) for run in going]))
        decisions = torch.tensor([run.decision for run in going])
        actions = policy.act(seen, decisions, torch.zeros_like(decisions)).numpy()
        for run, action in zip(going, actions, strict=True):
            run.step(action)
    return np.array([100 * (run.accuracy - run.default[-1]) for run in runs]), np.array([run.apart for run in runs])
