"""How far a fleet is from what its device can do, what its memory is made of, and what collecting costs beside it."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lepton_rl.engine import Engine
from lepton_rl.fleet import FleetEngine

Work = Callable[[], object]


def clock(device: str) -> float:
    """Return seconds: processor time of this process on a CPU, wall time after the device has caught up elsewhere."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Work, device: str) -> float:
    """Return the seconds that some work takes."""
    began = clock(device)
    work()
    return clock(device) - began


def ceilings(device: str) -> dict[str, float]:
    """Return the device's copy bandwidth in bytes/s and float32 matrix rate in floating point operations/s."""
    n = 8192 if device == "cuda" else 1024
    block = torch.ones(n, n, device=device)
    out = torch.empty_like(block)
    for warm_up in (lambda: out.copy_(block), lambda: torch.mm(block, block, out=out)):
        warm_up()
    copy = median(timed(lambda: out.copy_(block), device) for _ in range(10))
    product = median(timed(lambda: torch.mm(block, block, out=out), device) for _ in range(5))
    return {"copy_bytes_per_second": 2 * 4 * n * n / copy, "matrix_flops": 2 * n**3 / product}


class _Traffic(TorchDispatchMode):
    """Adds up the bytes that operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out


def distance(step: Work, steps: int, device: str) -> dict[str, float]:
    """Return what a window of gradient steps does per second, beside the device's ceilings.

    Args:
        step: Takes `steps` gradient steps; eagerly, as what is recorded cannot be counted.
        steps: Their number.
        device: Where.
    """
    step()
    seconds = median(timed(step, device) for _ in range(5))
    with FlopCounterMode(display=False) as counted:
        step()
    with _Traffic() as traffic:
        step()
    limits = ceilings(device)
    flops, moved = counted.get_total_flops() / seconds, traffic.bytes / seconds
    return limits | {
        "seconds_per_step": seconds / steps,
        "flops": flops,
        "bytes_per_second": moved,
        "share_of_matrix_flops": flops / limits["matrix_flops"],
        "share_of_copy_bandwidth": moved / limits["copy_bytes_per_second"],
    }


def where_the_time_goes(step: Work, device: str, most: int = 12) -> list[dict[str, Any]]:
    """Return the operations that take most of a window's time on the device, with their shares."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    step()
    with torch.profiler.profile(activities=kinds) as profile:
        step()
    name = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    rows = sorted(profile.key_averages(), key=lambda row: -float(getattr(row, name)))
    whole = sum(float(getattr(row, name)) for row in rows) or 1.0
    return [{"operation": r.key, "calls": r.count, "share": getattr(r, name) / whole} for r in rows[:most]]


def memory_of_a_lane(engine: FleetEngine, step: Work) -> dict[str, int]:
    """Return what one lane keeps, and what a step keeps for its backward pass, per lane and in bytes."""
    kept = [*engine.blocks, *engine.start]
    kept += [moment for optimizer in engine.optimizers for moment in (optimizer.first, optimizer.second)]
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {tensor.untyped_storage().data_ptr() for tensor in kept}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    activations = sum(size for place, size in saved.items() if place not in own)
    return {
        "weights_start_and_moments": sum(x.numel() * x.element_size() for x in kept) // engine.lanes,
        "activations": activations // engine.lanes,
    }


class TrainingClock:
    """Adds up the time of inner training while it is entered, by the device's `clock`."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, 0.0

    def __enter__(self) -> "TrainingClock":
        """Start adding up."""
        self.plain = Engine.train

        def measured(engine: Engine, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            began = clock(self.device)
            stats = self.plain(engine, *arguments, **named)
            self.seconds += clock(self.device) - began
            return stats

        Engine.train = measured  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        """Leave engines as they were."""
        Engine.train = self.plain  # type: ignore[method-assign]


def collecting(device: str, lanes: int, decisions: int = 8) -> dict[str, float]:
    """Let SB3's PPO collect from the fleet, and return the share of the time that is not inner training.

    The first rollout, in which networks are pretrained, is not counted. The default's own runs are inner training too.
    """
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback

    from lepton_rl.agents.sb3_vec_env import SB3VecEnv
    from lepton_rl.envs import FineTuneVectorEnv

    class Silent(BaseCallback):
        """SB3 collects under a callback only; this one does nothing."""

        def _on_step(self) -> bool:
            return True

    env = SB3VecEnv(FineTuneVectorEnv(lanes, tasks=max(2, lanes // 4), device=device))
    model = PPO("MlpPolicy", env, n_steps=decisions, batch_size=lanes * decisions, device="cpu", seed=0)
    _, callback = model._setup_learn(lanes * decisions, Silent())
    shares, rates = [], []
    for rollout in range(3):
        with TrainingClock(device) as training:
            began = clock(device)
            model.collect_rollouts(model.env, callback, model.rollout_buffer, decisions)
            whole = clock(device) - began
        if rollout:
            shares.append(1 - training.seconds / whole)
            rates.append(lanes * decisions / whole)
    env.close()
    return {"lanes": lanes, "share_outside_training": median(shares), "decisions_per_second": float(np.median(rates))}
