"""k-fold cross-validation: who sees which labels, and what the figures are made of."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import domain

from lepton_rl import Domain, InputError, adapt
from lepton_rl.cross_validation import cross_validate, shares
from lepton_rl.models import build_model


@pytest.fixture
def target():
    """30 images of three classes, 12 of them labelled."""
    whole = domain(1, 30, 3)
    return replace(whole, labels=np.where(np.arange(30) < 12, whole.labels, -1))


def test_shares_are_even_over_sizes_and_classes():
    labels = np.array([0] * 7 + [1] * 5 + [-1] * 8)
    images = np.zeros((20, 1, 2, 2), dtype=np.uint8)
    share = shares(Domain(images=images, labels=labels, name="x", classes=("a", "b")), 3, 0)
    assert (share[labels < 0] == -1).all()
    assert np.bincount(share[labels >= 0]).tolist() == [4, 4, 4]
    for k in (0, 1):
        counts = np.bincount(share[labels == k], minlength=3)
        assert counts.max() - counts.min() <= 1


def test_every_label_is_judged_once_by_a_run_that_has_not_seen_its_image(target):
    seen = []

    def once(number, part, held_out):
        assert len(part) + len(held_out) == 30
        both = {image.tobytes() for image in part.images} & {image.tobytes() for image in held_out.images}
        assert both == set()
        assert (held_out.labels >= 0).all()
        seen.extend(held_out.labels.tolist())
        wrong = np.eye(3)[(held_out.labels + 1) % 3]
        right = np.eye(3)[held_out.labels]
        right[0] = np.eye(3)[(held_out.labels[0] + 1) % 3]
        return held_out.labels, wrong, right

    found = cross_validate(target, 4, 0, target.classes, once)
    assert sorted(seen) == sorted(target.labels[:12].tolist())
    assert found.accuracies == ((0.0, 2 / 3),) * 4
    assert found.pooled.before.scores["accuracy"].value == 0.0
    assert found.pooled.after.scores["accuracy"].value == pytest.approx(8 / 12)
    assert found.pooled.after.images == 12


def test_adapt_with_folds_changes_nothing_else(target, tmp_path):
    model = build_model("vgg", channels=1, n_classes=3, width=4)
    arguments = {"source": domain(2, 40, 3), "target": target, "policy": "tuned-default", "budget": 5}
    plain = adapt(model, **arguments)
    folded = adapt(model, **arguments, folds=2, out=tmp_path / "out")
    assert plain.cross_validation is None
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), folded.model.parameters(), strict=True))
    assert plain.after == folded.after
    record = json.loads((tmp_path / "out" / "result.json").read_text())["cross_validation"]
    assert (record["folds"], record["pooled"]["before"]["images"]) == (2, 12)
    mean = np.mean([after for _, after in record["accuracies"]])  # of two shares of six
    assert record["pooled"]["after"]["scores"]["accuracy"]["value"] == pytest.approx(mean)


@pytest.mark.parametrize("folds", [1, 13, -2])
def test_bad_numbers_of_folds_are_refused_before_a_step(folds, target):
    rows = []
    with pytest.raises(InputError, match=f"folds {folds} with 12 labelled"):
        adapt(
            build_model("vgg", channels=1, n_classes=3, width=4),
            target=target,
            policy="tuned-default",
            budget=5,
            folds=folds,
            callback=rows.append,
        )
    assert rows == []


def test_folds_must_be_a_whole_number(target):
    with pytest.raises(TypeError, match=r"folds is 2\.5"):
        adapt(build_model("vgg", channels=1, n_classes=3, width=4), target=target, budget=5, folds=2.5)
