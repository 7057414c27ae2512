"""Train a quick fake task over and over, each time killed, until it is done; run by test_resume.py and the soak.

A process of its own that forks: importing everything again for every kill would take most of the time.
Prints one JSON line: how many processes were killed, and whether all that was written equals an unbroken training.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from lepton_rl.agents import training, training_env
from lepton_rl.agents.train import TrainConfig, train
from lepton_rl.controls import KEEP
from lepton_rl.envs.spaces import action_space, observation_space
from lepton_rl.signals import SIGNALS

WRITES = 18  # the syncs and renames of a first save, and those of the next one
WRITTEN = ("checkpoint.safetensors", "log.csv", "policy.safetensors")


class QuickEnv(gymnasium.Env):
    """Pays for moving knob 1 when signal 0 is high, and for keeping it when it is low; ends after two steps."""

    def __init__(self):
        self.observation_space, self.action_space = observation_space(), action_space()

    def _observe(self):
        x = np.clip(np.zeros(len(SIGNALS)), self.observation_space.low, self.observation_space.high)
        self.high = bool(self.np_random.random() < 0.5)
        x[0] = float(self.high)
        return x.astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._observe(), {}

    def step(self, action):
        self.count += 1
        paid = float((action[1] == 4) if self.high else (action[1] == KEEP[1]))
        return self._observe(), paid, self.count == 2, False, {}


def quick_accuracies(policy, *, suite, tasks, workers, split="validation"):
    """Score a policy by a fixed probe: deterministic, and different for different weights."""
    if not hasattr(policy, "logits"):
        return [0.5] * tasks
    return [float(torch.sigmoid(policy.logits(torch.full((1, len(SIGNALS)), 0.1 * k)).std())) for k in range(tasks)]


def make_quick():
    """Replace the lanes and the validation by quick ones, in this process."""
    make = lambda config, **changes: SyncVectorEnv([QuickEnv] * config.n_envs, autoreset_mode=AutoresetMode.SAME_STEP)  # noqa: E731
    training_env.make_env = training.make_env = make
    training.greedy_accuracies = quick_accuracies


def config(out, rollouts):
    return TrainConfig(out=out, rollouts=rollouts, engine="workers", n_envs=2, n_steps=8, batch_size=16, n_epochs=2,
                       hidden=(8,), validation_tasks=2, validate_every=2, workers=1, seed=5)  # fmt: skip


def in_child(work):
    """Fork and do some work in the child; it never comes back from here."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid


def died(pid):
    """Wait for a child; whether it was killed. One that failed by itself fails the test."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, f"a training failed with {os.WEXITSTATUS(status)}"
    return False


def killed_at_random(root, whole, rollouts, kills, seconds):
    """Kill at random moments; every folder that is finished must equal the unbroken one."""
    rng = random.Random(7)
    done = folders = resumed = 0
    while done < kills:
        out = root / f"random{folders}"
        resumed += (out / "checkpoint.safetensors").exists()
        pid = in_child(lambda out=out: train(config(out, rollouts), progress=False))
        time.sleep(rng.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        if died(pid):
            done += 1
        else:
            assert same(out, whole)
            folders += 1
    out = root / f"random{folders}"
    assert not died(in_child(lambda: train(config(out, rollouts), progress=False)))
    assert same(out, whole)
    return {"random_kills": done, "resumed_within": resumed}


def killed_at_writes(root, whole, rollouts, kills):
    """Attempt k dies right before its k-th sync or rename; a folder that is finished is left for a new one."""
    for k in range(1, kills + 1):
        out = root / f"writes{len(list(root.glob('writes*')))}"
        left = [path for path in root.glob("writes*") if not (path / "done").exists()]
        out = left[0] if left else out
        if not died(in_child(lambda out=out, k=k: train_until_write(out, rollouts, k))):
            raise AssertionError(f"write {k} was never reached")
        if k % 3 == 0:  # two or three deaths in a row, then to the end
            assert not died(in_child(lambda out=out: train(config(out, rollouts), progress=False)))
            assert same(out, whole)
            (out / "done").touch()
    return kills


def train_until_write(out, rollouts, last):
    left = [last]

    def counted(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    train(config(out, rollouts), progress=False)


def same(one, other):
    """Whether everything that a training is about is equal, byte by byte, and no litter is left."""
    hidden = [path.name for path in one.iterdir() if path.name.startswith(".")]
    assert not hidden, f"left behind: {hidden}"
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in WRITTEN)


def main(root, kills, rollouts):
    torch.set_num_threads(1)
    make_quick()
    train(config(root / "warm", 1), progress=False)  # what torch imports at its first step, the children have then
    began = time.perf_counter()
    assert not died(in_child(lambda: train(config(root / "whole", rollouts), progress=False)))
    seconds = time.perf_counter() - began
    random_kills = killed_at_random(root, root / "whole", rollouts, kills, seconds / 5)
    assert not died(in_child(lambda: train(config(root / "short", 4), progress=False)))
    write_kills = killed_at_writes(root, root / "short", 4, WRITES)
    print(f"an unbroken training takes {seconds:.2f} s", file=sys.stderr)
    print(json.dumps({**random_kills, "write_kills": write_kills, "identical": True}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
