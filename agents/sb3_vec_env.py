"""The adapter that lets Stable-Baselines3 train on a Gymnasium `VectorEnv`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from lepton_rl.errors import InputError


def lane_info(infos: dict[str, Any], lane: int) -> dict[str, Any]:
    """Cut one lane out of infos that a Gymnasium vector environment merged."""
    mine = {}
    for key, values in infos.items():
        if key.startswith("_") or not bool(infos[f"_{key}"][lane]):
            continue
        mine[key] = lane_info(values, lane) if isinstance(values, dict) else values[lane]
    return mine


class SB3VecEnv(VecEnv):
    """Present a same-step-autoreset `VectorEnv` as an SB3 `VecEnv`.

    Args:
        env: The vector environment.

    Raises:
        InputError: If its autoreset mode is not SAME_STEP, the only one SB3 understands.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise InputError(
                f"autoreset mode {mode} is not understood by SB3: expected SAME_STEP; make the env with it"
            )
        self.env = env
        self._actions: np.ndarray | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> np.ndarray:
        """Start every lane, with the seeds given by `seed` if there were any."""
        seeds = list(self._seeds)
        observations, infos = self.env.reset(seed=seeds)  # type: ignore[arg-type]
        self.reset_infos = [lane_info(infos, lane) for lane in range(self.num_envs)]
        self._reset_seeds()
        return np.array(observations, dtype=np.float32)

    def step_async(self, actions: np.ndarray) -> None:
        """Remember the actions."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step, and put each lane's last observation where SB3 looks for it."""
        assert self._actions is not None
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        done = terminated | truncated
        lanes = [lane_info(infos, lane) for lane in range(self.num_envs)]
        for lane, info in enumerate(lanes):
            info["TimeLimit.truncated"] = bool(truncated[lane] and not terminated[lane])
            if done[lane]:
                last = info.pop("final_info", {})
                info["terminal_observation"] = np.array(info.pop("final_obs"), dtype=np.float32)
                self.reset_infos[lane] = dict(info)
                lanes[lane] = info | last
        return np.array(observations, dtype=np.float32), rewards.astype(np.float32), done.copy(), lanes

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the environment's attribute once per lane."""
        if attr_name == "render_mode":
            return [None] * self.num_envs
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:  # noqa: ANN401
        """Refuse: the lanes share one environment."""
        raise NotImplementedError("the lanes of a vector environment share their attributes; make another one")

    def env_method(
        self,
        method_name: str,
        *method_args: Any,  # noqa: ANN401
        indices: VecEnvIndices = None,
        **method_kwargs: Any,  # noqa: ANN401
    ) -> list[Any]:
        """Refuse: the lanes share one environment."""
        raise NotImplementedError("the lanes of a vector environment have no methods of their own")

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Return False for every lane."""
        return [False] * len(list(self._get_indices(indices)))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed lane i with `seed + i` at the next reset."""
        return super().seed(seed)
