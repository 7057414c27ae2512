"""The native vector environment: N fine-tuning runs stepped as few computations."""

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from lepton_rl.controls import ControlSettings
from lepton_rl.datasets import SuiteSource
from lepton_rl.envs.halving import HalvingSession
from lepton_rl.envs.session import Session, SessionConfig
from lepton_rl.envs.spaces import action_space, observation_space
from lepton_rl.models import TRAIN_ARCHITECTURES
from lepton_rl.suite import Suite
from lepton_rl.task import Regime


class FineTuneVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """N lanes of `FineTuneEnv`, grouped into one fleet per architecture; autoreset in the same step.

    Lane i plays networks of kind `architectures[i % len(architectures)]`, is seeded with `seed + i`, and does exactly
    what a `FineTuneEnv` with that architecture and seed does, whatever the number of lanes.

    Args:
        num_envs: Number of lanes.
        suite: As in `FineTuneEnv`, also `split`, `tasks`, `regime`, `settings`, `action_cost` and `device`.
        architectures: Kinds of networks, dealt onto the lanes in turn.
        fleet: True steps the lanes of a kind as one computation, in halves where the device has too little memory for
            that; False one after the other in this process.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        *,
        suite: Suite | SuiteSource | str = "digits",
        split: str = "train",
        tasks: int = 1000,
        regime: Regime | None = None,
        architectures: tuple[str, ...] = TRAIN_ARCHITECTURES,
        settings: ControlSettings | None = None,
        action_cost: float = 0.0,
        device: str = "cpu",
        fleet: bool = True,
        render_mode: None = None,
    ) -> None:
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_observation_space = observation_space()
        self.single_action_space = action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        config = SessionConfig(
            suite=suite,
            split=split,
            tasks=tasks,
            regime=regime,
            settings=settings,
            action_cost=action_cost,
            device=device,
        )
        self._fleet = fleet
        self._groups = _group_lanes([architectures[lane % len(architectures)] for lane in range(num_envs)], fleet)
        shared = config.make_suite()
        self._sessions: list[Session | HalvingSession] = []
        for architecture, lanes in self._groups:
            defaults = self._sessions[0].defaults if self._sessions else None
            session = Session(
                config,
                lanes=len(lanes),
                fleet=fleet,
                architecture=architecture,
                suite=shared,
                defaults=defaults,
            )
            self._sessions.append(HalvingSession(session) if fleet else session)
        self._rngs = [np.random.default_rng() for _ in range(num_envs)]

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start every lane; lane i is seeded with `seed + i`, or with entry i of a list."""
        if isinstance(seed, int):
            seed = [seed + i for i in range(self.num_envs)]
        if seed is not None:
            if self._fleet:
                self._sessions[0].defaults.forget()
            for i, one in enumerate(seed):
                if one is not None:
                    self._rngs[i] = np.random.default_rng(one)
        observations = np.zeros(self.observation_space.shape or (), dtype=np.float32)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for session, (_, lanes) in zip(self._sessions, self._groups, strict=True):
            seen, described = session.start({k: self._rngs[lane] for k, lane in enumerate(lanes)})
            observations[lanes] = seen
            for lane, info in zip(lanes, described, strict=True):
                infos[lane] = info
        return observations, self._merge(infos)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step every lane; a lane that ends is reset at once, its last observation is in `infos["final_obs"]`."""
        observations = np.zeros(self.observation_space.shape or (), dtype=np.float32)
        rewards, ended = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=bool)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for session, (_, lanes) in zip(self._sessions, self._groups, strict=True):
            seen, paid, over, described = session.step(np.asarray(actions)[lanes])
            rewards[lanes], ended[lanes] = paid, over
            for k, lane in enumerate(lanes):
                infos[lane] = described[k]
            if over.any():
                last = seen
                again = {k: self._rngs[lane] for k, lane in enumerate(lanes) if over[k]}
                fresh, started = session.start(again)
                seen = np.where(over[:, None], fresh, last)
                for k in again:
                    infos[lanes[k]] = started[k] | {"final_obs": last[k].copy(), "final_info": described[k]}
            observations[lanes] = seen
        return observations, rewards, ended, np.zeros(self.num_envs, dtype=bool), self._merge(infos)

    def _merge(self, infos: list[dict[str, Any]]) -> dict[str, Any]:
        """Merge one info per lane the way Gymnasium's own vector environments do."""
        merged: dict[str, Any] = {}
        for lane, info in enumerate(infos):
            merged = self._add_info(merged, info, lane)
        return merged


def _group_lanes(architectures: list[str], fleet: bool) -> list[tuple[str, list[int]]]:
    """Return `(architecture, lanes)` of each session: one per architecture in a fleet, else one per lane."""
    if not fleet:
        return [(architecture, [lane]) for lane, architecture in enumerate(architectures)]
    return [(kind, [i for i, own in enumerate(architectures) if own == kind]) for kind in dict.fromkeys(architectures)]
