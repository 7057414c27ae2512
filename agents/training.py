"""The training loop behind `lepton train`: rollouts, updates, validation, logs and checkpoints."""

import csv
import importlib.util
import io
import json
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor

from lepton_rl.agents.ppo import (
    ResumablePPO,
    actor,
    favour_keep,
    keep_probabilities,
    restore_training_state,
    training_state,
)
from lepton_rl.agents.sb3_vec_env import SB3VecEnv
from lepton_rl.agents.train import TrainConfig
from lepton_rl.agents.validation import greedy_accuracies
from lepton_rl.agents.workers import WorkerVectorEnv
from lepton_rl.artifact import PolicyArtifact
from lepton_rl.cache import write_atomically
from lepton_rl.controls import KEEP, KNOBS, tuned_default
from lepton_rl.envs import FineTuneVectorEnv
from lepton_rl.errors import InputError
from lepton_rl.manifest import versions, write_manifest
from lepton_rl.policy import KeepPolicy, Policy, RandomPolicy

STATISTICS_DECISIONS = 8  # decisions per lane that the observation statistics are taken from
REWARD_SCALE = 0.2  # points to units of about 1, for the critic
MIN_STD = 0.05  # signals that hardly move in training must not explode on a task where they do


class NormalisedVecEnv(VecEnvWrapper):
    """Observations less their mean over their standard deviation, both fixed before training; rewards scaled."""

    def __init__(self, venv: SB3VecEnv, mean: Tensor, std: Tensor) -> None:
        super().__init__(venv)
        self.mean, self.std = mean.numpy(), std.numpy()

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
        out: np.ndarray = (observations - self.mean) / self.std
        return out


class Training:
    """One training, new or resumed.

    Args:
        config: What to train.

    Raises:
        InputError: If the folder holds a training with other arguments.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.arguments = {key: value for key, value in asdict(config).items() if key not in ("out", "workers")}
        self.arguments = json.loads(json.dumps(self.arguments))
        self._check_folder()
        self.env = make_env(config)
        self.inner = SB3VecEnv(self.env)
        self.rows: list[dict[str, Any]] = []
        self.best = -np.inf
        self.default_accuracies: np.ndarray | None = None
        saved = self._saved()
        if saved is None:
            mean, std = observation_statistics(self.inner, config.seed)
        else:
            mean, std = saved["observation.mean"], saved["observation.std"]
        self.mean, self.std = mean, std
        self.model = ResumablePPO(
            "MlpPolicy",
            NormalisedVecEnv(self.inner, mean, std),
            n_steps=config.n_steps,
            batch_size=config.batch_size,
            n_epochs=config.n_epochs,
            learning_rate=config.learning_rate,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            clip_range=config.clip_range,
            ent_coef=config.ent_coef,
            target_kl=config.target_kl,
            policy_kwargs={"net_arch": {"pi": list(config.hidden), "vf": list(config.hidden)}},
            seed=config.seed,
            device="cpu",
        )
        self.model.run_seed = config.seed
        favour_keep(self.model, config.keep_probability)
        formats = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
        self.model.set_logger(configure(str(config.out / "tensorboard"), formats))
        if saved is not None:
            restore_training_state(self.model, saved)

    # ----- files

    def _check_folder(self) -> None:
        manifest = self.config.out / "manifest.json"
        if manifest.is_file():
            try:
                found = json.loads(manifest.read_text()).get("arguments", {})
            except (ValueError, AttributeError):
                found = {}
            different = [k for k, v in self.arguments.items() if k != "rollouts" and found.get(k) != v]
            if different:
                raise InputError(
                    f"{self.config.out} holds a training with another {', '.join(different)}: expected the same "
                    "arguments to go on with it; choose another --out"
                )
        else:
            self.config.out.mkdir(parents=True, exist_ok=True)
            write_manifest(self.config.out, command="train", arguments=self.arguments)

    def _saved(self) -> dict[str, Tensor] | None:
        """Return the newest checkpoint with its rows, or None."""
        path = self.config.out / "checkpoint.safetensors"
        if not path.is_file():
            return None
        try:
            state = load_file(path)
        except (SafetensorError, OSError):
            raise InputError(f"{path} is damaged: expected a checkpoint; delete it to start again") from None
        text = bytes(state.pop("log").tolist()).decode()
        self.rows = [json.loads(line) for line in text.splitlines()]
        self.best = float(state.pop("best"))
        return state

    def _save(self) -> None:
        """Write one file that holds everything, so that no two files can disagree after a kill."""
        log = "\n".join(json.dumps(row) for row in self.rows).encode()
        state = training_state(self.model) | {
            "observation.mean": self.mean,
            "observation.std": self.std,
            "best": torch.tensor(self.best, dtype=torch.float64),
            "log": torch.tensor(list(log), dtype=torch.uint8),
        }
        write_atomically(self.config.out / "checkpoint.safetensors", save(state))
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in self.rows for key in row)), restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.config.out / "log.csv", text.getvalue().encode())

    def _save_policy(self) -> None:
        policy = actor(self.model, self.mean, self.std, tuned_default())
        card = {
            "name": "lepton_rl adaptation policy",
            "licence": "MIT",
            "command": command_of(self.config),
            "arguments": self.arguments,
            "rollouts": self.model.rollouts,
            "decisions": self.model.num_timesteps,
            "validation": {k: v for k, v in self.rows[-1].items() if k.startswith("validation")},
            "versions": versions(),
        }
        PolicyArtifact(policy=policy, card=card).save(self.config.out / "policy.safetensors")

    # ----- the loop

    def run(self, show: Callable[[int, dict[str, Any]], None]) -> None:
        """Train to the end."""
        show(self.model.rollouts, self.rows[-1] if self.rows else {})
        while self.model.rollouts < self.config.rollouts:
            watcher = _Watcher()
            self.model.learn(self.config.n_steps * self.config.n_envs, watcher, reset_num_timesteps=False)
            row = self._row(watcher)
            self.rows.append(row)
            if self._validation_due():
                self._validate(row)
            for key, value in row.items():
                self.model.logger.record(key, value)
            self.model.logger.dump(self.model.num_timesteps)
            self._save()
            show(self.model.rollouts, row)

    def _row(self, watcher: "_Watcher") -> dict[str, Any]:
        observations = torch.as_tensor(self.model.rollout_buffer.observations).reshape(-1, len(self.mean))
        kept = keep_probabilities(self.model, observations)
        logged = self.model.logger.name_to_value
        return {
            "rollout": self.model.rollouts,
            "decisions": self.model.num_timesteps,
            "episodes": len(watcher.returns),
            "return_over_default": float(np.mean(watcher.returns)) if watcher.returns else 0.0,
            "return_standard_error": float(np.std(watcher.returns) / max(1, len(watcher.returns)) ** 0.5),
            "diverged": watcher.diverged,
            "entropy": -float(logged.get("train/entropy_loss", 0.0)),
            "approximate_kl": float(logged.get("train/approx_kl", 0.0)),
            "explained_variance": float(logged.get("train/explained_variance", 0.0)),
            **{f"moved/{knob}": watcher.moved(i) for i, knob in enumerate(KNOBS)},
            **{f"keep/{knob}": float(p) for knob, p in zip(KNOBS, kept, strict=True)},
        }

    def _validation_due(self) -> bool:
        done = self.model.rollouts
        return done % self.config.validate_every == 0 or done == self.config.rollouts

    def _validate(self, row: dict[str, Any]) -> None:
        """Play the validation tasks greedily; keep the policy if it is the best so far."""
        if self.config.validation_tasks:
            if self.default_accuracies is None:
                self.default_accuracies = self._accuracies(KeepPolicy())
            mine = self._accuracies(actor(self.model, self.mean, self.std, tuned_default()))
            gains = 100 * (mine - self.default_accuracies)
            row["validation_return"] = float(np.mean(gains))
            row["validation_standard_error"] = float(np.std(gains) / len(gains) ** 0.5)
        else:
            row["validation_return"] = float(self.model.rollouts)
        if row["validation_return"] >= self.best:
            self.best = row["validation_return"]
            self._save_policy()

    def _accuracies(self, policy: Policy) -> np.ndarray:
        config = self.config
        return np.array(
            greedy_accuracies(
                policy, suite=config.suite, tasks=config.validation_tasks, workers=config.workers
            )
        )

    def close(self) -> None:
        """End worker processes."""
        self.inner.close()


class _Watcher(BaseCallback):
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


def command_of(config: TrainConfig) -> str:
    """Return the command that trains with these arguments; what is at its default is left out."""
    flags = []
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in ("out", "workers") and value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            flags += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return " ".join(["python scripts/train_agent.py", *flags])


def make_env(config: TrainConfig, **changes: Any) -> VectorEnv[Any, Any, Any]:  # noqa: ANN401
    """Return the lanes: worker processes or one process on a CPU, fleets on a GPU."""
    arguments: dict[str, Any] = {
        "suite": config.suite,
        "tasks": config.tasks,
        "regime": config.regime,
        "action_cost": config.action_cost,
        "device": config.device,
    } | changes
    if config.device == "cpu" and config.workers > 1:
        return WorkerVectorEnv(config.n_envs, config.workers, **arguments)
    return FineTuneVectorEnv(config.n_envs, fleet=config.device != "cpu", **arguments)


def observation_statistics(env: SB3VecEnv, seed: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the observations under rare random actions, both `[signals]`."""
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
    stacked = torch.as_tensor(np.concatenate(seen))
    return stacked.mean(0), stacked.std(0).clamp(min=MIN_STD)
