"""Observations: inside their ranges, absent data are zero, and nothing hidden moves them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lepton_rl.controls import ACTION_SIZES, KEEP, ControlSettings
from lepton_rl.envs.spaces import observation_space
from lepton_rl.policy import KeepPolicy, RandomPolicy
from lepton_rl.rollout import rollout
from lepton_rl.run import AdaptationRun
from lepton_rl.signals import SIGNAL_NAMES, SIGNALS
from lepton_rl.solo import SoloEngine


def start(task, seed=0):
    run = AdaptationRun(SoloEngine(task))
    return run, run.start({0: (task, seed, ControlSettings())})


def test_names_are_unique_and_ranges_are_ranges():
    assert len(set(SIGNAL_NAMES)) == len(SIGNALS)
    assert all(signal.low < signal.high and signal.formula for signal in SIGNALS)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=st.integers(0, 7), data=st.data())
def test_observations_stay_inside_the_box_whatever_is_done(suite, index, data):
    space = observation_space()
    run, observation = start(suite.task("train", index).visible)
    assert space.contains(observation[0].numpy())
    while not run.over[0]:
        action = [data.draw(st.integers(0, size - 1)) for size in ACTION_SIZES]
        observation, _ = run.step(torch.tensor([action]))
        assert space.contains(observation[0].numpy())


def test_absent_data_are_zero_with_a_flag(suite):
    few = next(t for t in (suite.task("train", i, "few-label") for i in range(30)) if t.visible.source_train)
    bare = replace(few.visible, source_train=None, source_val=None, target_support=None, target_probe=None, name="bare")
    seen = dict(zip(SIGNAL_NAMES, start(few.visible)[1][0].tolist(), strict=True))
    none = dict(zip(SIGNAL_NAMES, start(bare)[1][0].tolist(), strict=True))
    for name in ("has_source", "has_labels", "source_accuracy"):
        assert seen[name] > 0
    for name in ("has_source", "has_labels", "has_probe", "source_accuracy", "source_loss", "probe_accuracy",
                 "probe_loss", "coral", "mmd", "a_distance", "prior_distance", "gradient_cosine"):  # fmt: skip
        assert none[name] == 0
    assert none["entropy"] == pytest.approx(seen["entropy"], abs=1e-6)


def test_the_knobs_are_seen_where_they_are(suite):
    run, before = start(suite.task("train", 0).visible)
    action = list(KEEP)
    action[0], action[1] = 0, 3
    after, _ = run.step(torch.tensor([action]))
    at = {name: i for i, name in enumerate(SIGNAL_NAMES)}
    assert before[0, at["unfrozen_stages"]] == 1.0
    assert after[0, at["unfrozen_stages"]] == 0.75
    assert after[0, at["learning_rate"]] > before[0, at["learning_rate"]]
    assert after[0, at["progress"]] > before[0, at["progress"]] == 0
    assert run.controls.row(0)["learning_rate"] == pytest.approx(2e-3 * 2.5)


@pytest.mark.parametrize("index", [0, 1, 4])
def test_hidden_labels_change_no_observation_action_or_choice(suite, index):
    """The leak test: permuting the labels of target_eval and target_test must change nothing that is seen."""
    task = suite.task("held-out-tasks", index)
    rng = np.random.default_rng(0)
    mixed = replace(
        task,
        hidden=replace(
            task.hidden,
            target_eval=replace(task.hidden.target_eval, labels=rng.permutation(task.hidden.target_eval.labels)),
            target_test=replace(task.hidden.target_test, labels=rng.permutation(task.hidden.target_test.labels)),
        ),
    )
    for policy in (KeepPolicy(), RandomPolicy()):
        a, b = (rollout(t.visible, policy, seed=1) for t in (task, mixed))
        assert [{**row, "seconds": 0} for row in a.history] == [{**row, "seconds": 0} for row in b.history]
        assert (a.chosen, a.score) == (b.chosen, b.score)
        weights, others = a.engine.snapshot(0), b.engine.snapshot(0)
        assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_environment_shows_no_hidden_label_either(suite):
    """The same through the environment, whose reward does read target_eval."""
    from lepton_rl.envs import FineTuneEnv

    class Mixed(type(suite)):
        def make(self, recipe):
            task = super().make(recipe)
            wrong = replace(task.hidden.target_eval, labels=9 - task.hidden.target_eval.labels)
            return replace(task, hidden=replace(task.hidden, target_eval=wrong))

    mixed = Mixed("digits-test", suite._bases, pretrain_steps=suite.pretrain_steps, budgets=suite.budgets)
    envs = [FineTuneEnv(suite=s, tasks=3) for s in (suite, mixed)]
    seen, paid = [[env.reset(seed=2)[0]] for env in envs], [0.0, 0.0]
    for _ in range(2):
        action = np.array(KEEP)
        action[1] = 4
        for i, env in enumerate(envs):
            observation, reward, *_ = env.step(action)
            seen[i].append(observation)
            paid[i] += reward
    assert all(np.array_equal(a, b) for a, b in zip(*seen, strict=True))
    assert paid[0] != paid[1], "the reward must read target_eval, or this test proves nothing"
