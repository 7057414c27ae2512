"""The search for what open-loop arms play: on training tasks alone, and in the form that the arms read."""

import json
import math

import pytest
from tiny import task

from lepton_rl.agents import open_loop_search as module
from lepton_rl.agents.arms import found
from lepton_rl.agents.arms.found import checked_actions, known_beforehand
from lepton_rl.agents.open_loop_search import OpenLoopSearchConfig, search_open_loop
from lepton_rl.controls import ControlSettings
from lepton_rl.objective import NEEDS_SOURCE
from lepton_rl.suite import TaskSuite


class Pool:
    """Plays jobs here, by a smooth function: the best learning rate is 3e-3, and later unfreezing is bad."""

    def __init__(self, *words):
        self.jobs = []

    def __enter__(self):
        return self

    def __exit__(self, *words):
        return None

    def map(self, function, jobs, chunksize):
        assert (function, chunksize) == (module._play, 1)
        self.jobs += jobs
        return [1 - abs(math.log(policy.settings.learning_rate / 3e-3)) / 10 for policy, _, _ in jobs]


@pytest.fixture
def pool(monkeypatch):
    made = Pool()
    monkeypatch.setattr(module.multiprocessing, "get_context", lambda kind: type("C", (), {"Pool": lambda *w: made}))
    return made


def test_a_schedule_is_found_and_written_as_the_arm_reads_it(pool, tmp_path):
    out = tmp_path / "tuned-schedule.json"
    made = search_open_loop(OpenLoopSearchConfig(what="tuned-schedule", tasks=6, trials=25, out=out))
    content = json.loads(out.read_text())
    assert content == json.loads(json.dumps(made))
    assert checked_actions(content["actions"], "x")
    assert ControlSettings(**content["settings"]).learning_rate == pytest.approx(3e-3, rel=0.5)
    assert {index for _, index, _ in pool.jobs} == set(range(6))
    assert len(pool.jobs) < 25 * 6  # poor trials stop after a third of the tasks


def test_a_default_per_regime_is_found_on_the_tasks_of_its_kind(pool, tmp_path, monkeypatch):
    out = tmp_path / "found.json"
    search_open_loop(OpenLoopSearchConfig(what="tuned-default-per-regime", tasks=3, trials=3, out=out))
    settings = json.loads(out.read_text())["settings"]
    suite = TaskSuite.digits()
    kinds = set()
    for policy, index, regime in pool.jobs:
        recipe = suite.recipe("train", index, regime)
        kinds.add(regime + ", source-free" * recipe.source_free)
        if recipe.source_free:
            assert not any(policy.settings.weights[term] for term in NEEDS_SOURCE)
    assert kinds == set(settings)
    monkeypatch.setattr(found, "read_found", lambda name: json.loads(out.read_text()))
    for labels in (True, False):
        for source in (True, False):
            visible = task(1, labels=labels, source=source)
            assert known_beforehand(visible) in settings
            assert found.PER_REGIME.policy_for(visible).settings.learning_rate > 0
