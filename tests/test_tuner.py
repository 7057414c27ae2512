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
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from tiny import lane_weights, same, task

from lepton_rl.agents import tuner as module
from lepton_rl.agents.arms import Trial, best_so_far, find_arm
from lepton_rl.agents.search_space import LEARNING_RATES
from lepton_rl.controls import WEIGHT_RANGE, tuned_default
from lepton_rl.objective import NEEDS_SOURCE
from lepton_rl.policy import KeepPolicy
from lepton_rl.rollout import RunResult, rollout

TUNERS = ("tpe", "tpe-warm", "random-search", "random-search-warm")


def pretended(score, steps=10):
    return RunResult(engine=None, chosen="decision 1", reason="", score=score, steps=steps, seconds=0.0, diverged=False)


@pytest.fixture
def played(monkeypatch):
    """Replace runs by a smooth function of the settings, and list the settings that were run."""
    log = []

    def play(visible, policy, *, seed):
        del visible, seed
        log.append(policy.settings)
        return pretended(-abs(math.log(policy.settings.learning_rate / 3e-3)) - policy.settings.augmentation)

    monkeypatch.setattr(module, "rollout", play)
    return log


def tried(name, visible, runs, storage=None, seed=7):
    return [trial.settings for trial in find_arm(name).search(visible, seed, runs, storage)]


def states(journal):
    study = optuna.load_study(study_name="cell", storage=JournalStorage(JournalFileBackend(str(journal))))
    return [(trial.state.name, trial.params) for trial in study.trials]


@pytest.mark.parametrize("name", TUNERS)
def test_a_longer_search_begins_like_a_shorter_one(played, name):
    visible = task(1)
    short, long = tried(name, visible, 3), tried(name, visible, 13)
    assert long[:3] == short
    assert len({one.to_json() for one in long}) == 13
    assert tried(name, visible, 3, seed=8) != short


@pytest.mark.parametrize("source", [True, False])
@pytest.mark.parametrize("name", ["tpe-warm", "random-search-warm"])
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
    found = module._suggest(trial, visible)
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
    assert [state for state, _ in states(journal)] == ["COMPLETE"] * killed_in + ["RUNNING"]
    monkeypatch.setattr(module, "rollout", play)
    found = list(find_arm(name).search(visible, 7, 13, journal))
    assert [(t.score, t.steps, t.settings) for t in found] == [(t.score, t.steps, t.settings) for t in expected]
    assert len(played) == 13  # none was run twice
    kept = states(journal)
    assert kept[killed_in][0] == "FAIL"
    assert kept[killed_in + 1] == ("COMPLETE", kept[killed_in][1])  # the same parameters, asked for again
    assert [state for state, _ in kept].count("COMPLETE") == 13


def test_a_journal_that_was_cut_off_is_mended(played, tmp_path):
    visible, journal = task(1), tmp_path / "cell.journal"
    expected = tried("tpe", visible, 5)
    tried("tpe", visible, 3, journal)
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"x"\n{"op_co')
    (tmp_path / "cell.journal.lock").touch()  # of the process that was killed
    played.clear()
    assert tried("tpe", visible, 5, journal) == expected
    assert len(played) == 2
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    assert not list(tmp_path.glob("*.lock*"))


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
    sampler = find_arm("tpe")._make_sampler(7, 0)
    assert sampler._n_startup_trials == told["options"]["n_startup_trials"] == 10
    assert (sampler._multivariate, sampler._group, sampler._constant_liar) == (True, True, False)
