"""The lanes that a training plays on: processes or fleets, normalised observations, and what happens on them."""

from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from lepton_rl.agents.sb3_vec_env import SB3VecEnv
from lepton_rl.agents.train import TrainConfig
from lepton_rl.agents.workers import WorkerVectorEnv
from lepton_rl.choice import Kind, choose_engine
from lepton_rl.controls import KEEP
from lepton_rl.envs import FineTuneVectorEnv
from lepton_rl.envs.session import SessionConfig
from lepton_rl.models import TRAIN_ARCHITECTURES
from lepton_rl.policy import RandomPolicy
from lepton_rl.signals import SIGNALS
from lepton_rl.standardise import Standardiser

STATISTICS_DECISIONS = 8  # decisions per lane that the observation statistics are taken from
REWARD_SCALE = 0.2  # points to units of about 1, for the critic


class NormalisedVecEnv(VecEnvWrapper):
    """Observations standardised by statistics fixed before training; rewards scaled."""

    def __init__(self, venv: VecEnv, inputs: Standardiser) -> None:
        super().__init__(venv)
        # Copies: a tensor that is sent to another process moves to shared memory and leaves its views dangling.
        self.inputs = Standardiser(**{name: value.clone() for name, value in vars(inputs).items()})

    def reset(self) -> np.ndarray:
        """Start every lane."""
        return self._normalised(self.venv.reset())

    def step_wait(self) -> VecEnvStepReturn:
        """Step every lane."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = self._normalised(info["terminal_observation"])
        return self._normalised(observations), rewards * REWARD_SCALE, dones, infos

    def _normalised(self, observations: Any) -> np.ndarray:  # noqa: ANN401 - SB3's union; here always an array
        out: np.ndarray = self.inputs(torch.from_numpy(np.asarray(observations))).numpy()
        return out


class Watcher(BaseCallback):
    """Counts what happens in a rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.returns: list[float] = []
        self.diverged = 0
        self._running: dict[int, float] = {}
        self._actions: deque[np.ndarray] = deque()

    def _on_step(self) -> bool:
        self._actions.append(np.array(self.locals["actions"]))
        for lane, (paid, done) in enumerate(zip(self.locals["rewards"], self.locals["dones"], strict=True)):
            self._running[lane] = self._running.get(lane, 0.0) + float(paid) / REWARD_SCALE
            if done:
                self.returns.append(self._running.pop(lane))
                self.diverged += bool(self.locals["infos"][lane].get("diverged", False))
        return True

    def moved(self, knob: int) -> float:
        """Return the share of decisions that moved a knob."""
        return float(np.mean([actions[:, knob] != KEEP[knob] for actions in self._actions]))


def faster_engine(config: TrainConfig) -> Kind:
    """Return the engine that the arguments name, or measure which is fastest."""
    if config.engine != "auto":
        return config.engine
    session = SessionConfig(suite=config.source, split=config.split, tasks=config.tasks, regime=config.regime)
    task = session.make_suite().task(config.split, 0, config.regime).visible
    kinds = min(config.n_envs, len(TRAIN_ARCHITECTURES))
    return choose_engine(task, config.n_envs, architectures=kinds, workers=config.workers, device=config.device).kind


def make_env(config: TrainConfig, **changes: Any) -> VectorEnv[Any, Any, Any]:  # noqa: ANN401
    """Return the lanes: one by one or one fleet per architecture, in worker processes or in this one."""
    arguments: dict[str, Any] = {
        "suite": config.source,
        "split": config.split,
        "tasks": config.tasks,
        "regime": config.regime,
        "action_cost": config.action_cost,
        "device": config.device,
    } | changes
    kind = faster_engine(config)
    if config.workers > 1 and kind != "fleet":
        return WorkerVectorEnv(config.n_envs, config.workers, fleet=kind == "worker-fleets", **arguments)
    return FineTuneVectorEnv(config.n_envs, fleet=kind != "workers", **arguments)


def observation_statistics(env: SB3VecEnv, seed: int) -> Standardiser:
    """Return the statistics of the observations under rare random actions; the range is all that a signal can be."""
    env.seed(seed)
    seen: list[Any] = [env.reset()]
    random = RandomPolicy()
    rng = np.random.default_rng(seed)
    for decision in range(STATISTICS_DECISIONS):
        seeds = torch.arange(env.num_envs)
        actions = random.act(torch.zeros(env.num_envs, 1), torch.full((env.num_envs,), decision), seeds).numpy()
        keep = rng.random(actions.shape) < 0.8
        observations, *_ = env.step(np.where(keep, np.array(KEEP), actions))
        seen.append(observations)
    low, high = (torch.tensor([getattr(signal, end) for signal in SIGNALS]).float() for end in ("low", "high"))
    return replace(Standardiser.of(torch.as_tensor(np.concatenate(seen))), low=low, high=high)
