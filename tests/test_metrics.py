"""Metrics: by hand, against scikit-learn, and what their intervals promise."""

import json
import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from lepton_rl.metrics import SCORES, compare

NAMES = ("cat", "dog", "owl", "yak")


def one_hot(predicted, confidence, k=4):
    """Probabilities with the wanted largest entry; the rest is shared evenly."""
    rest = (1 - np.asarray(confidence, dtype=np.float64)) / (k - 1)
    p = np.repeat(rest[:, None], k, axis=1)
    p[np.arange(len(predicted)), predicted] = confidence
    return p


@pytest.fixture(scope="module")
def by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    before = one_hot([0, 0, 1, 1, 1, 0, 2, 1], [0.9, 0.8, 0.7, 0.9, 0.9, 0.6, 0.9, 0.9])
    after = one_hot(labels, [0.95] * 8)
    return compare(labels, before, after, NAMES)


def test_figures_by_hand(by_hand):
    before = {name: round(estimate.value, 6) for name, estimate in by_hand.before.scores.items()}
    # hits 0, 1, 4, 6 of 8; recall 2/4, 1/2, 1/2; precision 2/3, 1/4, 1/1; F1 = 2 hits / (true + predicted)
    assert before["accuracy"] == 0.5
    assert before["balanced_accuracy"] == 0.5
    assert before["precision"] == pytest.approx((2 / 3 + 1 / 4 + 1) / 3, abs=1e-6)
    assert before["f1"] == pytest.approx((4 / 7 + 2 / 6 + 2 / 3) / 3, abs=1e-6)
    # fifteenths: 0.6 -> 9, 0.7 -> 10, 0.8 -> 12, 0.9 -> 13; sums of confidence - hit: 0.6, 0.7, -0.2, 4.5 - 3
    assert before["ece"] == pytest.approx((0.6 + 0.7 + 0.2 + 1.5) / 8, abs=1e-6)
    assert by_hand.before.confusion == [[2, 2, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert by_hand.before.reliability[13] == (5, pytest.approx(0.9), pytest.approx(0.6))
    assert by_hand.after.scores["accuracy"].value == 1.0
    assert by_hand.after.scores["ece"].value == pytest.approx(0.05)
    assert by_hand.change["accuracy"].value == 0.5


def test_a_class_without_images_is_undefined_and_weighs_nothing(by_hand):
    yak = by_hand.before.per_class["yak"]
    assert all(np.isnan(estimate.value) for estimate in yak.values())
    text = json.dumps(by_hand.to_json(), allow_nan=False)
    assert json.loads(text)["before"]["per_class"]["yak"]["f1"] == {"value": None, "low": None, "high": None}
    assert json.loads(text)["after"]["per_class"]["cat"]["recall"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_a_class_that_is_predicted_but_not_there_has_no_recall_and_precision_zero():
    found = compare(np.array([0, 0, 1]), one_hot([0, 2, 1], [0.5] * 3), one_hot([0, 0, 1], [0.5] * 3), NAMES)
    owl = found.before.per_class["owl"]
    assert np.isnan(owl["recall"].value)
    assert (owl["precision"].value, owl["f1"].value) == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4 - seed % 2, 60)
    p = rng.dirichlet([0.5] * 4, 60)
    ours = compare(labels, p, p, NAMES).before
    predicted, there = p.argmax(1), np.unique(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are predicted but not there
        each = sk.precision_recall_fscore_support(labels, predicted, labels=range(4), zero_division=0)
        mean = sk.precision_recall_fscore_support(labels, predicted, labels=there, average="macro", zero_division=0)
        balanced = sk.balanced_accuracy_score(labels, predicted)
    assert ours.scores["accuracy"].value == pytest.approx(sk.accuracy_score(labels, predicted))
    assert ours.scores["balanced_accuracy"].value == pytest.approx(balanced)
    assert [ours.scores[name].value for name in ("precision", "f1")] == pytest.approx([mean[0], mean[2]])
    assert ours.confusion == sk.confusion_matrix(labels, predicted, labels=range(4)).tolist()
    for i in there:
        row = ours.per_class[NAMES[i]]
        assert [row[name].value for name in ("precision", "recall", "f1")] == pytest.approx([e[i] for e in each[:3]])


def test_the_interval_of_the_accuracy_is_the_binomial_one():
    rng = np.random.default_rng(0)
    labels = np.zeros(400, dtype=np.int64)
    p = one_hot((rng.random(400) < 0.2).astype(np.int64), [0.7] * 400)
    accuracy = compare(labels, p, p, NAMES).before.scores["accuracy"]
    half = 1.96 * np.sqrt(accuracy.value * (1 - accuracy.value) / 400)
    assert accuracy.low == pytest.approx(accuracy.value - half, abs=0.006)
    assert accuracy.high == pytest.approx(accuracy.value + half, abs=0.006)


def test_differences_are_paired():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 200)
    p = rng.dirichlet([0.5] * 4, 200)
    better = p.copy()
    wrong = np.flatnonzero(p.argmax(1) != labels)[:20]
    better[wrong] = one_hot(labels[wrong], [0.9] * 20)
    found = compare(labels, p, better, NAMES)
    assert found.change["accuracy"].value == pytest.approx(0.1)
    # Each of the two has an interval of about 0.13; their difference is far better known, since 180 images agree.
    assert 0.05 < found.change["accuracy"].low < found.change["accuracy"].high < 0.15
    assert found.before.scores["accuracy"].high - found.before.scores["accuracy"].low > 0.1
    assert set(found.change) == set(SCORES)


def test_one_image_is_enough():
    found = compare(np.array([1]), one_hot([1], [1.0]), one_hot([0], [0.6]), NAMES)
    assert found.change["accuracy"].to_json() == {"value": -1.0, "low": -1.0, "high": -1.0}
