"""Recorded runs as an environment: answers, rewards, ends, and what PPO learns there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from lepton_rl.agents.distill import distil, returns
from lepton_rl.agents.plans import PLANS
from lepton_rl.agents.ppo import ResumablePPO, actor, favour_keep, rehearse, training_state
from lepton_rl.agents.ppo_ablation import Variant, trained_points
from lepton_rl.agents.recorded import OFF_RECORD, RecordedEnv, RecordedRun, recorded_points
from lepton_rl.agents.training_env import NormalisedVecEnv
from lepton_rl.controls import KEEP, KNOBS, tuned_default
from lepton_rl.policy import KeepPolicy, SchedulePolicy
from lepton_rl.signals import SIGNAL_NAMES
from lepton_rl.standardise import Standardiser
from tests.test_experience import made_up

STOP = np.array([*KEEP[:-1], 1])
RATE_UP = PLANS[1].actions(8)[0].numpy()


@pytest.fixture(scope="module")
def experience():
    """Played tasks that no test changes."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(60):
        e = made_up(few=i % 2 == 0, rng=rng)
        # Something happens on the way too, differently under every plan.
        on_the_way = torch.from_numpy(rng.random((len(PLANS), 7, 1))).float() * 0.1
        found.append(replace(e, accuracies=torch.cat([e.accuracies[:, :1], 0.5 + on_the_way.expand(-1, -1, 2),
                                                      e.accuracies[:, -1:]], 1)))  # fmt: skip
    return found


@pytest.fixture(scope="module")
def clone(experience):
    """What the first forty of them taught."""
    return distil(experience[:40], torch.zeros(0, len(SIGNAL_NAMES)), 0.0, tuned_default(), smoothing=0.03)


def returned(env, actions):
    env.reset(seed=0)
    paid = []
    for action in actions:
        *_, reward, terminated, truncated, _ = env.step(np.asarray(action))
        paid.append(reward)
        assert not truncated
    assert terminated
    return sum(paid)


def test_the_environment_is_one_of_gymnasium(experience):
    check_env(RecordedEnv(experience[:1]), skip_render_check=True)


@pytest.mark.parametrize("lane", range(len(PLANS)))
def test_a_recorded_plan_returns_what_it_was_worth(experience, lane):
    plan = PLANS[lane].actions(8).numpy()
    e = experience[0]
    assert returned(RecordedEnv([e]), plan) == pytest.approx(float(e.returns[lane]), abs=1e-3)
    run = RecordedRun(e)
    for decision, action in enumerate(plan):
        run.step(action)
        assert run.apart == 0
        twins = (e.actions[:, : decision + 1] == e.actions[lane, : decision + 1]).flatten(1).all(1)
        assert any(np.array_equal(run.observation, e.observations[i, decision + 1]) for i in torch.where(twins)[0])
    assert run.ended
    assert np.array_equal(run.observation, e.observations[lane, -1])


def test_stopping_pays_what_was_reached_less_what_the_default_would_have_reached(experience):
    e = experience[0]
    for done in (0, 3):
        expected = 100 * float(e.accuracies[1, done].mean() - e.accuracies[0, -1].mean()) if done else (
            float(returns(e)[len(PLANS)]))  # fmt: skip
        actions = [*PLANS[1].actions(8).numpy()[:done], STOP]
        assert returned(RecordedEnv([e]), actions) == pytest.approx(expected, abs=1e-3)


def test_stacked_observations_hold_the_one_before(experience):
    env = RecordedEnv(experience[:1], stacked=True)
    check_env(env, skip_render_check=True)
    n = len(SIGNAL_NAMES)
    before, _ = env.reset(seed=0)
    assert np.array_equal(before[:n], before[n:])
    for action in PLANS[1].actions(8).numpy():
        after, *_ = env.step(action)
        assert np.array_equal(after[n:], before[:n])
        assert not np.array_equal(after[:n], before[:n])
        before = after


def test_what_was_not_recorded_costs_by_how_far_it_is(experience):
    strange = RATE_UP.copy()
    strange[KNOBS.index("augmentation")] = 0
    actions = [strange, *[KEEP] * 7]
    paid = returned(RecordedEnv(experience[:1]), actions)
    assert paid == pytest.approx(float(experience[0].returns[1]) - OFF_RECORD, abs=1e-3)
    assert returned(RecordedEnv(experience[:1], action_cost=0.1), actions) == pytest.approx(paid - 0.2, abs=1e-3)
    gained = 100 * float(experience[0].accuracies[1, -1].mean() - experience[0].accuracies[1, 0].mean())
    raw = returned(RecordedEnv(experience[:1], control_variate=False, off_record=0.0), actions)
    assert raw == pytest.approx(gained, abs=1e-3)


def test_a_greedy_policy_is_judged_by_the_run_it_takes(experience):
    points, apart = recorded_points(KeepPolicy(), experience)
    assert not points.any()
    assert not apart.any()
    rate_up = SchedulePolicy(actions=(tuple(RATE_UP.tolist()),))
    points, apart = recorded_points(rate_up, experience)
    assert points == pytest.approx(np.array([4.0, -4.0] * 30), abs=1e-3)
    assert not apart.any()
    half, _ = recorded_points(SchedulePolicy(actions=(KEEP, KEEP, tuple(STOP.tolist()))), experience[:1])
    e = experience[0]
    assert half[0] == pytest.approx(100 * float(e.accuracies[0, 2].mean() - e.accuracies[0, -1].mean()), abs=1e-3)


def model_on(env, **changes):
    model = ResumablePPO("MlpPolicy", env, n_steps=64, batch_size=256, n_epochs=10, learning_rate=3e-3, gamma=1.0,
                         seed=0, device="cpu", policy_kwargs={"net_arch": [16]}, **changes)  # fmt: skip
    favour_keep(model, 0.9)
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def test_a_rehearsal_teaches_and_leaves_only_weights_behind(experience):
    """Rate up is good with labels and bad without: PPO finds it on recorded runs, from keeping everything."""
    inputs = Standardiser.of(torch.cat([e.observations.flatten(0, 1) for e in experience[:2]]))
    own, played = (
        NormalisedVecEnv(DummyVecEnv([lambda: RecordedEnv(experience)] * 16), inputs) for _ in range(2)
    )  # fmt: skip
    model = model_on(own)
    before, _ = recorded_points(actor(model, inputs, tuned_default()), experience)
    rehearse(model, played, 40)
    assert model.env is own
    assert training_state(model)["counters"].tolist() == [0, 0, 0]
    after, _ = recorded_points(actor(model, inputs, tuned_default()), experience)
    assert not before.any()
    assert after.mean() > 1.0  # 2 is the most
    one, again = model_on(own), model_on(own)
    for short in (one, again):
        rehearse(short, played, 3)
    assert all(torch.equal(a, b) for a, b in zip(one.policy.parameters(), again.policy.parameters(), strict=True))


@pytest.mark.parametrize(
    "variant",
    [
        Variant(name="cloned"),
        Variant(name="no PPO", rollouts=0),
        Variant(name="privileged", told=True),
        Variant(name="apart", apart=True),
        Variant(name="stacked", stacked=True),
    ],
    ids=lambda v: v.name,
)
def test_a_variant_of_ppo_trains_and_is_judged(experience, clone, variant):
    short = replace(variant, rollouts=min(variant.rollouts, 2))
    points, apart = trained_points(short, experience[:40], experience[40:], clone, 0)
    assert points.shape == (20,)
    assert points.mean() > 0.5
    assert apart >= 0


def test_a_policy_that_may_look_back_starts_as_the_one_that_may_not(experience, clone):
    points = [
        trained_points(Variant(name="", stacked=stacked, rollouts=0), experience[:40], experience[40:], clone, 0)[0]
        for stacked in (False, True)
    ]
    assert np.array_equal(*points)


def test_a_hidden_group_of_signals_tells_nothing():
    rng = np.random.default_rng(0)
    experience = [made_up(few=i % 2 == 0, rng=rng) for i in range(60)]
    clone = distil(experience[:40], torch.zeros(0, len(SIGNAL_NAMES)), 0.0, tuned_default(), smoothing=0.03)
    blind = Variant(name="blind", cloned=False, rollouts=8, hidden_groups=("availability", "facts"))
    points, _ = trained_points(blind, experience[:40], experience[40:], clone, 0)
    assert points.mean() < 0.5
