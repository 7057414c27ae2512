"""A guard is taught on runs of its own policy: which runs, what is kept, and what comes out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lepton_rl.agents import guarding, teach
from lepton_rl.agents.experience import play
from lepton_rl.agents.plans import PLANS
from lepton_rl.agents.teach import BESIDE, TeachConfig
from lepton_rl.artifact import PolicyArtifact, shipped_policy_path
from lepton_rl.errors import InputError
from lepton_rl.policy import NetworkPolicy, SchedulePolicy
from lepton_rl.rollout import rollout
from lepton_rl.suite import TaskSuite


@pytest.fixture
def quick(monkeypatch, suite):
    monkeypatch.setattr(guarding, "STEPS", 20)
    monkeypatch.setattr(teach.SuiteChoice, "maker", lambda self: lambda: suite)


@pytest.fixture(scope="module")
def actor(tmp_path_factory) -> Path:
    """The shipped actor, without its guard."""
    shipped = PolicyArtifact.load(shipped_policy_path())
    path = tmp_path_factory.mktemp("policy") / "actor.safetensors"
    PolicyArtifact(policy=replace(shipped.policy, guard=None), card=shipped.card).save(path)
    return path


def test_the_plans_beside_it_are_of_the_portfolio_and_the_default_comes_first():
    assert len(BESIDE) == 7
    assert BESIDE[0] is PLANS[0]


def test_the_first_lane_is_the_policys_own_run(suite: TaskSuite):
    task = suite.task("train", 7)
    policy = SchedulePolicy(actions=((1, 3, 2, 2, 2, 2, 2, 4, 2, 0, 1, 0),))
    e = play(task, plans=BESIDE[:1], policy=policy)
    history = rollout(task.visible, policy, seed=int(task.facts["seed"])).history
    assert e.observations.shape[0] == e.actions.shape[0] == 2
    assert e.actions[0, 0].tolist() == list(policy.actions[0])
    for seen, row in zip(e.observations[0], history, strict=True):
        assert seen.tolist() == pytest.approx(list(row["observation"].values()), abs=2e-3)
    assert e.scores[0, 1:].tolist() == pytest.approx([row["score"] for row in history[1:]], abs=2e-3)
    alone = play(task, plans=BESIDE[:1])
    assert torch.allclose(e.accuracies[1], alone.accuracies[0], atol=0.01)


def test_a_guard_is_taught_and_a_killed_teaching_goes_on(quick, suite, actor: Path, tmp_path: Path):
    config = TeachConfig(
        policy=actor, out=tmp_path / "taught.safetensors", experience=tmp_path / "runs", first=3, tasks=6, workers=1
    )
    table = teach.teach(config)
    first = config.out.read_bytes()
    assert [path.name for path in sorted(config.experience.iterdir())] == [
        f"train-{n:05d}.safetensors" for n in range(3, 9)
    ]
    taught, before = PolicyArtifact.load(config.out), PolicyArtifact.load(actor)
    assert taught.policy.guard is not None
    assert taught.card == before.card | {"guard": {"tasks": 6, "runs": 48, "seed": 0}}
    assert all(
        torch.equal(a, b)
        for pair in zip(taught.policy.layers, before.policy.layers, strict=True)
        for a, b in zip(*pair, strict=True)
    )
    assert "The policy's runs:" in table
    assert table.count("| hindsight |") == 2
    config.path(("train", 5)).unlink()
    assert teach.teach(config) == table
    assert config.out.read_bytes() == first
    other = replace(config, out=tmp_path / "other.safetensors", seed=1, tasks=5)
    teach.teach(other)
    assert PolicyArtifact.load(other.out).card["guard"] == {"tasks": 5, "runs": 40, "seed": 1}
    foreign = NetworkPolicy(inputs=before.policy.inputs, layers=tuple((-w, -b) for w, b in before.policy.layers))
    PolicyArtifact(policy=foreign, card={}).save(tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match="was played under another policy"):
        teach.teach(replace(other, policy=tmp_path / "foreign.safetensors"))


def test_pairs_of_sets_are_played_too():
    config = TeachConfig(policy=Path("a"), out=Path("b"), first=9, tasks=1, pairs=2)
    assert config.jobs == [("train", 9), ("train-pairs", 9), ("train-pairs", 10)]


def test_what_gives_nothing_is_refused(quick, actor: Path, tmp_path: Path):
    with pytest.raises(InputError, match="tasks 0 is out of range"):
        TeachConfig(policy=actor, out=tmp_path / "x", tasks=0)
    with pytest.raises(InputError, match="missing"):
        teach.teach(TeachConfig(policy=tmp_path / "missing.safetensors", out=tmp_path / "x", tasks=1))
    with pytest.raises(InputError, match="train-pairs"):
        teach.teach(TeachConfig(policy=actor, out=tmp_path / "x", tasks=1, pairs=1))
    assert not (tmp_path / "x").exists()
