"""The Optuna tuner: what it searches, what it is told, and that a kill costs it nothing."""

import dataclasses
import itertools
import json
import math

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import lane_weights, same, task

from lepton_rl.agents import judge  # noqa: F401 - engines report to the meter
from lepton_rl.agents import tuner as module
from lepton_rl.agents.arms import Trial, best_so_far, find_arm, population_based
from lepton_rl.agents.population import Member
from lepton_rl.agents.search_space import LEARNING_RATES, Space
from lepton_rl.controls import KEEP, WEIGHT_RANGE, tuned_default
from lepton_rl.errors import InputError
from lepton_rl.meter import measuring
from lepton_rl.objective import NEEDS_SOURCE
from lepton_rl.policy import KeepPolicy
from lepton_rl.rollout import RunResult, rollout

COLD = ("tpe", "random-search", "tpe-hyperband", "gp", "tpe-schedule", "random-search-schedule", "gp-schedule")
WARM = tuple(f"{name}-warm" for name in COLD)
TUNERS = ("tpe", "random-search-warm", "tpe-schedule", "gp-schedule-warm")


def pretended(score, steps=10):
    return RunResult(engine=None, chosen="decision 1", reason="", score=score, steps=steps, seconds=0.0, diverged=False)


@pytest.fixture
def played(monkeypatch):
    """Replace runs by a smooth function of the settings, and list the settings that were run."""
    log = []

    def play(visible, policy, *, seed, callback=None):
        del visible, seed, callback
        log.append(policy.settings)
        return pretended(-abs(math.log(policy.settings.learning_rate / 3e-3)) - policy.settings.augmentation)

    monkeypatch.setattr(module, "rollout", play)
    return log


def tried(name, visible, runs, storage=None, seed=7):
    return [trial.settings for trial in find_arm(name).search(visible, seed, runs, storage)]


def kept(journal):
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


@pytest.mark.parametrize("name", TUNERS)
def test_a_longer_search_begins_like_a_shorter_one(played, name):
    visible = task(1)
    short, long = tried(name, visible, 3), tried(name, visible, 13)
    assert long[:3] == short
    assert len({one.to_json() for one in long}) == 13
    assert tried(name, visible, 3, seed=8) != short


@pytest.mark.parametrize("source", [True, False])
@pytest.mark.parametrize("name", WARM)
def test_a_warm_search_starts_with_the_tuned_default(played, name, source):
    first = tried(name, task(1, source=source), 2)[0]
    if source:
        assert first == tuned_default()
    else:
        inert = dict.fromkeys(NEEDS_SOURCE, 0.0)
        assert first == dataclasses.replace(tuned_default(), weights=tuned_default().weights | inert)
    assert tried(name.removesuffix("-warm"), task(1, source=source), 1)[0] != first


@given(seed=st.integers(0, 2**31 - 1), source=st.booleans())
@settings(max_examples=20, deadline=None)
def test_searched_settings_are_in_range(seed, source):
    visible = task(1, source=source, images=4)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    found = Space.of(visible).settings(trial)
    assert LEARNING_RATES[0] <= found.learning_rate <= LEARNING_RATES[1]
    assert found.unfrozen_stages in range(5)
    assert 0 <= found.augmentation <= 1
    assert all(w == 0 or WEIGHT_RANGE[0] <= w <= WEIGHT_RANGE[1] for w in found.weights.values())
    asked = {name.removesuffix("_on") for name in trial.params}
    assert asked.isdisjoint(NEEDS_SOURCE) != source


def test_tpe_learns_and_random_search_does_not(played):
    visible = task(1)
    late = {}
    for name in ("tpe", "random-search"):
        scores = [trial.score for trial in find_arm(name).search(visible, 3, 40)]
        late[name] = np.mean(scores[20:])
    assert late["tpe"] > late["random-search"] + 0.3


def test_the_best_is_chosen_by_score_alone_and_the_earlier_keeps_a_tie():
    def trial(score):
        return Trial(score=score, steps=1, seconds=0.0, settings=tuned_default(), result=lambda: None)

    best, chosen = None, []
    trials = [trial(s) for s in (0.2, 0.5, 0.5, -1.0, 0.6)]
    for one in trials:
        best = best_so_far(best, one)
        chosen.append(trials.index(best))
    assert chosen == [0, 1, 1, 1, 4]


def test_a_score_that_is_no_number_is_the_worst(monkeypatch):
    scores = iter([0.1, math.nan, -math.inf, 0.2])
    monkeypatch.setattr(module, "rollout", lambda *args, **words: pretended(next(scores)))
    found = [trial.score for trial in find_arm("tpe").search(task(1), 3, 4)]
    assert found == [0.1, module.WORST_SCORE, module.WORST_SCORE, 0.2]


@pytest.mark.parametrize("name", TUNERS)
@pytest.mark.parametrize("killed_in", [0, 2, 11])
def test_a_killed_search_goes_on_as_if_nothing_had_happened(played, monkeypatch, tmp_path, name, killed_in):
    visible, journal = task(1), tmp_path / "optuna" / "cell.journal"
    expected = list(find_arm(name).search(visible, 7, 13))
    play = module.rollout

    def die(*args, **words):
        if len(played) == killed_in:
            raise KeyboardInterrupt
        return play(*args, **words)

    played.clear()
    monkeypatch.setattr(module, "rollout", die)
    with pytest.raises(KeyboardInterrupt):
        list(find_arm(name).search(visible, 7, 13, journal))
    assert len(kept(journal)) == killed_in
    monkeypatch.setattr(module, "rollout", play)
    found = list(find_arm(name).search(visible, 7, 13, journal))
    assert [(t.score, t.steps, t.settings) for t in found] == [(t.score, t.steps, t.settings) for t in expected]
    assert len(played) == 13  # none was run twice
    assert len(kept(journal)) == 13
    whole = journal.read_bytes()
    assert list(find_arm(name).search(visible, 7, 13, journal))[12].remembered == 10
    assert journal.read_bytes() == whole


def test_a_journal_that_was_cut_off_is_mended(played, tmp_path):
    visible, journal = task(1), tmp_path / "cell.journal"
    expected = tried("tpe", visible, 5)
    tried("tpe", visible, 3, journal)
    with journal.open("ab") as file:
        file.write(b'{"state": "COMPLETE", "val')
    played.clear()
    assert tried("tpe", visible, 5, journal) == expected
    assert len(played) == 2
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    journal.write_bytes(b"{}\n" + journal.read_bytes())
    with pytest.raises(InputError, match="line 1 is damaged"):
        tried("tpe", visible, 5, journal)


def test_a_remembered_trial_gives_the_weights_that_it_had(tmp_path):
    visible, journal = task(2, budget=10), tmp_path / "cell.journal"
    fresh = list(find_arm("tpe").search(visible, 7, 2, journal))
    remembered = list(find_arm("tpe").search(visible, 7, 2, journal))
    for one, two in zip(fresh, remembered, strict=True):
        assert one.score == two.score == two.result().score
        assert one.steps == two.steps == 10
        assert two.seconds > 0
        assert two.result() is two.result()
        assert same(lane_weights(one.result().engine), lane_weights(two.result().engine))
        again = rollout(visible, KeepPolicy(settings=one.settings), seed=7)
        assert same(lane_weights(one.result().engine), lane_weights(again.engine))


def test_searching_is_lazy_and_the_manifest_says_how(played):
    trials = find_arm("tpe").search(task(1), 7, 1000)
    assert len(list(itertools.islice(trials, 2))) == len(played) == 2
    told = find_arm("tpe-warm").describe()
    assert told["sampler"] == "TPESampler"
    assert told["start"] == "tuned default"
    assert told["optuna"] == optuna.__version__
    sampler = module.make_sampler("tpe", 7, 0)
    assert sampler._n_startup_trials == told["options"]["n_startup_trials"] == 10
    assert (sampler._multivariate, sampler._group, sampler._constant_liar) == (True, True, False)


# ----- spaces


def drawn(space, seed=0):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    return space.policy(trial), trial.params


def test_a_flat_space_has_the_same_parameters_in_every_trial():
    sets = {frozenset(drawn(Space(flat=True, decisions=8), seed)[1]) for seed in range(10)}
    assert len(sets) == 1
    weights = [w for seed in range(40) for w in drawn(Space(flat=True), seed)[0].settings.weights.values()]
    assert all(w == 0 or WEIGHT_RANGE[0] <= w <= WEIGHT_RANGE[1] for w in weights)
    assert 0.03 < np.mean([w == 0 for w in weights]) < 0.3


def test_a_schedule_has_one_change_within_the_run_and_never_stops():
    for seed in range(30):
        policy, _ = drawn(Space(decisions=4, source_free=seed % 2 == 0), seed)
        *before, change = policy.actions
        assert 1 <= len(before) <= 3
        assert before == [KEEP] * len(before)
        assert change[-1] == 0
        if seed % 2 == 0:
            assert change[2:5] == KEEP[2:5]  # source, alignment, adversarial
    assert isinstance(drawn(Space(decisions=1))[0], KeepPolicy)


# ----- pruning


def test_hyperband_spends_what_it_saves_and_never_more(monkeypatch):
    """Every third trial is pruned at its first decision: its steps go into further trials."""
    asked = itertools.count()

    def play(visible, policy, *, seed, callback=None):
        del policy, seed
        number = next(asked)
        for decision in (1, 2, 3):
            callback({"decision": decision, "step": 5 * decision, "score": -float(number)})
        return pretended(-float(number), steps=20)

    monkeypatch.setattr(module, "rollout", play)
    trials = list(find_arm("tpe-hyperband").search(task(1, budget=20), 7, 8))
    steps = [trial.steps for trial in trials]
    assert all(spent <= 20 * (k + 1) for k, spent in enumerate(itertools.accumulate(steps)))
    assert sum(steps) > 20 * 7
    assert next(asked) > 8
    assert trials[0].score == 0
    assert max(trial.score for trial in trials) == 0


def test_a_pruned_run_is_counted_and_a_killed_search_goes_on(tmp_path, monkeypatch):
    visible = task(2, budget=20)
    with measuring() as meter:
        expected = list(find_arm("tpe-hyperband").search(visible, 7, 5))
    assert meter.steps == sum(trial.steps for trial in expected)
    journal = tmp_path / "cell"
    list(find_arm("tpe-hyperband").search(visible, 7, 2, journal))
    found = list(find_arm("tpe-hyperband").search(visible, 7, 5, journal))
    assert [(t.score, t.steps, t.settings) for t in found] == [(t.score, t.steps, t.settings) for t in expected]
    assert found[0].remembered == 20
    assert {record["state"] for record in kept(journal)} == {"COMPLETE", "PRUNED"}


# ----- population-based training


def test_a_population_takes_the_budget_of_its_runs_and_copies_the_best():
    visible = task(2, budget=20)
    with measuring() as meter:
        trials = list(find_arm("pbt-warm").search(visible, 7, 4))
    assert [trial.steps for trial in trials] == [20] * 4
    assert meter.steps == 80
    again = list(find_arm("pbt-warm").search(visible, 7, 4))
    assert [(t.score, t.settings) for t in trials] == [(t.score, t.settings) for t in again]
    [alone] = find_arm("pbt-warm").search(visible, 7, 1)
    default = rollout(visible, KeepPolicy(), seed=7)
    assert alone.score == default.score
    assert same(lane_weights(alone.result().engine), lane_weights(default.engine))


def test_the_worst_members_go_on_from_the_best():
    visible = task(2, budget=20)
    members = [Member(visible, 7, tuned_default()) for _ in range(6)]
    for number, member in enumerate(members):
        member.go_on()
        member.candidates[-1] = dataclasses.replace(member.candidates[-1], score=float(number))
    before = [list(member.candidates) for member in members]
    population_based.exploit(members, np.random.default_rng(0))
    assert members[0].candidates == before[5]
    assert all(member.candidates == mine for member, mine in zip(members[1:], before[1:], strict=True))
    ratio = members[0].settings.learning_rate / tuned_default().learning_rate
    assert min(abs(ratio - 1.2), abs(ratio - 1 / 1.2)) < 1e-9
    assert same(members[0].engine.snapshot(0), members[5].run.checkpoint(0))
    assert members[0].run.controls.row(0)["learning_rate"] == pytest.approx(members[0].settings.learning_rate)
