"""The tuned default per regime: the best static plan of the experience, and the arm that plays it."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from test_experience import made_up
from tiny import task

from lepton_rl.agents.arms import found
from lepton_rl.agents.look_up import look_up, moved
from lepton_rl.agents.plans import PLANS
from lepton_rl.controls import ControlSettings, tuned_default
from lepton_rl.errors import InputError


def some(rng):
    """Return experience of all cases; plan 1 is best with labels, the last plan, which is not static, without."""
    experience = []
    for few in (True, False):
        for free in (0, 1):
            for _ in range(3):
                e = made_up(few, rng)
                e.facts["source_free"] = free
                if not few:
                    e.accuracies[LATE, -1] += 0.2
                    e.accuracies[2, -1] += 0.1
                experience.append(e)
    return experience


LATE = next(number for number, plan in enumerate(PLANS) if plan.last)


def test_the_best_static_plan_of_every_case_is_looked_up(monkeypatch):
    content = json.loads(json.dumps(look_up(some(np.random.default_rng(0)))))
    assert set(content["settings"]) == set(found.CASES)
    for case, told in content["search"]["cases"].items():
        best = PLANS[1] if case.startswith("few-label") else PLANS[2]
        assert told == {"plan": best.name, "tasks": 3, "points_above_the_tuned_default":
                        pytest.approx(4.0 if case.startswith("few-label") else 10.0, abs=0.01)}  # fmt: skip
        assert content["settings"][case] == asdict(moved(tuned_default(), best))
    monkeypatch.setattr(found, "read_found", lambda name, maker: content)
    found.PER_REGIME.check()
    for labels in (True, False):
        for source in (True, False):
            policy = found.PER_REGIME.policy_for(task(1, labels=labels, source=source))
            assert policy.settings == moved(tuned_default(), PLANS[1 if labels else 2])
    del content["settings"]["label-free"]
    with pytest.raises(InputError, match=r"no settings for 'label-free'.*make it again with `python scripts/look_up"):
        found.PER_REGIME.check()


def test_a_case_without_tasks_is_told():
    few = [e for e in some(np.random.default_rng(0)) if e.facts["regime"] == "few-label"]
    with pytest.raises(InputError, match="holds no task that is label-free: expected some; collect more"):
        look_up(few)


def test_moved_knobs_are_those_of_the_first_decision():
    start = ControlSettings(learning_rate=1e-3, unfrozen_stages=4)
    plan = next(plan for plan in PLANS if plan.first.get("unfreeze") == 0 and plan.first.get("learning_rate") == 1)
    after = moved(start, plan)
    assert after.unfrozen_stages == 3
    assert after.learning_rate == pytest.approx(1e-3 / 2.5)
    assert moved(start, PLANS[0]) == start
    assert torch.equal(PLANS[0].actions(2)[0], PLANS[0].actions(2)[1])
