"""Do some work over and over, each time killed, until it is done: python tests/killing.py JOB FOLDER KILLS.

A process of its own that forks: importing everything again for every kill would take most of the time.
Prints one JSON line: how many processes were killed, and whether all that was written equals unbroken work.
Run by test_resume.py and scripts/trust_report.py.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tiny import EVERYTHING, domain, task

from lepton_rl.adapt import adapt
from lepton_rl.agents import cells, training, training_env
from lepton_rl.agents.benchmark import BenchmarkConfig, benchmark
from lepton_rl.agents.train import TrainConfig, train
from lepton_rl.controls import KEEP
from lepton_rl.domain import Domain
from lepton_rl.envs.spaces import action_space, observation_space
from lepton_rl.keeping import unfinished
from lepton_rl.models import build_model
from lepton_rl.policy import RandomPolicy
from lepton_rl.signals import SIGNALS
from lepton_rl.suite import TaskSuite
from lepton_rl.task import AdaptationTask, HiddenTask

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


def same(one, other):
    """Whether everything that a training is about is equal, byte by byte, and no litter is left."""
    check_litter(one)
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in WRITTEN)


def check_litter(folder):
    hidden = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert not hidden, f"left behind: {hidden}"


def read_rows(path, *left_out):
    """Read JSON lines without what a clock says."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", *left_out)} for row in rows]


# ----- the work: made again and again in children


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work that may be killed.

    Attributes:
        work: Does it into a folder, from where it was.
        same: Whether two folders hold the same, but for clocks.
        kept: Whether something of unfinished work is there.
        short: The same in two saves, to be killed at every single write; None = at none.
    """

    work: Callable[[Path], object]
    same: Callable[[Path, Path], bool]
    kept: Callable[[Path], bool]
    short: Callable[[Path], object] | None = None


def quick_training():
    """A training whose lanes are a stand-in: the loop, the files and the policy are real."""
    make_quick()
    return Job(
        work=lambda out: train(config(out, 16), progress=False),
        same=same,
        kept=lambda out: (out / "checkpoint.safetensors").exists(),
        short=lambda out: train(config(out, 2), progress=False),
    )


def real_training():
    """A training whose lanes adapt networks to the digits, and whose validation does; only the budgets are small."""
    suite = TaskSuite("digits-test", {"digits": Domain.digits}, pretrain_steps=60, budgets=(10, 16))
    TaskSuite.digits = lambda: suite

    def work(out):
        train(replace(config(out, 12), tasks=2, n_steps=4, batch_size=8, validation_tasks=1), progress=False)

    return Job(work=work, same=same, kept=lambda out: (out / "checkpoint.safetensors").exists())


def adaptation():
    """An adaptation of a tiny network: stages freeze and come back, all losses are on, the guard averages."""
    torch.manual_seed(0)
    model = build_model("vgg", channels=1, n_classes=3, width=4).eval()
    source, target = domain(1, 60, 3), domain(2, 45, 3)

    def work(out, budget=40):
        adapt(model, source=source, target=target, policy=RandomPolicy(settings=EVERYTHING), budget=budget, out=out)

    def equal(one, other):
        check_litter(one)
        check_litter(one.parent)
        assert not unfinished(one).exists()
        histories = [read_rows(folder / "history.jsonl") for folder in (one, other)]
        results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
        weights = [(folder / "weights.safetensors").read_bytes() for folder in (one, other)]
        for result in results:
            del result["seconds"]
        return histories[0] == histories[1] and results[0] == results[1] and weights[0] == weights[1]

    return Job(
        work=work,
        same=equal,
        kept=lambda out: unfinished(out).exists(),
        short=lambda out: work(out, budget=10),
    )


class TinySuite:
    """Tasks of ten gradient steps."""

    def task(self, split, index, regime=None):
        visible = replace(task(index, budget=10), name=f"tiny/{split}/{index}")
        hidden = HiddenTask(
            target_eval=domain(900 + index, 20, 3),
            target_test=domain(800 + index, 50, 3),
            target_train_labels=domain(10 * index + 5, 40, 3).labels,
        )
        return AdaptationTask(visible=visible, hidden=hidden, split=split)


def small_benchmark():
    """A benchmark of four arms, one of them a tuner with a journal."""
    cells.SUPERVISED_STEPS = 5

    def work(out):
        arms = ("source-only", "tuned-default", "tpe", "policy")
        words = {"arms": arms, "runs": (1, 2, 4), "tasks": 3, "seeds": 1, "policy": ("tuned-default",), "workers": 1}
        benchmark(BenchmarkConfig(out=out, **words), TinySuite)

    def equal(one, other):
        check_litter(one)
        return read_rows(one / "rows.jsonl") == read_rows(other / "rows.jsonl")

    return Job(work=work, same=equal, kept=lambda out: (out / "rows.jsonl").exists())


JOBS = {"train": quick_training, "real-train": real_training, "adapt": adaptation, "benchmark": small_benchmark}


# ----- the killing


def in_child(work, *given):
    """Fork and do some work in the child; it never comes back from here."""
    pid = os.fork()
    if pid == 0:
        try:
            work(*given)
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
    assert os.WEXITSTATUS(status) == 0, f"the work failed with {os.WEXITSTATUS(status)}"
    return False


def killed_at_random(job, root, kills, seconds):
    """Kill at random moments; every folder that is finished must equal the unbroken one."""
    rng = random.Random(7)
    done = folders = resumed = 0
    while done < kills:
        out = root / f"random{folders}"
        resumed += job.kept(out)
        pid = in_child(job.work, out)
        time.sleep(rng.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        if died(pid):
            done += 1
        else:
            assert job.same(out, root / "whole")
            folders += 1
    out = root / f"random{folders}"
    assert not died(in_child(job.work, out))
    assert job.same(out, root / "whole")
    return {"random_kills": done, "resumed_within": resumed}


def killed_at_writes(job, root):
    """Attempt k dies right before its k-th sync or rename, for every k that there is; then the work is done."""
    k = 1
    while died(in_child(until_write, job.short, out := root / f"writes{k}", k)):
        assert not died(in_child(job.short, out))
        assert job.same(out, root / "short")
        k += 1
    return k - 1


def until_write(work, out, last):
    left = [last]

    def counted(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    os.fsync, os.replace, os.rename = counted(os.fsync), counted(os.replace), counted(os.rename)
    work(out)


def main(name, root, kills):
    torch.set_num_threads(1)
    job = JOBS[name]()
    root.mkdir(exist_ok=True)
    (job.short or job.work)(root / "warm")  # what is imported at the first step, the children have then
    began = time.perf_counter()
    assert not died(in_child(job.work, root / "whole"))
    seconds = time.perf_counter() - began
    random_kills = killed_at_random(job, root, kills, seconds / 2)
    write_kills = 0
    if job.short:
        assert not died(in_child(job.short, root / "short"))
        write_kills = killed_at_writes(job, root)
    print(f"unbroken work takes {seconds:.2f} s", file=sys.stderr)
    print(json.dumps({"job": name, **random_kills, "write_kills": write_kills, "identical": True}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
