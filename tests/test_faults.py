"""Faults inside of a run: NaN anywhere, at a random step and lane; the environment keeps its contract."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lepton_rl import run as run_module
from lepton_rl import step as step_module
from lepton_rl.controls import ACTION_SIZES, KEEP
from lepton_rl.engine import Engine
from lepton_rl.envs import FineTuneVectorEnv
from lepton_rl.envs.session import DefaultRuns
from lepton_rl.fleet import FleetEngine
from lepton_rl.signals import SIGNALS
from lepton_rl.solo import SoloEngine

LANES, DECISIONS = 3, 3
BADS = (float("nan"), float("inf"))


class Spoiled(torch.autograd.Function):
    """Passes losses through; their gradient in one lane is bad."""

    @staticmethod
    def forward(ctx, loss, lane, bad):
        ctx.lane, ctx.bad = lane, bad
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[ctx.lane] = ctx.bad
        return gradient, None, None


class Fault:
    """Strikes once, at the n-th call, in one lane of all."""

    def __init__(self, lane, call, bad):
        self.lane, self.left, self.bad, self.struck = lane, call, bad, 0

    def now(self):
        self.left -= 1
        self.struck += self.left == 0
        return self.left == 0


def in_loss(monkeypatch, fault, place):
    plain = step_module.objective

    def spoiled(*arguments, **named):
        loss, terms = plain(*arguments, **named)
        if place(loss) is None or not fault.now():
            return loss, terms
        factor = torch.ones_like(loss)  # no torch.where: its gradient, 0 times NaN, would spoil every lane
        factor[place(loss)] = fault.bad
        return loss * factor, terms

    monkeypatch.setattr(step_module, "objective", spoiled)


def in_gradient(monkeypatch, fault, place):
    plain = step_module.objective

    def spoiled(*arguments, **named):
        loss, terms = plain(*arguments, **named)
        if place(loss) is None or not fault.now():
            return loss, terms
        return Spoiled.apply(loss, place(loss), fault.bad), terms

    monkeypatch.setattr(step_module, "objective", spoiled)


def in_weights(monkeypatch, fault, place):
    plain = Engine._one_step

    def spoiled(self, window, k):
        terms = plain(self, window, k)
        lane = place(terms[:, 0])
        if lane is not None and fault.now():
            with torch.no_grad():
                if isinstance(self, FleetEngine):
                    self.blocks[0][lane, 0] = fault.bad
                else:
                    next(self.model.parameters()).view(-1)[0] = fault.bad
        return terms

    monkeypatch.setattr(Engine, "_one_step", spoiled)


def in_signals(monkeypatch, fault, place):
    plain = run_module.measure

    def spoiled(*arguments):
        measured = plain(*arguments)
        lane = place(measured[:, 0])
        if lane is not None and fault.now():
            measured[lane] = fault.bad
        return measured

    monkeypatch.setattr(run_module, "measure", spoiled)


FAULTS = {"loss": in_loss, "gradient": in_gradient, "weights": in_weights, "signals": in_signals}


def play(suite, fleet, fault=None, strike=None, monkeypatch=None):
    """Play fixed actions on three lanes and return everything seen, step by step."""
    env = FineTuneVectorEnv(LANES, suite=suite, tasks=2, architectures=("vgg",), fleet=fleet)
    observations, _ = env.reset(seed=4)
    if strike is not None:
        # Without a fleet every lane has an engine of its own: the fault belongs to that of its lane.
        mine = None if fleet else env._sessions[fault.lane]._run.engine
        current = []
        if not fleet:
            for name in ("train", "views"):
                plain = getattr(SoloEngine, name)

                def noted(self, *arguments, plain=plain, **named):
                    current[:] = [self]
                    return plain(self, *arguments, **named)

                monkeypatch.setattr(SoloEngine, name, noted)

        def place(values):
            if fleet:
                return fault.lane if len(values) == LANES else None
            return 0 if current and current[0] is mine else None

        strike(monkeypatch, fault, place)
    seen = [(observations.copy(), np.zeros(LANES), np.zeros(LANES, dtype=bool))]
    infos = []
    for _ in range(DECISIONS):
        observations, rewards, ended, cut, info = env.step(np.tile(KEEP, (LANES, 1)))
        assert env.observation_space.contains(observations)
        assert np.isfinite(rewards).all()
        assert not cut.any()
        seen.append((observations.copy(), rewards.copy(), ended.copy()))
        infos.append(info)
    return seen, infos


@pytest.fixture(scope="module")
def untouched(suite):
    return {fleet: play(suite, fleet)[0] for fleet in (True, False)}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("fleet", [True, False], ids=["fleet", "one by one"])
@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_stays_in_its_lane(suite, untouched, monkeypatch, kind, fleet, seed):
    rng = np.random.default_rng([seed, fleet, len(kind)])
    calls = 2 if kind == "signals" else 4
    fault = Fault(int(rng.integers(LANES)), int(rng.integers(1, calls + 1)), BADS[seed % 2])
    seen, infos = play(suite, fleet, fault, FAULTS[kind], monkeypatch)
    assert fault.struck == 1
    others = [lane for lane in range(LANES) if lane != fault.lane]
    for ours, theirs in zip(seen, untouched[fleet], strict=True):
        for mine, known in zip(ours, theirs, strict=True):
            # A lane that begins anew brings a probe of another length, and sums are padded to the longest.
            assert np.allclose(mine[others], known[others], rtol=0, atol=1e-6)
    hit = [step for step, (_, _, ended) in enumerate(seen) if ended[fault.lane]]
    if kind == "signals":
        assert hit == [step for step, (_, _, ended) in enumerate(untouched[fleet]) if ended[fault.lane]]
    else:
        assert hit  # the lane ended, and began anew in the same step
        assert infos[hit[0] - 1]["final_info"]["diverged"][fault.lane]
        assert seen[hit[0]][1][fault.lane] < 100


def played(suite, actions, seed=3):
    env = FineTuneVectorEnv(4, suite=suite, tasks=2, architectures=("vgg",), fleet=True)
    seen = [env.reset(seed=seed)[0]]
    for action in actions:
        observations, rewards, ended, _, infos = env.step(action)
        seen.append(np.column_stack([observations, rewards, ended, infos["eval_accuracy"]]))
    return seen, env._sessions[0].sizes


@pytest.mark.parametrize(("method", "number"), [("train", 3), ("views", 2), ("predict", 2)])
def test_out_of_memory_is_a_fault_that_halves_the_lanes(suite, monkeypatch, method, number):
    rng = np.random.default_rng(number)
    actions = rng.integers(0, ACTION_SIZES, (5, 4, len(ACTION_SIZES)))
    actions[:, :, -1] = 0
    actions[1, 2, -1] = 1  # one lane begins anew in between: the lanes are not equally far
    whole, sizes = played(suite, actions)
    assert sizes == [4]
    plain, calls, others = getattr(FleetEngine, method), [], []
    play_defaults = DefaultRuns._play

    def noted(self, drawn, engine):
        others.append(engine)
        return play_defaults(self, drawn, engine)

    monkeypatch.setattr(DefaultRuns, "_play", noted)

    def scarce(self, *arguments, **named):
        if any(self is engine for engine in others):
            return plain(self, *arguments, **named)
        calls.append(self.lanes)
        if self.lanes == 4 and calls.count(4) >= number:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.lanes == 2 and calls.count(2) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, *arguments, **named)

    monkeypatch.setattr(FleetEngine, method, scarce)
    with pytest.warns(RuntimeWarning, match="no memory for") as told:
        halved, sizes = played(suite, actions)
    assert sorted(sizes) == [1, 1, 2]
    assert len(told) == 2
    # Fleets of other sizes sum in another order: after five wild actions one image of 256 may be told otherwise.
    limits = np.full(len(SIGNALS) + 3, 2e-3)
    limits[len(SIGNALS)], limits[-1] = 100.5 / 256, 1.01 / 256
    for mine, known in zip(halved, whole, strict=True):
        assert (np.abs(mine - known) <= limits[: mine.shape[1]]).all()


def test_out_of_memory_for_a_single_lane_is_an_error(suite, monkeypatch):
    def none(self, *arguments, **named):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(FleetEngine, "views", none)
    with pytest.warns(RuntimeWarning, match="no memory for"), pytest.raises(torch.OutOfMemoryError):
        played(suite, [])


def test_the_trust_report_reads_what_the_scripts_left(tmp_path):
    fuzzed = {"inputs": 60, "read": 10, "refused": 50, "failed": 0, "slowest": 0.1, "seconds": 1.0, "reasons": {}}
    (tmp_path / "fuzz.json").write_text(json.dumps({"parsers": {"npz": fuzzed, "rows": fuzzed}, "peak_mib": 300}))
    soaked = {"minutes": 60.0, "mib_per_minute": 0.01, "handles_leaked": 0, "contract_broken": 0, "passed": True}
    (tmp_path / "soak.json").write_text(json.dumps(soaked))
    killed = {"random_kills": 20, "write_kills": 18, "identical": True}
    (tmp_path / "kills.json").write_text(json.dumps([killed, killed | {"write_kills": 0}]))
    (tmp_path / "tests.json").write_text(json.dumps({"faults": [16, 16], "malicious": [36, 36]}))
    script = Path(__file__).resolve().parent.parent / "scripts" / "trust_report.py"
    arguments = [sys.executable, str(script), "--results", str(tmp_path), "--no-run"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    table = done.stdout
    assert "inputs fuzzed                120 of 120" in table
    assert "kills resumed to the bit     58 of 58" in table
    assert "+0.010 MiB a minute" in table
    soaked["passed"] = False
    (tmp_path / "soak.json").write_text(json.dumps(soaked))
    assert subprocess.run(arguments, capture_output=True, check=False, env=os.environ).returncode == 1
