"""The training loop behind `lepton train`: rollouts, updates, validation, logs and checkpoints."""

import csv
import functools
import io
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields, replace
from typing import Any, get_args

import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from lepton_rl.agents.distill import distilled
from lepton_rl.agents.experience import read_experience
from lepton_rl.agents.ppo import (
    ResumablePPO,
    actor,
    favour_keep,
    keep_probabilities,
    rehearse,
    restore_training_state,
    start_from,
    training_state,
)
from lepton_rl.agents.recorded import RecordedEnv, recorded_points
from lepton_rl.agents.sb3_vec_env import SB3VecEnv
from lepton_rl.agents.tracking import tracked
from lepton_rl.agents.train import TrainConfig
from lepton_rl.agents.training_env import NormalisedVecEnv, Watcher, faster_engine, make_env, observation_statistics
from lepton_rl.agents.validation import greedy_accuracies
from lepton_rl.agents.workers import WorkerDied
from lepton_rl.artifact import PolicyArtifact, inputs_of, named_inputs
from lepton_rl.cache import remove_unfinished, write_atomically
from lepton_rl.checkpoint import Checkpoint, Checkpoints
from lepton_rl.choice import Kind
from lepton_rl.controls import KNOBS, tuned_default
from lepton_rl.datasets import contents
from lepton_rl.errors import InputError
from lepton_rl.guard import Guard
from lepton_rl.lock import LOCK
from lepton_rl.manifest import MANIFEST, versions, write_manifest
from lepton_rl.policy import KeepPolicy, NetworkPolicy, Policy
from lepton_rl.stopping import StopRequest

PLACES = ("out", "workers", "data", "experience", "wandb")  # arguments that say where the work is done, not what
DEATHS = 2  # worker deaths in one rollout that are not the machine's mishap any more

Say = Callable[[str], None]
Show = Callable[[int, dict[str, Any]], None]


class Training:
    """One training, new or resumed.

    A checkpoint holds everything: networks, optimizer, log and the best policy so far. `log.csv` and
    `policy.safetensors` are written from it, so that no kill between two writes can make them disagree.

    Args:
        config: What to train.
        say: Called with lines that a person should read on the way.

    Raises:
        InputError: If the folder holds a training with other arguments.
    """

    def __init__(self, config: TrainConfig, say: Say = lambda _: None) -> None:
        # Fixed once: fleets and workers agree up to rounding only, and a resumed training must agree to the bit.
        config = replace(config, engine=self._recorded_engine(config) or faster_engine(config))
        self.config, self._say = config, say
        arguments = {key: value for key, value in asdict(config).items() if key not in PLACES}
        if config.experience is not None:
            arguments["experience"] = contents(config.experience)
        self.arguments: dict[str, Any] = json.loads(json.dumps(arguments))
        self._check_folder()
        self.files = Checkpoints(config.out / "checkpoint.safetensors", "training", say)
        self.rows: list[dict[str, Any]] = []
        self.best = -np.inf
        self.policy_file = b""
        self.guard: Guard | None = None
        self.taught: dict[str, Any] = {}  # by experience, before the first rollout
        self.default_accuracies: np.ndarray | None = None
        saved = self._saved()
        self.logger = tracked(config.out, config.wandb, self.arguments, say)
        self.inner = SB3VecEnv(make_env(config))
        first: NetworkPolicy | None = None
        if saved is not None:
            self.inputs = inputs_of(saved, "observation")
        elif config.experience is not None:
            first, self.taught = distilled(
                config.experience, hidden=config.hidden, keep=config.keep_probability, seed=config.seed
            )
            self.inputs, self.guard = first.inputs, first.guard
        else:
            self.inputs = observation_statistics(self.inner, config.seed)
        self.model = self._make_model(saved)
        if first is not None:
            start_from(self.model, first)
            self._rehearse()

    def _rehearse(self) -> None:
        """Let PPO play recorded runs; a training that is killed before its first validation does it again."""
        config = self.config
        if config.rehearsals and config.experience is not None:
            played = read_experience(config.experience)
            lanes = functools.partial(RecordedEnv, played, action_cost=config.action_cost)
            rehearse(self.model, NormalisedVecEnv(DummyVecEnv([lanes] * config.n_envs), self.inputs), config.rehearsals)
            points, _ = recorded_points(self._actor(), played)
            self.taught |= {"rehearsals": config.rehearsals, "rehearsed_gain": float(points.mean())}

    def _recorded_engine(self, config: TrainConfig) -> Kind | None:
        """Return the engine that a training found in the folder was started with, when the arguments leave it open."""
        if config.engine == "auto" and (config.out / MANIFEST).is_file():
            with suppress(ValueError, KeyError, TypeError, RecursionError):  # a damaged manifest is reported later
                engine = json.loads((config.out / MANIFEST).read_bytes())["arguments"]["engine"]
                return next((kind for kind in get_args(Kind) if kind == engine), None)
        return None

    def _make_model(self, saved: Mapping[str, Tensor] | None) -> ResumablePPO:
        config = self.config
        model = ResumablePPO(
            "MlpPolicy",
            NormalisedVecEnv(self.inner, self.inputs),
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
        model.run_seed = config.seed
        favour_keep(model, config.keep_probability)
        model.set_logger(self.logger)
        if saved is not None:
            restore_training_state(model, dict(saved))
        return model

    # ----- files

    def _check_folder(self) -> None:
        remove_unfinished(self.config.out)
        manifest = self.config.out / MANIFEST
        if manifest.is_file():
            try:
                found = json.loads(manifest.read_bytes())["arguments"]
                known = {key: found.get(key) for key in self.arguments}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise InputError(f"{manifest} is damaged: expected that of a training; choose another --out") from None
            self._check_same(known)
        else:
            self.config.out.mkdir(parents=True, exist_ok=True)
            if any(path.name != LOCK for path in self.config.out.iterdir()):
                raise InputError(
                    f"out {str(self.config.out)!r} is not the output of a training: expected a new or empty folder, or "
                    "one with its manifest.json; choose another --out"
                )
            write_manifest(self.config.out, command="train", arguments=self.arguments)

    def _check_same(self, found: Mapping[str, Any]) -> None:
        different = [k for k, v in self.arguments.items() if k != "rollouts" and found.get(k) != v]
        if different:
            raise InputError(
                f"{self.config.out} holds a training with another {', '.join(different)}: expected the same "
                "arguments to go on with it; choose another --out"
            )

    def _saved(self) -> Mapping[str, Tensor] | None:
        """Return the newest checkpoint's tensors and put its rows and policy back; None without one."""
        checkpoint = self.files.load()
        if checkpoint is None:
            return None
        self._check_same(checkpoint.facts["arguments"])
        self.rows = list(checkpoint.facts["rows"])
        self.best = -np.inf if checkpoint.facts["best"] is None else float(checkpoint.facts["best"])
        self.taught = dict(checkpoint.facts.get("taught", {}))
        self.policy_file = bytes(checkpoint.tensors["policy_file"].tolist())
        if self.policy_file:
            self.guard = PolicyArtifact.from_bytes(self.policy_file).policy.guard
        self._write_results()
        return checkpoint.tensors

    def _save(self) -> None:
        """Write one file that holds everything, then the files for people."""
        file = torch.tensor(list(self.policy_file), dtype=torch.uint8)
        tensors = training_state(self.model) | named_inputs(self.inputs, "observation") | {"policy_file": file}
        best = float(self.best) if np.isfinite(self.best) else None
        facts = {"arguments": self.arguments, "rows": self.rows, "best": best, "taught": self.taught}
        self.files.save(Checkpoint(tensors=tensors, facts=facts))
        self._write_results()

    def _write_results(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in self.rows for key in row)), restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.config.out / "log.csv", text.getvalue().encode())
        if self.policy_file:
            write_atomically(self.config.out / "policy.safetensors", self.policy_file)

    def _best_policy(self) -> bytes:
        card = {
            "name": "lepton_rl adaptation policy",
            "licence": "MIT",
            "command": command_of(self.config),
            "arguments": self.arguments,
            "rollouts": self.model.rollouts,
            "decisions": self.model.num_timesteps,
            "validation": {k: v for k, v in self.rows[-1].items() if k.startswith("validation")},
            "versions": versions(),
        } | ({"experience": self.taught} if self.taught else {})
        return PolicyArtifact(policy=self._actor(), card=card).to_bytes()

    def _actor(self) -> NetworkPolicy:
        return actor(self.model, self.inputs, tuned_default(), self.guard)

    # ----- the loop

    def run(self, show: Show, stop: StopRequest | None = None) -> None:
        """Train to the end, or until asked to stop.

        Raises:
            Stopped: If a signal came; everything finished is saved.
            InputError: If the weights became non-finite; the checkpoint before is kept.
        """
        stop = stop or StopRequest()
        if self.config.experience is not None and not self.rows:
            self._judge_start()
        show(self.model.rollouts, self.rows[-1] if self.rows else {})
        while self.model.rollouts < self.config.rollouts:
            stop.check(f"rollout {self.model.rollouts} of {self.config.rollouts}")
            row = self._rollout()
            self._check_finite()
            self.rows.append(row)
            if self._validation_due():
                self._validate(row)
            for key, value in row.items():
                self.model.logger.record(key, value)
            self.model.logger.dump(self.model.num_timesteps)
            self._save()
            show(self.model.rollouts, row)

    def _judge_start(self) -> None:
        """Validate what the training starts from: PPO has to beat it."""
        row: dict[str, Any] = {"rollout": 0, "decisions": 0, "episodes": 0}
        self.rows.append(row)
        self._validate(row)
        self._save()

    def _rollout(self) -> dict[str, Any]:
        """Collect a rollout and learn from it; one whose worker died is collected again on new lanes."""
        before = training_state(self.model)
        for death in range(DEATHS):
            watcher = Watcher()
            try:
                self.model.learn(self.config.n_steps * self.config.n_envs, watcher, reset_num_timesteps=False)
                return self._row(watcher)
            except WorkerDied as error:
                if death + 1 == DEATHS:
                    raise WorkerDied(f"{error}, again; what came before is saved: the same command goes on") from None
                self._say(f"{error}: the rollout is collected again")
                self.inner.close()
                self.inner = SB3VecEnv(make_env(self.config))
                self.model = self._make_model(before)
        raise AssertionError("unreachable")

    def _check_finite(self) -> None:
        bad = [k for k, v in training_state(self.model).items() if v.is_floating_point() and not v.isfinite().all()]
        if bad:
            raise InputError(
                f"rollout {self.model.rollouts} left {bad[0]} non-finite: expected finite weights; what came before is "
                f"kept in {self.config.out}; the same command tries again, another --out with a lower --learning-rate "
                "may help"
            )

    def _row(self, watcher: Watcher) -> dict[str, Any]:
        observations = torch.as_tensor(self.model.rollout_buffer.observations).reshape(-1, len(self.inputs.mean))
        kept = keep_probabilities(self.model, observations)
        logged = self.model.logger.name_to_value
        return {
            "rollout": self.model.rollouts,
            "decisions": self.model.num_timesteps,
            "episodes": len(watcher.returns),
            "return_over_default": float(np.mean(watcher.returns)) if watcher.returns else 0.0,
            "return_standard_error": float(np.std(watcher.returns or [0.0]) / max(1, len(watcher.returns)) ** 0.5),
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
            gains = 100 * (self._accuracies(self._actor()) - self.default_accuracies)
            row["validation_return"] = float(np.mean(gains))
            row["validation_standard_error"] = float(np.std(gains) / len(gains) ** 0.5)
        else:
            row["validation_return"] = float(self.model.rollouts)
        if row["validation_return"] >= self.best:
            self.best = row["validation_return"]
            self.policy_file = self._best_policy()

    def _accuracies(self, policy: Policy) -> np.ndarray:
        config = self.config
        return np.array(
            greedy_accuracies(policy, suite=config.source, tasks=config.validation_tasks, workers=config.workers)
        )

    def close(self) -> None:
        """End worker processes and trackers."""
        self.inner.close()
        self.logger.close()


def command_of(config: TrainConfig) -> str:
    """Return the command that trains with these arguments; what is at its default is left out."""
    flags = []
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in PLACES and value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            flags += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    if config.experience is not None:
        flags += ["--experience", "EXPERIENCE"]  # a folder; its contents are known by their hash
    return " ".join(["python scripts/train_agent.py", *flags])
