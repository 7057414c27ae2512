"""PPO training: it learns something tiny, resumes to the bit, and hands out what it trained."""

import csv
import sys
import types
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from safetensors.torch import load_file
from stable_baselines3 import PPO

from lepton_rl.agents import distill, guarding, tracking, training_env
from lepton_rl.agents import training as training_module
from lepton_rl.agents.experience import play
from lepton_rl.agents.plans import PLANS
from lepton_rl.agents.ppo import actor, favour_keep, keep_probabilities
from lepton_rl.agents.sb3_vec_env import SB3VecEnv, lane_info
from lepton_rl.agents.train import TrainConfig, train
from lepton_rl.agents.workers import WorkerVectorEnv
from lepton_rl.artifact import PolicyArtifact
from lepton_rl.choice import Choice
from lepton_rl.controls import ACTION_SIZES, KEEP
from lepton_rl.envs import FineTuneVectorEnv
from lepton_rl.envs.spaces import action_space, observation_space
from lepton_rl.errors import InputError
from lepton_rl.signals import SIGNALS
from lepton_rl.standardise import Standardiser
from lepton_rl.suite import TaskSuite
from tests.test_experience import made_up


class CountingEnv(gymnasium.Env):
    """Counts its steps; ends after `length`, by truncation when asked to."""

    observation_space = spaces.Box(0, 100, (1,), dtype=np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length, truncate=False):
        self.length, self.truncate, self.count = length, truncate, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, dtype=np.float32), {"who": "reset"}

    def step(self, action):
        self.count += 1
        over = self.count >= self.length
        observation = np.full(1, self.count, dtype=np.float32)
        return observation, float(self.count), over and not self.truncate, over and self.truncate, {"who": "step"}


def test_the_adapter_loses_no_transition_of_any_lane():
    lanes = [lambda: CountingEnv(2), lambda: CountingEnv(3, truncate=True)]
    env = SB3VecEnv(SyncVectorEnv(lanes, autoreset_mode=AutoresetMode.SAME_STEP))
    assert env.reset().tolist() == [[0], [0]]
    actions = np.zeros(2, dtype=int)
    seen = [env.step(actions) for _ in range(4)]
    assert [s[0][:, 0].tolist() for s in seen] == [[1, 1], [0, 2], [1, 0], [0, 1]]
    assert [s[1].tolist() for s in seen] == [[1, 1], [2, 2], [1, 3], [2, 1]]
    assert [s[2].tolist() for s in seen] == [[False, False], [True, False], [False, True], [True, False]]
    assert seen[1][3][0]["terminal_observation"].tolist() == [2]
    assert seen[1][3][0]["TimeLimit.truncated"] is False
    assert seen[2][3][1]["terminal_observation"].tolist() == [3]
    assert seen[2][3][1]["TimeLimit.truncated"] is True
    assert "terminal_observation" not in seen[0][3][0]


def test_the_adapter_refuses_next_step_autoreset():
    with pytest.raises(InputError, match="SAME_STEP"):
        SB3VecEnv(SyncVectorEnv([lambda: CountingEnv(2)]))


class TargetKnobEnv(gymnasium.Env):
    """Pays one point for moving knob 1 up when signal 0 is high, and for keeping it when it is low."""

    def __init__(self):
        self.observation_space, self.action_space = observation_space(), action_space()

    def _observe(self):
        x = np.clip(np.zeros(len(SIGNALS)), self.observation_space.low, self.observation_space.high)
        self.high = bool(self.np_random.random() < 0.5)
        x[0] = float(self.high)
        return x.astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action):
        paid = float((action[1] == 4) if self.high else (action[1] == KEEP[1]))
        return self._observe(), paid, True, False, {}


def test_ppo_learns_feedback_from_a_policy_that_keeps():
    env = SB3VecEnv(SyncVectorEnv([TargetKnobEnv] * 8, autoreset_mode=AutoresetMode.SAME_STEP))
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=64, learning_rate=3e-3, gamma=1.0, seed=0, device="cpu")
    favour_keep(model, 0.8)
    first = keep_probabilities(model, torch.zeros(1, len(SIGNALS)))
    assert first.numpy() == pytest.approx(np.full(12, 0.8), abs=0.05)
    model.learn(4000)
    policy = actor(model, Standardiser.unchanged(len(SIGNALS)), training_module.tuned_default())
    low, high = torch.zeros(2, 1, len(SIGNALS))
    high[0, 0] = 1.0
    ask = lambda x: policy.act(x, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))[0]  # noqa: E731
    assert ask(high)[1] == 4
    assert ask(low)[1] == KEEP[1]
    assert torch.equal(ask(high), torch.as_tensor(model.predict(high[0].numpy(), deterministic=True)[0]))


def test_workers_do_what_one_process_does(suite):
    arguments = {"suite": suite, "tasks": 3}
    alone = FineTuneVectorEnv(3, fleet=False, **arguments)
    shared = WorkerVectorEnv(3, 2, **arguments)
    try:
        assert np.array_equal(alone.reset(seed=1)[0], shared.reset(seed=1)[0])
        for decision in range(4):
            actions = np.tile(KEEP, (3, 1))
            actions[decision % 3, 1] = 3
            (o1, r1, t1, _, i1), (o2, r2, t2, _, i2) = (env.step(actions) for env in (alone, shared))
            assert np.array_equal(o1, o2)
            assert np.array_equal(r1, r2)
            assert np.array_equal(t1, t2)
            for lane in range(3):
                one, two = lane_info(i1, lane), lane_info(i2, lane)
                assert one.keys() == two.keys()
                assert one["task"] == two["task"]
                assert ("final_obs" in two) == t2[lane]
    finally:
        shared.close()


def test_worker_fleets_are_of_one_architecture_and_do_what_one_process_does(suite):
    arguments = {"suite": suite, "tasks": 3, "fleet": True, "architectures": ("vgg", "resnet")}
    alone, shared = FineTuneVectorEnv(5, **arguments), WorkerVectorEnv(5, 2, **arguments)
    try:
        assert [lanes.tolist() for lanes in shared._lanes] == [[0, 2, 4], [1, 3]]
        assert np.allclose(alone.reset(seed=1)[0], shared.reset(seed=1)[0], atol=1e-5)
        for _ in range(2):
            (o1, r1, t1, *_), (o2, r2, t2, *_) = (env.step(np.tile(KEEP, (5, 1))) for env in (alone, shared))
            assert np.abs(o1 - o2).mean() < 0.002
            assert r1 == pytest.approx(r2, abs=1.0)
            assert np.array_equal(t1, t2)
    finally:
        shared.close()


@pytest.fixture
def tiny(suite, monkeypatch):
    monkeypatch.setattr(TaskSuite, "digits", lambda: suite)
    monkeypatch.setattr(training_env, "STATISTICS_DECISIONS", 2)
    return {
        "tasks": 2,
        "n_envs": 2,
        "n_steps": 5,
        "batch_size": 10,
        "workers": 1,
        "engine": "workers",
        "validate_every": 2,
        "validation_tasks": 1,
        "seed": 3,
    }


def test_a_training_resumes_to_the_bit(tiny, tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(TrainConfig(out=whole, rollouts=3, **tiny), progress=False)
    for rollouts in (1, 3):
        train(TrainConfig(out=parts, rollouts=rollouts, **tiny), progress=False)
    a, b = (load_file(folder / "checkpoint.safetensors") for folder in (whole, parts))
    assert a.keys() == b.keys()
    # A training told to end after one rollout validates there; what is learned must not depend on it.
    learned = [key for key in a if key.startswith(("policy", "optimizer", "counters", "observation"))]
    assert len(learned) > 20
    assert all(torch.equal(a[key], b[key]) for key in learned)
    rows = list(csv.DictReader((whole / "log.csv").read_text().splitlines()))
    assert [row["rollout"] for row in rows] == ["1", "2", "3"]
    artifact = PolicyArtifact.load(whole / "policy.safetensors")
    assert artifact.card["arguments"]["seed"] == 3
    assert "python scripts/train_agent.py --tasks 2 --rollouts 3" in artifact.card["command"]
    assert "--out" not in artifact.card["command"]
    actions = artifact.policy.act(torch.zeros(1, len(SIGNALS)), torch.zeros(1), torch.zeros(1))
    assert actions.shape == (1, len(ACTION_SIZES))


@pytest.fixture(scope="module")
def taught(suite, tmp_path_factory) -> Path:
    """A played task, and five as if they had been."""
    folder, rng = tmp_path_factory.mktemp("experience"), np.random.default_rng(0)
    played = [play(suite.task("train", 0)), *(made_up(few=index % 2 == 0, rng=rng) for index in range(1, 6))]
    for index, one in enumerate(played):
        (folder / f"{index}.safetensors").write_bytes(one.to_bytes())
    return folder


@pytest.fixture
def learns_little(monkeypatch):
    """What is learnt need not be good."""
    monkeypatch.setattr(distill, "TREES", 5)
    monkeypatch.setattr(distill, "EPOCHS", 100)
    monkeypatch.setattr(guarding, "STEPS", 50)


def test_a_training_starts_from_what_experience_taught_and_resumes(tiny, taught, learns_little, tmp_path: Path):
    """The start is validated as row 0 and can be the best; what a resumed training knows is in its checkpoint."""
    arguments = tiny | {"experience": taught, "learning_rate": 1e-9, "hidden": (8,)}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(TrainConfig(out=whole, rollouts=2, **arguments), progress=False)
    for rollouts in (1, 2):
        train(TrainConfig(out=parts, rollouts=rollouts, **arguments), progress=False)
    a, b = (load_file(folder / "checkpoint.safetensors") for folder in (whole, parts))
    assert all(torch.equal(a[key], b[key]) for key in a if key.startswith(("policy.", "optimizer")))
    rows = list(csv.DictReader((whole / "log.csv").read_text().splitlines()))
    assert [row["rollout"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["validation_return"]
    artifact = PolicyArtifact.load(whole / "policy.safetensors")
    assert artifact.card["experience"]["runs"] == 6 * len(PLANS)
    start, facts = distill.distilled(taught, hidden=(8,), keep=0.93, seed=3)
    assert facts["tasks"] == 6
    # Nothing was learned at that rate: what came out is what went in.
    observations = torch.rand(20, len(SIGNALS))
    assert torch.allclose(artifact.policy.logits(observations), start.logits(observations), atol=1e-3)


def test_a_training_can_rehearse_on_recorded_runs_alone(tiny, taught, learns_little, tmp_path: Path):
    """PPO changes what was distilled, nothing counts as a rollout, and the same command changes nothing more."""
    config = TrainConfig(out=tmp_path / "out", rollouts=0, rehearsals=3, experience=taught, **tiny | {"hidden": (8,)})
    file = train(config, progress=False).read_bytes()
    artifact = PolicyArtifact.from_bytes(file)
    assert artifact.card["rollouts"] == artifact.card["decisions"] == 0
    assert artifact.card["experience"]["rehearsals"] == 3
    assert "--rehearsals 3" in artifact.card["command"]
    start, _ = distill.distilled(taught, hidden=(8,), keep=0.93, seed=3)
    observations = torch.rand(20, len(SIGNALS))
    assert not torch.allclose(artifact.policy.logits(observations), start.logits(observations), atol=1e-3)
    assert train(config, progress=False).read_bytes() == file


@pytest.mark.parametrize("asked", [{"rehearsals": 1}, {"rollouts": 0}])
def test_without_experience_there_is_nothing_to_rehearse(asked):
    with pytest.raises(InputError, match="without an experience"):
        TrainConfig(**asked)


def test_a_folder_without_experience_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="holds no task"):
        TrainConfig(experience=tmp_path)


def test_a_folder_of_another_training_is_refused(tiny, tmp_path: Path):
    train(TrainConfig(out=tmp_path, rollouts=1, **tiny), progress=False)
    with pytest.raises(InputError, match="another gamma"):
        train(TrainConfig(out=tmp_path, rollouts=1, **{**tiny, "gamma": 0.9}), progress=False)


def test_a_foreign_folder_is_left_alone(tiny, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not the output of a training: expected a new or empty folder"):
        train(TrainConfig(out=tmp_path, rollouts=1, **tiny), progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_checkpoint_is_said(tiny, tmp_path: Path):
    train(TrainConfig(out=tmp_path, rollouts=1, **tiny), progress=False)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged"):
        train(TrainConfig(out=tmp_path, rollouts=2, **tiny), progress=False)


@pytest.mark.parametrize(
    ("name", "value"), [("rollouts", -1), ("rehearsals", -1), ("workers", 0), ("keep_probability", 1.0)]
)
def test_wrong_arguments_are_named(name, value):
    with pytest.raises(InputError, match=name):
        TrainConfig(**{name: value})


def test_the_engine_is_measured_once_and_kept(tiny, tmp_path: Path, monkeypatch):
    measured = []

    def fleet(*args, **kwargs):
        measured.append(args)
        return Choice(kind="fleet", rates={})

    monkeypatch.setattr(training_env, "choose_engine", fleet)
    for rollouts in (1, 2):
        out = train(TrainConfig(out=tmp_path, rollouts=rollouts, **{**tiny, "engine": "auto"}), progress=False)
    assert len(measured) == 1
    assert "--engine fleet" in PolicyArtifact.load(out).card["command"]


def test_weights_and_biases_gets_the_log_offline(quick, tmp_path: Path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB_CONSOLE", "off")):
        monkeypatch.setenv(name, value)
    sent = {}
    write = tracking.WandbWriter.write

    def watched(self, row, *rest):
        sent.update(row)
        write(self, row, *rest)

    monkeypatch.setattr(tracking.WandbWriter, "write", watched)
    out = tmp_path / "run"
    train(replace(quick(out, 1), wandb="lepton-test"), progress=False)
    assert {"return_over_default", "validation_return", "keep/stop"} <= set(sent)
    files = list(out.glob("wandb/offline-run-*/run-run.wandb"))
    assert len(files) == 1
    assert files[0].stat().st_size > 500


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_run_of_weights_and_biases_that_fails_ends_no_training(quick, tmp_path: Path, monkeypatch, capsys, broken):
    class Run:
        def __getattr__(self, name):
            return fail if name == broken else lambda *given, **named: None

    def fail(*given, **named):
        raise RuntimeError("the service\ndoes not answer")

    fake = types.ModuleType("wandb")
    fake.init = fail if broken == "init" else lambda **named: Run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    out = train(replace(quick(tmp_path, 1), wandb="lepton-test"), progress=False)
    assert out.is_file()
    said = capsys.readouterr().err
    assert said == "lepton: Weights & Biases failed (the service does not answer): the training goes on without it\n"


def test_weights_and_biases_that_is_missing_is_said(quick, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install 'lepton_rl\[wandb\]'"):
        train(replace(quick(tmp_path, 1), wandb="lepton-test"), progress=False)
