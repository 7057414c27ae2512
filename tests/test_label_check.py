"""Labels worth a look: which are doubted, by hand and on images with labels known to be wrong."""

import dataclasses

import numpy as np
import pytest

from lepton_rl import Domain, Shift, adapt
from lepton_rl.label_check import SHOWN, doubtful, labels_worth_a_look
from lepton_rl.pretrain import pretrained


def test_a_label_is_doubted_where_another_class_is_as_likely_as_on_its_own_images():
    labels = np.array([0, 0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.25, 0.75], [0.1, 0.9], [0.2, 0.8], [0.4, 0.6]])
    # On images labelled 1 the network gives class 1 (0.8 + 0.6) / 2 = 0.7: 0.75 and 0.9 reach that.
    assert doubtful(labels, probabilities).tolist() == [2, 1]
    probabilities[1] = [0.35, 0.65]
    assert doubtful(labels, probabilities).tolist() == [2]


def test_an_unsure_network_doubts_nothing():
    labels = np.array([0, 1, 2])
    probabilities = np.array([[0.3, 0.4, 0.3], [0.4, 0.2, 0.4], [0.45, 0.45, 0.1]])
    assert doubtful(labels, probabilities).tolist() == []


def test_a_class_without_labelled_images_can_contradict():
    labels = np.array([0, 0])
    assert doubtful(labels, np.array([[0.9, 0.1], [0.2, 0.8]])).tolist() == [1]


def test_the_most_contradicted_come_first_and_there_are_not_too_many():
    n = SHOWN + 3
    sure = np.linspace(0.6, 0.9, n)
    images = np.arange(n * 4, dtype=np.uint8).reshape(n, 1, 2, 2)
    held = Domain(images=images, labels=np.zeros(n, dtype=np.int64), name="x", classes=("a", "b"))
    found = labels_worth_a_look(held, np.stack([1 - sure, sure], 1))
    assert (found["images"], found["doubtful"], len(found["shown"])) == (n, n, SHOWN)
    assert (found["shown"][0]["before"], found["shown"][0]["after"]) == ("a", "b")
    assert found["shown"][0]["sure"] == pytest.approx([0.1, 0.9])


def test_wrong_labels_of_a_target_are_found():
    digits = Domain.digits()
    source, target = digits.take(range(800)), Shift(kind="brightness", severity=0.3)(digits.take(range(800, 1500)))
    labels = np.where(np.arange(700) < 100, target.labels, -1)
    wrong = np.arange(0, 100, 10)
    labels[wrong] = (labels[wrong] + 3) % 10
    mixed = dataclasses.replace(target, labels=labels)
    result = adapt(pretrained("resnet", source, width=8, steps=200), source=source, target=mixed, budget=40)
    found = result.explanation.facts["labels"]
    assert found["images"] == 100
    hits = sum((int(row["before"]) - int(row["after"])) % 10 == 3 for row in found["shown"])
    assert hits >= 8
    assert found["doubtful"] - hits <= 4
    assert f"{found['doubtful']} of 100 target labels are contradicted" in result.notes[-1]


def test_without_labels_there_is_nothing_to_doubt():
    digits = Domain.digits()
    result = adapt(
        pretrained("resnet", digits.take(range(400)), width=4, steps=5),
        target=digits.take(range(400, 500)).without_labels(),
        classes=digits.classes,
        budget=5,
    )
    assert result.explanation.facts["labels"] is None
    assert not any("contradicted" in note for note in result.notes)
