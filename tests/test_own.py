"""Own models and own images: splits, class names, sizes, and what is refused."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lepton_rl import Domain, InputError
from lepton_rl.model_check import check_model
from lepton_rl.own import own_task
from lepton_rl.preprocessing import Preprocessing, accuracy, predict
from lepton_rl.splits import split_labelled, split_source


def net(channels=1, classes=2, **_):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, classes),
    )


def numbered(labels, classes=None, channels=1, size=8):
    """Image i is filled with the value i, so that it is known again after any shuffling."""
    labels = np.asarray(labels)
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(pixels, (len(labels), channels, size, size))
    classes = classes or tuple(str(i) for i in range(max(2, int(labels.max()) + 1)))
    return Domain.from_arrays(images, labels, name="numbered", classes=classes)


def ids(domain):
    return [] if domain is None else domain.images[:, 0, 0, 0].tolist()


# ----- splits


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(0, 2**40))
def test_labelled_images_are_dealt_evenly_and_each_once(labels, seed):
    domain = numbered(labels)
    support, probe = split_labelled(domain, seed)
    assert sorted(ids(support) + ids(probe)) == list(range(len(labels)))
    assert len(ids(probe)) == len(labels) // 3
    for k in set(labels):
        mine = sum(labels[i] == k for i in ids(probe))
        assert labels.count(k) // 3 <= mine <= -(-labels.count(k) // 3)
    for part in (support, probe):
        assert part is None or part.labels.tolist() == [labels[i] for i in ids(part)]


def test_source_is_split_four_to_one_per_class():
    domain = numbered([0] * 20 + [1] * 10 + [-1] * 3)
    train, val = split_source(domain, 7)
    assert np.bincount(train.labels).tolist() == [16, 8]
    assert np.bincount(val.labels).tolist() == [4, 2]
    assert train.labels.tolist() != sorted(train.labels.tolist())  # signals look at the first 128


def test_splits_depend_on_the_seed_alone():
    domain = numbered([0, 1] * 20)
    assert ids(split_source(domain, 3)[1]) == ids(split_source(domain, 3)[1])
    assert ids(split_source(domain, 3)[1]) != ids(split_source(domain, 4)[1])


def test_source_needs_five_labelled_images():
    with pytest.raises(InputError, match="has 4 labelled images"):
        split_source(numbered([0, 1, 0, 1, -1, -1]), 0)


def test_target_images_are_all_used_without_their_labels():
    target = numbered([0, 1, 0, 1, 0, 1, -1, -1, -1])
    test = numbered([1, 0, 1])
    task, _ = own_task(net(), target=target, test=test, seed=1)
    seen = task.visible
    assert sorted(ids(seen.target_unlabelled)) == list(range(9))
    assert set(seen.target_unlabelled.labels.tolist()) == {-1}
    assert (len(seen.target_support), len(seen.target_probe), seen.regime) == (4, 2, "few-label")
    assert task.hidden.target_test.labels.tolist() == [1, 0, 1]
    assert seen.source_free


def test_without_labels_the_task_is_label_free():
    task, _ = own_task(net(classes=7), target=numbered([-1] * 4), source=None)
    assert task.visible.regime == "label-free"
    assert task.visible.target_unlabelled.classes == tuple("0123456")


# ----- classes go by name


def test_labels_follow_the_class_names_not_their_order():
    source = numbered([0, 1] * 5, classes=("cat", "dog"))
    target = numbered([0, 0, 1, -1], classes=("dog", "cat"))
    task, _ = own_task(net(), source=source, target=target, test=target)
    assert task.hidden.target_test.labels.tolist() == [1, 1, 0]
    assert task.visible.target_unlabelled.classes == ("cat", "dog")


def test_given_class_names_win_over_the_source():
    source = numbered([0, 1] * 5, classes=("cat", "dog"))
    task, _ = own_task(net(classes=3), source=source, target=source, classes=("owl", "dog", "cat"))
    assert set(task.visible.source_train.labels.tolist()) == {1, 2}


def test_a_class_the_model_does_not_know_is_refused_where_an_image_has_it():
    source = numbered([0, 1] * 5, classes=("cat", "dog"))
    target = numbered([0, 1, 2], classes=("cat", "dog", "emu"))
    with pytest.raises(InputError, match=r"class 'emu' in the target .* expected 'cat', 'dog'"):
        own_task(net(), source=source, target=target)
    own_task(net(), source=source, target=target.take([0, 1]))


@pytest.mark.parametrize(
    ("source", "classes", "message"),
    [
        (None, ("a", "b", "c"), "the model has 2 outputs but classes names 3 classes"),
        (None, ("a", "a"), "the model has 2 outputs but classes names 2 classes"),
    ],
)
def test_as_many_names_as_outputs(source, classes, message):
    with pytest.raises(InputError, match=message):
        own_task(net(), source=source, target=numbered([0, 1]), classes=classes)


def test_source_free_labels_need_all_class_names():
    with pytest.raises(InputError, match="the target, without a source, knows 2 classes"):
        own_task(net(classes=10), target=numbered([0, 1]))


# ----- images


def test_a_class_prior_goes_by_name_and_is_normalised():
    source = numbered([0, 1] * 10, classes=("cat", "dog"))
    task, _ = own_task(net(), source=source, target=numbered([-1] * 8), class_prior={"dog": 30, "cat": 10})
    assert task.visible.class_prior.tolist() == [0.25, 0.75]
    counted = dict(zip(("cat", "dog"), np.bincount([0, 1, 1, 1]), strict=True))
    again, _ = own_task(net(), source=source, target=numbered([-1] * 8), class_prior=counted)
    assert again.visible.class_prior.tolist() == [0.25, 0.75]
    for wrong in ([0.5, 0.6], [1.0], [1.5, -0.5], [np.nan, 1]):
        with pytest.raises(InputError, match="expected 2 shares that sum up to 1"):
            replace(task.visible, class_prior=np.array(wrong))
    assert own_task(net(), source=source, target=numbered([-1] * 8))[0].visible.class_prior is None


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (
            {"cat": 1, "bird": 2},
            r"class_prior: 'bird' not known to the model: expected a share of each of 'cat', 'dog'",
        ),
        ({"cat": 1}, r"class_prior: 'dog' missing: expected a share of each of 'cat', 'dog'; give 0 to classes"),
        ({"cat": -1, "dog": 2}, r"class_prior of 'cat' is -1: expected a share or a number of images, 0 or more"),
        ({"cat": float("nan"), "dog": 2}, r"class_prior of 'cat' is nan: expected a share"),
        ({"cat": True, "dog": 2}, r"class_prior of 'cat' is True: expected a share"),
        ({"cat": 0, "dog": 0.0}, r"class_prior sums up to 0: expected at least one class above 0"),
    ],
)
def test_class_priors_that_say_nothing_are_refused(prior, message):
    source = numbered([0, 1] * 10, classes=("cat", "dog"))
    with pytest.raises(InputError, match=message) as error:
        own_task(net(), source=source, target=numbered([-1] * 8), class_prior=prior)
    assert "\n" not in str(error.value)


def test_a_class_prior_without_names_is_refused():
    with pytest.raises(TypeError, match="class_prior is list: expected a mapping from the names of classes to shares"):
        own_task(net(), source=numbered([0, 1] * 10), target=numbered([-1] * 8), class_prior=[0.5, 0.5])


def test_images_take_the_size_of_the_source_and_the_channels_of_the_model():
    source, target = numbered([0, 1] * 5, channels=1, size=8), numbered([0, 1] * 3, channels=1, size=20)
    task, way = own_task(net(channels=3), source=source, target=target, test=target)
    shapes = {d.images.shape[1:] for d in (task.visible.source_train, task.visible.target_support)}
    assert shapes == {task.hidden.target_test.images.shape[1:]} == {(3, 8, 8)}
    assert (way.channels, way.height, way.width) == (3, 8, 8)


def test_image_size_wins():
    task, _ = own_task(net(), target=numbered([0, 1] * 3, size=8), image_size=(6, 10))
    assert task.visible.target_unlabelled.images.shape[1:] == (1, 6, 10)


def test_standardisation_is_that_of_the_source():
    images = np.zeros((10, 1, 4, 4), dtype=np.uint8)
    images[:, :, :2] = 255
    source = Domain.from_arrays(images, [0, 1] * 5)
    _, way = own_task(net(), source=source, target=numbered([-1] * 5))
    assert (way.mean, way.std) == ((0.5,), (0.5,))
    assert way(images)[0, 0, :, 0].tolist() == [1, 1, -1, -1]


def test_normalisation_can_be_given():
    task, way = own_task(net(), target=numbered([-1] * 5), normalisation=([0.25], [0.125]))
    assert (way.mean, way.std) == ((0.25,), (0.125,))
    assert (task.visible.mean.tolist(), task.visible.std.tolist()) == ([0.25], [0.125])


@pytest.mark.parametrize("given", [([0.5], [0.0]), ([0.5] * 3, [0.5] * 3), ([float("nan")], [1.0]), ([0.5], [])])
def test_bad_normalisation_is_refused(given):
    with pytest.raises(InputError, match=r"expected 1 finite number\(s\)"):
        own_task(net(), target=numbered([-1] * 5), normalisation=given)


def test_predict_and_accuracy_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    model[1].weight.data = torch.tensor([[-1.0], [1.0]])  # class 1 above the mean
    way = Preprocessing(channels=1, height=1, width=1, mean=(0.5,), std=(0.5,))
    domain = Domain.from_arrays(np.array([0, 100, 200, 255], dtype=np.uint8).reshape(4, 1, 1), [0, 1, 1, 1])
    assert predict(model, domain, way).tolist() == [0, 0, 1, 1]
    assert accuracy(model, domain, way) == 0.75


# ----- models


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x):
        return self.inner(x), x


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.spare = net(), nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x)


def poisoned():
    model = net()
    model[1].running_var[2] = float("nan")
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Identity(), "has no parameters"),
        (nn.Conv2d(1, 2, 3), "no nn.Linear"),
        (Two(), "returns tuple"),
        (Unused(), "'spare' takes no part"),
        (net(classes=1), r"returns shape \[2, 1\]"),
        (nn.Sequential(nn.Conv2d(1, 4, 1), nn.Linear(8, 8)), r"returns shape \[2, 4, 8, 8\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(100, 2)), r"fails on images \[2, 1, 8, 8\].*give image_size"),
        (poisoned(), r"'1\.running_var' is not finite"),
    ],
)
def test_models_that_cannot_be_adapted_are_refused(model, message):
    with pytest.raises(InputError, match=message) as caught:
        own_task(model, target=numbered([0, 1] * 3))
    assert "\n" not in str(caught.value)


def test_trying_a_model_leaves_it_as_it_was():
    model = net().train().to(torch.float16)
    before = copy.deepcopy(model.state_dict())
    facts = check_model(model, 1, 8, 8)
    assert facts.n_classes == 2
    assert facts.notes == ("model Sequential is in float16: a copy is trained in float32 and given back as it was",)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[4]._forward_pre_hooks


# ----- values


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": np.zeros(3)}, TypeError, "target is ndarray: expected a Domain"),
        ({"source": "photos"}, TypeError, "source is str"),
        ({"target": numbered([0, 1]).take([])}, InputError, "target 'numbered' has 0 images"),
        ({"test": numbered([-1, -1])}, InputError, "test 'numbered' has no labels"),
        ({"source": numbered([-1] * 9, classes=("0", "1"))}, InputError, "has 0 labelled images"),
        ({"budget": 4}, InputError, "budget 4 is below one decision"),
        ({"budget": 40.0}, TypeError, "budget is 40.0"),
        ({"seed": -1}, InputError, "seed -1 is out of range"),
        ({"image_size": 0}, InputError, "size is"),
        ({"image_size": (8, 8, 8)}, TypeError, "image_size is"),
        ({"classes": "ab"}, TypeError, "classes are 'ab'"),
        ({"model": "resnet"}, TypeError, "model is str"),
    ],
)
def test_bad_values_are_named(change, error, message):
    arguments = {"model": net(), "target": numbered([0, 1] * 3)} | change
    with pytest.raises(error, match=message):
        own_task(arguments.pop("model"), **arguments)


def test_labels_out_of_the_target_do_not_change_the_splits():
    source = numbered([0, 1] * 10)
    target = numbered([0, 1] * 6)
    first, _ = own_task(net(), source=source, target=target, test=target)
    swapped = replace(target, labels=1 - target.labels)
    second, _ = own_task(net(), source=source, target=target, test=swapped)
    for name in ("source_train", "target_support", "target_unlabelled"):
        assert ids(getattr(first.visible, name)) == ids(getattr(second.visible, name))
