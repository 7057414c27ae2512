"""PPO that starts at *keep everything* and can be killed and resumed to the bit.

SB3's PPO is used as it is. Around it: the actor's first logits favour keeping, and every rollout starts from a
seed of its own (of the lanes, of torch and of numpy), so that the state between two rollouts is the networks and
the optimizer alone. That state is plain tensors in safetensors: nothing is pickled.

Source: Schulman et al. 2017, "Proximal policy optimization algorithms"; Stable-Baselines3.
"""

import math
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from lepton_rl.controls import ACTION_SIZES, KEEP, ControlSettings
from lepton_rl.guard import Guard
from lepton_rl.policy import NetworkPolicy
from lepton_rl.standardise import Standardiser


class ResumablePPO(PPO):
    """PPO whose rollouts are a function of the weights, the seed and the rollout's number.

    Attributes:
        rollouts: Number of rollouts collected so far.
        run_seed: Seed of the training.
        first_logits: Observation-free logits of an untrained actor, for the divergence that is logged.
    """

    rollouts: int = 0
    run_seed: int = 0

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Start all lanes anew from this rollout's seed, then collect as SB3 does."""
        seed = int(np.random.SeedSequence((self.run_seed, self.rollouts)).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        env.seed(seed)
        self._last_obs = env.reset()  # type: ignore[assignment]
        self._last_episode_starts = np.ones((env.num_envs,), dtype=bool)
        self.rollouts += 1
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)


def favour_keep(model: PPO, probability: float) -> None:
    """Set the actor's last biases so that an untrained policy keeps each knob with the given probability."""
    with torch.no_grad():
        parts = []
        for size, keep in zip(ACTION_SIZES, KEEP, strict=True):
            part = torch.zeros(size)
            part[keep] = math.log(probability / (1 - probability) * (size - 1))
            parts.append(part)
        action_net = model.policy.action_net
        assert isinstance(action_net, nn.Linear)
        action_net.bias.copy_(torch.cat(parts))


def keep_probabilities(model: PPO, observations: Tensor) -> Tensor:
    """Return how likely each knob is kept, mean over observations, `[knobs]`."""
    with torch.no_grad():
        distribution: Any = model.policy.get_distribution(observations)
        heads = distribution.distribution
        return torch.stack([head.probs[:, keep].mean() for head, keep in zip(heads, KEEP, strict=True)])


def actor(model: PPO, inputs: Standardiser, settings: ControlSettings, guard: Guard | None = None) -> NetworkPolicy:
    """Cut the actor out of a PPO model.

    Args:
        model: Trained on observations that `inputs` has standardised.
        inputs: The same.
        settings: The knobs that a run starts with.
        guard: Goes with the policy; PPO does not change it.
    """
    layers = [layer for layer in model.policy.mlp_extractor.policy_net if isinstance(layer, nn.Linear)]
    action_net = model.policy.action_net
    assert isinstance(action_net, nn.Linear)
    return NetworkPolicy(
        inputs=inputs,
        layers=tuple((x.weight.detach().clone(), x.bias.detach().clone()) for x in (*layers, action_net)),
        settings=settings,
        guard=guard,
    )


def start_from(model: PPO, policy: NetworkPolicy) -> None:
    """Give a PPO model the weights of a policy with the same layers: the inverse of `actor`."""
    layers = [layer for layer in model.policy.mlp_extractor.policy_net if isinstance(layer, nn.Linear)]
    action_net = model.policy.action_net
    assert isinstance(action_net, nn.Linear)
    with torch.no_grad():
        for layer, (weight, bias) in zip((*layers, action_net), policy.layers, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)


def rehearse(model: ResumablePPO, env: VecEnv, rollouts: int) -> None:
    """Train on other lanes for some rollouts; only networks and optimizer remember it.

    Args:
        model: The model; afterwards its own lanes are back, and no rollout counts as collected.
        env: Lanes with the same spaces, as many.
        rollouts: How many.
    """
    own, logger = model.get_env(), model.logger
    assert own is not None
    model.set_env(env)
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(rollouts * model.n_steps * model.n_envs)
    model.set_logger(logger)
    model.set_env(own)
    model.rollouts = model.num_timesteps = model._n_updates = 0


def training_state(model: ResumablePPO) -> dict[str, Tensor]:
    """Return networks and optimizer as named tensors."""
    state = {f"policy.{name}": value.detach().clone() for name, value in model.policy.state_dict().items()}
    optimizer = model.policy.optimizer.state_dict()["state"]
    for index, moments in optimizer.items():
        for name, value in moments.items():
            state[f"optimizer.{index}.{name}"] = torch.as_tensor(value).detach().clone()
    state["counters"] = torch.tensor([model.rollouts, model.num_timesteps, model._n_updates])
    return state


def restore_training_state(model: ResumablePPO, state: dict[str, Tensor]) -> None:
    """Put back what `training_state` gave."""
    prefix = "policy."
    model.policy.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    described = model.policy.optimizer.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
    described["state"] = moments
    model.policy.optimizer.load_state_dict(described)
    model.rollouts, model.num_timesteps, model._n_updates = (int(x) for x in state["counters"])
