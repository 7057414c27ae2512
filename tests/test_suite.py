"""Tasks: reproducible, split without overlap, and nothing held out leaks into training."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.models import HELD_OUT_ARCHITECTURES, TRAIN_ARCHITECTURES
from lepton_rl.shifts import HELD_OUT_KINDS, TRAIN_KINDS
from lepton_rl.suite import (
    CLASS_PARTS,
    LONG_BUDGET,
    SOURCE_SHIFTS,
    SPLITS,
    class_part,
    draw_recipe,
    split_target,
)
from lepton_rl.task import VisibleTask


def images_of(domain):
    return {image.tobytes() for image in domain.images}


@settings(max_examples=60, deadline=None)
@given(split=st.sampled_from(SPLITS), index=st.integers(0, 10**6))
def test_held_out_parts_stay_held_out(split, index):
    recipe = draw_recipe(("digits",), split, index, None)
    assert recipe == draw_recipe(("digits",), split, index, None)
    kinds = {shift.kind for shift in recipe.target_shifts}
    if split == "held-out-shifts":
        assert recipe.target_shifts[0].kind in HELD_OUT_KINDS
    else:
        assert kinds <= set(TRAIN_KINDS)
    expected = HELD_OUT_ARCHITECTURES if split == "held-out-architecture" else TRAIN_ARCHITECTURES
    assert recipe.architecture in expected
    assert (recipe.budget == LONG_BUDGET) == (split == "longer-budget")


def test_the_held_out_names_share_nothing_with_the_training_names():
    assert not set(TRAIN_KINDS) & set(HELD_OUT_KINDS)
    assert not set(TRAIN_ARCHITECTURES) & set(HELD_OUT_ARCHITECTURES)


def test_tasks_differ_and_regimes_can_be_fixed():
    drawn = [draw_recipe(("digits",), "train", i, None) for i in range(300)]
    assert len({(r.target_shifts, r.architecture, r.seed) for r in drawn}) == 300
    assert 0.4 < np.mean([r.labels_per_class > 0 for r in drawn]) < 0.6
    assert 0.15 < np.mean([r.source_free for r in drawn]) < 0.35
    assert all(draw_recipe(("digits",), "train", i, "label-free").labels_per_class == 0 for i in range(30))
    assert all(draw_recipe(("digits",), "train", i, "few-label").labels_per_class > 0 for i in range(30))


def test_a_task_is_the_same_every_time(suite):
    first, second = (suite.task("held-out-tasks", 3) for _ in range(2))
    assert np.array_equal(first.visible.target_unlabelled.images, second.visible.target_unlabelled.images)
    assert np.array_equal(first.hidden.target_test.labels, second.hidden.target_test.labels)
    assert first.name == second.name == "digits/held-out-tasks/0003"


def test_printing_a_task_prints_no_images_and_no_labels(suite):
    task = suite.task("held-out-tasks", 1)
    assert len(repr(task)) < 2000
    assert "array([" not in repr(task).replace(f"mean={task.visible.mean!r}, std={task.visible.std!r}", "")


def test_tasks_to_learn_from_are_paid_by_the_test_images_too(suite):
    recipe = suite.recipe("held-out-tasks", 3)
    kept, learning = (suite.make(replace(recipe, split=split)) for split in ("held-out-tasks", "train"))
    assert learning.hidden.target_test is None
    both = images_of(kept.hidden.target_eval) | images_of(kept.hidden.target_test)
    assert images_of(learning.hidden.target_eval) == both
    assert np.array_equal(kept.visible.target_unlabelled.images, learning.visible.target_unlabelled.images)


@pytest.mark.parametrize("index", range(6))
def test_no_image_is_in_two_splits(suite, index):
    # Severity 0 keeps images recognisable; strong shifts can make two scans equal.
    recipe = replace(suite.recipe("held-out-tasks", index), target_shifts=())
    task = suite.make(recipe)
    visible, hidden = task.visible, task.hidden
    parts = [visible.target_unlabelled, hidden.target_eval, hidden.target_test]
    parts += [d for d in (visible.target_support, visible.target_probe, visible.source_train, visible.source_val) if d]
    seen = [images_of(part) for part in parts]
    for i, one in enumerate(seen):
        for other in seen[i + 1 :]:
            assert not one & other
    assert not visible.target_unlabelled.has_labels
    assert len(hidden.target_train_labels) == len(visible.target_unlabelled)


def test_label_skew_thins_classes_but_not_the_few_labels(suite):
    recipe = replace(suite.recipe("train", 0), target_shifts=(), label_skew=1.5, labels_per_class=5, label_noise=0.0)
    task = suite.make(recipe)
    counts = np.sort(np.bincount(task.hidden.target_train_labels, minlength=10))
    assert counts[-1] > 5 * max(1, counts[0])
    few = np.concatenate([task.visible.target_support.labels, task.visible.target_probe.labels])
    assert np.bincount(few, minlength=10).tolist() == [5] * 10


def test_label_noise_reaches_the_few_labels_only(suite):
    recipe = suite.recipe("held-out-tasks", 0)
    clean = replace(recipe, target_shifts=(), label_skew=0.0, labels_per_class=10, label_noise=0.0)
    noisy = replace(clean, label_noise=0.5)
    target = suite._halves("digits")[1]
    a, b = (split_target(target, recipe, np.random.default_rng(0)) for recipe in (clean, noisy))
    assert np.array_equal(a.test.labels, b.test.labels)
    support = [np.concatenate([p.support.labels, p.probe.labels]) for p in (a, b)]
    assert len(support[0]) == len(support[1]) == 100
    right = {image.tobytes(): label for image, label in zip(target.images, target.labels, strict=True)}
    wrong = [right[x.tobytes()] != y for x, y in zip(b.support.images, b.support.labels, strict=True)]
    assert 0.2 < np.mean(wrong) < 0.7
    assert all(right[x.tobytes()] == y for x, y in zip(a.support.images, a.support.labels, strict=True))


def test_half_of_the_classes_are_numbered_from_zero():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(4, 0)
    domain = Domain.from_arrays(images, np.arange(5).repeat(4), classes=tuple("abcde"))
    lower, upper = class_part(domain, "lower"), class_part(domain, "upper")
    assert (lower.classes, upper.classes) == (("a", "b"), ("c", "d", "e"))
    assert np.bincount(upper.labels).tolist() == [4, 4, 4]
    assert np.array_equal(upper.images[:, 0, 0, 0], upper.labels + 2)
    assert class_part(domain, "all") is domain


def test_classes_shifted_sources_and_their_number_are_drawn():
    drawn = [draw_recipe(("digits",), "train", i, None) for i in range(400)]
    shares = [np.mean([r.classes == part for r in drawn]) for part in CLASS_PARTS]
    assert np.allclose(shares, [0.8, 0.1, 0.1], atol=0.05)
    assert len({r.source_shift for r in drawn}) == 1 + SOURCE_SHIFTS


@pytest.mark.parametrize(
    ("split", "regime", "message"),
    [("nothing", None, "split 'nothing' is unknown"), ("train", "few", "regime 'few' is unknown")],
)
def test_unknown_names_are_refused(split, regime, message):
    with pytest.raises(InputError, match=message):
        draw_recipe(("digits",), split, 0, regime)


def test_a_visible_task_refuses_target_labels(suite):
    task = suite.task("train", 0)
    with pytest.raises(InputError, match="carries labels"):
        replace(task.visible, target_unlabelled=task.hidden.target_eval)
    with pytest.raises(InputError, match="0 target images"):
        replace(task.visible, target_unlabelled=task.visible.target_unlabelled.take([]))
    assert "hidden" not in VisibleTask.__dataclass_fields__
