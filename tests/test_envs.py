"""The environments: checkers, contract, determinism, N lanes against N single environments."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from lepton_rl.controls import ACTION_SIZES, KEEP, KNOBS
from lepton_rl.domain import Domain
from lepton_rl.envs import ENV_ID, FineTuneEnv, FineTuneVectorEnv
from lepton_rl.envs.reward import DIVERGENCE_PENALTY, reward
from lepton_rl.envs.session import DefaultRuns
from lepton_rl.errors import InputError
from lepton_rl.models import TRAIN_ARCHITECTURES
from lepton_rl.run import decisions_of
from lepton_rl.signals import SIGNALS
from lepton_rl.suite import TaskSuite, class_part

KEEP_ACTION = np.array(KEEP)


def make(suite, **arguments):
    return gymnasium.make(ENV_ID, suite=suite, tasks=4, **arguments)


def play(env, actions, seed):
    """Return everything an episode under fixed actions shows."""
    observation, info = env.reset(seed=seed)
    seen = [(observation, 0.0, False, info["task"])]
    for action in actions:
        observation, paid, terminated, truncated, info = env.step(action)
        seen.append((observation, paid, terminated, info["task"]))
        if terminated or truncated:
            break
    return seen


def test_gymnasium_checker(suite):
    check_env(make(suite).unwrapped)


def test_sb3_checker(suite):
    check_env_sb3(make(suite).unwrapped)


def test_the_documentation_lists_every_signal_and_knob():
    text = FineTuneEnv.__doc__
    assert "{observation_table}" not in text
    assert all(f"| {signal.name} |" in text for signal in SIGNALS)
    assert len(KNOBS) == len(ACTION_SIZES) == 12


def test_an_episode_is_a_function_of_its_seed(suite):
    rng = np.random.default_rng(0)
    actions = rng.integers(0, ACTION_SIZES, (8, 12))
    actions[:, -1] = 0
    first, second = (play(make(suite), actions, seed=5) for _ in range(2))
    for (o1, r1, t1, n1), (o2, r2, t2, n2) in zip(first, second, strict=True):
        assert np.array_equal(o1, o2)
        assert (r1, t1, n1) == (r2, t2, n2)


def test_keeping_everything_is_the_tuned_default_and_earns_exactly_nothing(suite):
    seen = play(make(suite), [KEEP_ACTION] * 8, seed=1)
    assert seen[-1][2], "the budget must end the episode"
    assert len(seen) > 2
    assert [paid for _, paid, _, _ in seen] == [0.0] * len(seen)


def test_stopping_at_once_costs_what_the_default_would_have_gained(suite):
    env = make(suite)
    stop = KEEP_ACTION.copy()
    stop[-1] = 1
    _, info = env.reset(seed=1)
    _, paid, terminated, truncated, after = env.step(stop)
    assert terminated
    assert not truncated
    assert after["steps"] == 0
    assert paid == pytest.approx(100 * (info["eval_accuracy"] - info["default_accuracy"]))


def test_a_diverging_run_ends_with_finite_values_and_restored_weights(suite, monkeypatch):
    env = make(suite, architecture="vgg")
    env.reset(seed=1)
    engine = env.unwrapped._session._run.engine
    before = engine.snapshot(0)
    real = engine.backward

    def poisoned(loss, learning_rate, trained):
        real(loss * float("nan"), learning_rate, trained)

    monkeypatch.setattr(engine, "backward", poisoned)
    observation, paid, terminated, truncated, info = env.step(KEEP_ACTION)
    assert terminated
    assert not truncated
    assert info["diverged"]
    assert np.isfinite(paid)
    assert env.observation_space.contains(observation)
    after = engine.snapshot(0)
    assert all((before[name] == after[name]).all() for name in before)


@pytest.fixture(scope="module")
def mixed_suite():
    """Tasks of five classes and of ten."""
    half = lambda: class_part(Domain.digits(), "lower")  # noqa: E731
    return TaskSuite("mixed-test", {"half": half, "whole": Domain.digits}, pretrain_steps=60, budgets=(10,))


@pytest.mark.parametrize(("fleet", "mixed"), [(True, False), (False, False), (True, True), (False, True)])
def test_lanes_do_what_single_environments_do(suite, mixed_suite, fleet, mixed):
    """Also where tasks have different numbers of classes."""
    n = 4
    suite = mixed_suite if mixed else suite
    assert {suite.task("train", i).visible.n_classes for i in range(4)} == ({5, 10} if mixed else {10})
    vector = gymnasium.make_vec(
        ENV_ID, num_envs=n, vectorization_mode="vector_entry_point", suite=suite, tasks=4, fleet=fleet
    )
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    kinds = [TRAIN_ARCHITECTURES[i % len(TRAIN_ARCHITECTURES)] for i in range(n)]
    singles = [make(suite, architecture=kind) for kind in kinds]
    observations, _ = vector.reset(seed=7)
    for i, single in enumerate(singles):
        np.testing.assert_allclose(single.reset(seed=7 + i)[0], observations[i], atol=1e-5)
    rng = np.random.default_rng(0)
    for _ in range(10):
        # Small steps of a few knobs: rounding differences stay small, so that a wrong lane stands out.
        actions = np.tile(KEEP_ACTION, (n, 1))
        actions[:, 9] = rng.integers(0, 2, n)
        actions[:, -1] = rng.random(n) < 0.2
        observations, rewards, terminated, truncated, infos = vector.step(actions)
        assert not truncated.any()
        for i, single in enumerate(singles):
            seen, paid, ended, _, _ = single.step(actions[i])
            assert ended == terminated[i]
            assert paid == pytest.approx(rewards[i], abs=4.0)
            if ended:
                assert np.abs(infos["final_obs"][i] - seen).mean() < 0.02
                seen, _ = single.reset()
            assert np.abs(observations[i] - seen).mean() < 0.02


def test_the_defaults_own_runs_are_played_together_and_a_seed_starts_them_anew(suite, monkeypatch):
    sizes, inner = [], DefaultRuns._play

    def watched(self, drawn, engine):
        sizes.append((len(drawn), engine.lanes))
        found = inner(self, drawn, engine)
        assert [len(accuracies) - 1 for accuracies in found] == [decisions_of(t.visible.budget) for t, _ in drawn]
        return found

    monkeypatch.setattr(DefaultRuns, "_play", watched)
    env = FineTuneVectorEnv(3, suite=suite, tasks=1000, architectures=("vgg",))
    first = env.reset(seed=2)[1]["default_accuracy"]
    again = env.reset(seed=2)[1]["default_accuracy"]
    assert sizes == [(3, 3), (3, 3)]
    assert np.array_equal(first, again)
    env.reset()
    assert len(sizes) == 3


def test_sub_environments_are_available_by_make_vec_sync(suite):
    env = gymnasium.make_vec(
        ENV_ID,
        num_envs=2,
        vectorization_mode="sync",
        suite=suite,
        tasks=2,
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )
    observations, _ = env.reset(seed=0)
    assert observations.shape == (2, len(SIGNALS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"suite": "nothing"}, "suite 'nothing' is unknown"),
        ({"tasks": 0}, "tasks 0 is out of range"),
        ({"regime": "none"}, "regime 'none' is unknown"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        FineTuneEnv(**arguments)


@settings(max_examples=200, deadline=None)
@given(
    accuracies=st.lists(st.floats(0, 1), min_size=2, max_size=9),
    default=st.lists(st.floats(0, 1), min_size=9, max_size=9),
    diverged=st.booleans(),
)
def test_the_return_is_points_above_the_default_however_the_run_ends(accuracies, default, diverged):
    default[0] = accuracies[0]  # both start from the same weights
    total = 0.0
    for decision in range(1, len(accuracies)):
        ended = decision == len(accuracies) - 1
        total += reward(
            accuracies[decision],
            accuracies[decision - 1],
            default,
            decision,
            ended=ended,
            diverged=diverged and ended,
            changed=2,
            action_cost=0.5,
        )
    expected = 100 * (accuracies[-1] - default[-1]) - (len(accuracies) - 1) - DIVERGENCE_PENALTY * diverged
    assert total == pytest.approx(expected, abs=1e-9)
