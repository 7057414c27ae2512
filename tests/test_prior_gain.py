"""What a known class prior is worth: who is told what, and what is compared."""

import numpy as np
import pytest

from lepton_rl.agents import prior_gain
from lepton_rl.agents.prior_gain import KNOWN, ROUGH, UNKNOWN, WRONG, points, prior_gains, prior_table, priors_of
from lepton_rl.errors import InputError
from lepton_rl.policy import KeepPolicy
from lepton_rl.suite import TaskSuite


@pytest.fixture(scope="module")
def suite():
    return TaskSuite("digits", TaskSuite.digits()._bases, width=4, pretrain_steps=30, budgets=(10,))


def test_what_a_run_is_told_is_the_truth_something_like_it_or_a_long_tail(suite, monkeypatch):
    task = next(t for t in (suite.task("validation", i) for i in range(9)) if t.facts["label_skew"] > 0)
    told = priors_of(task)
    assert list(told) == [UNKNOWN, KNOWN, ROUGH, WRONG]
    assert told[UNKNOWN] is None
    for name in (KNOWN, ROUGH, WRONG):
        assert told[name].sum() == pytest.approx(1)
        assert told[name].min() > 0
    labels = np.concatenate([task.hidden.target_train_labels, task.hidden.target_eval.labels])
    assert told[KNOWN] == pytest.approx(np.bincount(labels) / len(labels))
    assert np.corrcoef(told[KNOWN], told[ROUGH])[0, 1] > 0.5
    heard = []
    play = prior_gain.rollout
    monkeypatch.setattr(
        prior_gain, "rollout", lambda visible, *a, **k: (heard.append(visible.class_prior), play(visible, *a, **k))[1]
    )
    assert all(0 < points(task, KeepPolicy(), told[name]) <= 100 for name in (WRONG, UNKNOWN))
    assert heard[0] is told[WRONG]
    assert heard[1] is None


def test_every_policy_is_compared_with_itself():
    found = {UNKNOWN: (40.0, 60.0), KNOWN: (60.0, 60.0), ROUGH: (49.5, 60.0), WRONG: (30.0, 60.0)}
    rows = [
        {"skew": 1.0, "source-only": 50.0} | {f"p, {prior}": both[number] for prior, both in found.items()}
        for number in (0, 1)
    ]
    table = prior_table(rows, ("p",)).splitlines()
    assert table[0] == "| | long-tailed (2) |"
    assert table[2:] == [
        "| p, unknown | +0.00 ± 0.00, 50 % worse |",
        "| p, known | +10.00 ± 7.07, 0 % worse |",
        "| p, roughly known | +4.75 ± 3.36, 0 % worse |",
        "| p, wrong | -5.00 ± 3.54, 50 % worse |",
    ]


def test_long_tailed_tasks_and_half_as_many_balanced_ones_are_played(suite, monkeypatch):
    monkeypatch.setattr(prior_gain, "points", lambda task, policy, prior: 0.0 if prior is None else 1.0)
    rows = prior_gains(lambda: suite, ("tuned-default",), 2, 1)
    assert sorted(row["skew"] > 0 for row in rows) == [False, True, True]
    assert {row["tuned-default, known"] for row in rows} == {1.0}
    assert all(0 < row["source-only"] <= 100 for row in rows)


def test_a_policy_that_there_is_not_is_told_at_once():
    with pytest.raises(InputError, match="policy 'nope' is unknown"):
        prior_gains(lambda: pytest.fail("no task is made"), ("tuned-default", "nope"), 1, 1)
