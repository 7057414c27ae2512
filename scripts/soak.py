"""Step a fleet for a long time with random actions and resets: is memory flat, are handles closed, are episodes fair?

Prints one line a minute and a summary; the exit code is 1 if memory grows, handles leak, or the episodes at the end
are not like those of an environment that has just started.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from lepton_rl.controls import ACTION_SIZES
from lepton_rl.envs import FineTuneVectorEnv

MOST_SLOPE = 1.0  # MiB a minute over the second half: above the noise of an allocator, far below a leak
RARE_RESET = 0.01  # probability that everything starts again before a step


@dataclass(frozen=True, kw_only=True)
class SoakConfig:
    """Step a fleet with random actions for a long time."""

    minutes: float = 60.0
    """How long."""
    lanes: int = 8
    """Of the fleet, dealt onto its architectures."""
    tasks: int = 8
    """Training tasks that are drawn from."""
    seed: int = 0
    """Of tasks and actions."""
    device: str = "cpu"
    """Where the networks train."""
    json: Path | None = None
    """File for the figures."""


def resident() -> float:
    """Return the memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def handles() -> int:
    """Return the number of open files."""
    return len(os.listdir("/proc/self/fd"))


def make(config: SoakConfig) -> FineTuneVectorEnv:
    """Return the environment."""
    return FineTuneVectorEnv(config.lanes, tasks=config.tasks, device=config.device, fleet=True)


class Player:
    """Plays random actions and remembers returns and lengths of the episodes."""

    def __init__(self, env: FineTuneVectorEnv, seed: int) -> None:
        self.env, self.rng = env, np.random.default_rng(seed)
        self.env.reset(seed=seed)
        self.total, self.length = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=int)
        self.broken = 0

    def step(self) -> Iterator[tuple[float, int]]:
        """Take a step and yield `(return, length)` of the episodes that ended."""
        if self.rng.random() < RARE_RESET:
            self.env.reset(seed=int(self.rng.integers(2**31)))
            self.total[:], self.length[:] = 0, 0
        actions = self.rng.integers(0, np.tile(ACTION_SIZES, (self.env.num_envs, 1)))
        actions[:, -1] = self.rng.random(len(actions)) < 0.05  # stopping at every second decision says little
        seen, paid, ended, cut, _ = self.env.step(actions)
        self.broken += not (self.env.observation_space.contains(seen) and np.isfinite(paid).all() and not cut.any())
        self.total += paid
        self.length += 1
        for lane in np.flatnonzero(ended):
            yield float(self.total[lane]), int(self.length[lane])
            self.total[lane], self.length[lane] = 0, 0


def soak(config: SoakConfig) -> dict[str, Any]:
    """Run, and return the figures."""
    torch.set_num_threads(1)
    player = Player(make(config), config.seed)
    began, worked, steps = time.monotonic(), time.process_time(), 0
    samples: list[tuple[float, float]] = []
    episodes: list[tuple[float, int]] = []
    first_handles, told = handles(), 0.0
    while (minutes := (time.monotonic() - began) / 60) < config.minutes:
        episodes += player.step()
        steps += 1
        samples.append((minutes, resident()))
        if minutes - told >= 1:
            told = minutes
            print(f"{minutes:6.1f} min, {steps} steps, {len(episodes)} episodes, {samples[-1][1]:.0f} MiB", flush=True)
    last_handles, worked = handles(), time.process_time() - worked
    half = samples[len(samples) // 2 :]
    slope = float(np.polyfit(*np.array(half).T, 1)[0]) if len(half) > 2 else 0.0
    gc.collect()
    fresh = _fresh(config, max(60, len(episodes) // 8))
    late = episodes[-len(episodes) // 2 :]
    return {
        "minutes": config.minutes,
        "cpu_minutes": round(worked / 60, 1),
        "steps": steps,
        "episodes": len(episodes),
        "mib_start": round(samples[0][1], 1),
        "mib_end": round(samples[-1][1], 1),
        "mib_per_minute": round(slope, 3),
        "handles_leaked": last_handles - first_handles,
        "contract_broken": player.broken,
        "late": _summary(late),
        "fresh": _summary(fresh),
        "z_return": _z([r for r, _ in late], [r for r, _ in fresh]),
        "z_length": _z([float(n) for _, n in late], [float(n) for _, n in fresh]),
    }


def _fresh(config: SoakConfig, wanted: int) -> list[tuple[float, int]]:
    """Play as many episodes in an environment of its own, from another seed."""
    player, found = Player(make(config), config.seed + 1), list[tuple[float, int]]()
    while len(found) < wanted:
        found += player.step()
    return found


def _summary(episodes: list[tuple[float, int]]) -> dict[str, float]:
    returns, lengths = np.array(episodes).T
    return {"episodes": len(episodes), "return": round(returns.mean(), 3), "length": round(lengths.mean(), 3)}


def _z(a: list[float], b: list[float]) -> float:
    """Return the difference of means in standard errors (Welch)."""
    error = (np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)) ** 0.5
    return round(float((np.mean(a) - np.mean(b)) / max(error, 1e-12)), 2)


def passed(report: dict[str, Any]) -> bool:
    """Say whether nothing leaked and nothing drifted."""
    fair = abs(report["z_return"]) < 4 and abs(report["z_length"]) < 4
    return (
        report["mib_per_minute"] < MOST_SLOPE
        and report["handles_leaked"] <= 0
        and report["contract_broken"] == 0
        and fair
    )


def main() -> int:
    """Run and print the figures."""
    config = tyro.cli(SoakConfig)
    report = soak(config)
    report["passed"] = passed(report)
    print(json.dumps(report, indent=2))
    if config.json is not None:
        settings = asdict(config) | {"json": None}
        config.json.write_text(json.dumps({"config": settings, **report}, indent=2) + "\n")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
