"""Make an adaptation task from a user's own model and images."""

import copy
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lepton_rl.arrays import UNLABELLED
from lepton_rl.data_summary import copies, shared_images
from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.model_check import check_model, input_channels
from lepton_rl.preprocessing import Preprocessing
from lepton_rl.pretrain import channel_statistics
from lepton_rl.run import decisions_of
from lepton_rl.stages import StagePlan, find_stages, stages_by_hand
from lepton_rl.task import AdaptationTask, HiddenTask, VisibleTask
from lepton_rl.task_adapter import fitted_head, with_head

NewHead = Literal["auto", "always", "never"]

VAL_SHARE = 5  # one source image in five is kept out of training
PROBE_SHARE = 3  # one labelled target image in three validates
SHOWN_CLASSES = 10


def own_task(
    model: nn.Module,
    *,
    target: Domain,
    source: Domain | None = None,
    test: Domain | None = None,
    budget: int = 400,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    stages: Sequence[Sequence[str]] | None = None,
    head: str | None = None,
    new_head: NewHead = "auto",
) -> tuple[AdaptationTask, Preprocessing]:
    """Split, convert and check a user's model and domains.

    Images get the channels of the model's first convolution and the size of the source (`image_size` wins).
    Labels go by class *name*: output k of the model is `classes[k]`, by default `source.classes[k]`.

    Args:
        model: Trained, from standardised images to logits `[n, k]`.
        target: Images of the new domain, with some labels or none.
        source: Labelled images of the domain that the model was trained on, or None (source-free).
        test: Labelled target images for the report alone; no run sees them.
        budget: Gradient steps.
        seed: Of the splits.
        classes: Names of the model's outputs, in order.
        image_size: Side, or (height, width), in pixels.
        normalisation: Mean and standard deviation per channel, in 0..1, that the model was trained with;
            default those of the source's training part, or of the target when source-free.
        stages: One to four groups of module names, from the image to the head; default those that are found.
        head: Dotted name of the linear classifier; default the last `nn.Linear`.
        new_head: Whether the model gets a head for the classes of the source (or the target, or `classes`),
            fitted on labelled images: `auto`, where the source has another number of classes than the model and
            `classes` are not given; `always`; `never`.

    Returns:
        The task, and how its images were made.

    Raises:
        TypeError: If an argument has the wrong type.
        InputError: If the model or a domain cannot be used; it says why.
    """
    _check_types(target, source, test, budget, seed)
    decisions_of(budget)
    shape = _shape(model, source or target, image_size)
    _check_is_model(model)
    plan = plan_of(model, stages, head)
    facts = check_model(model, *shape, plan)
    renewed = _wants_new_head(new_head, facts.n_classes, classes, source)
    names = _class_names(None if renewed else facts.n_classes, classes, source, target)
    if source is not None:
        source = _prepared(source, shape, names, "source").labelled()
    target = _prepared(target, shape, names, "target")
    hidden_test = None if test is None else _test(test, shape, names)
    train, val = (None, None) if source is None else split_source(source, seed)
    mean, std = _normalisation(normalisation, shape[0], target if train is None else train)
    support, probe = split_labelled(target.labelled(), seed)
    way = Preprocessing(
        channels=shape[0], height=shape[1], width=shape[2], mean=tuple(mean.tolist()), std=tuple(std.tolist())
    )
    notes, previous = list(facts.notes), None
    notes += _data_notes(names, train, support, target, hidden_test)
    if renewed:
        previous = copy.deepcopy(model.get_submodule(plan.head))
        model = _renewed(model, plan, train or support or target, way)
        notes.append(
            f"the model had {facts.n_classes} outputs: it got a new head for {len(names)} classes, fitted on labelled "
            "images, and the old one is kept"
        )
    order = np.random.default_rng((seed, 2)).permutation(len(target))  # signals look at the first 128
    visible = VisibleTask(
        name=target.name,
        model=model,
        n_classes=len(names),
        mean=mean,
        std=std,
        budget=budget,
        source_train=train,
        source_val=val,
        target_support=support,
        target_probe=probe,
        target_unlabelled=target.take(order).without_labels(),
        plan=plan,
    )
    hidden = HiddenTask(target_test=hidden_test)
    assert previous is None or isinstance(previous, nn.Linear)
    task = AdaptationTask(visible=visible, hidden=hidden, notes=tuple(notes), previous_head=previous)
    return task, way


def plan_of(model: nn.Module, stages: Sequence[Sequence[str]] | None, head: str | None) -> StagePlan:
    """Return the layer groups of a model: those given, or those found.

    Raises:
        TypeError: If the groups are no sequences of names.
        InputError: As `find_stages` and `stages_by_hand`.
    """
    if stages is None:
        return find_stages(model, head)
    if isinstance(stages, str) or any(isinstance(group, str) for group in stages):
        raise TypeError(f"stages are {stages!r}: expected groups of module names, for example [['conv1'], ['layer1']]")
    return stages_by_hand(model, stages, head)


def split_source(source: Domain, seed: int) -> tuple[Domain, Domain]:
    """Deal labelled source images onto four fifths to train and one fifth to validate, class by class.

    Raises:
        InputError: If there are fewer than five labelled images.
    """
    source = source.labelled()
    if len(source) < VAL_SHARE:
        raise InputError(
            f"source {source.name!r} has {len(source)} labelled images: expected at least {VAL_SHARE}; "
            "label more, or leave the source out to adapt without it"
        )
    train, val = _dealt(source.labels, VAL_SHARE, np.random.default_rng((seed, 0)))
    return source.take(train), source.take(val)


def split_labelled(labelled: Domain, seed: int) -> tuple[Domain | None, Domain | None]:
    """Deal labelled target images onto two thirds to train (support) and one third to validate (probe).

    One or two labelled images are all trained on; a part without images is None.
    """
    support, probe = _dealt(labelled.labels, PROBE_SHARE, np.random.default_rng((seed, 1)))
    return labelled.take(support) if len(support) else None, labelled.take(probe) if len(probe) else None


def _dealt(
    labels: NDArray[np.int64], share: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return two shuffled parts of 0..n-1; the second gets n // share, evenly over the classes."""
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    second = np.arange(len(labels)) % share == share - 1
    return rng.permutation(by_class[~second]), rng.permutation(by_class[second])


def _check_types(target: Domain, source: Domain | None, test: Domain | None, budget: int, seed: int) -> None:
    for what, domain, optional in (("target", target, False), ("source", source, True), ("test", test, True)):
        if domain is None and optional:
            continue
        if not isinstance(domain, Domain):
            raise TypeError(f"{what} is {type(domain).__name__}: expected a Domain; use Domain.from_folder")
        if len(domain) == 0:
            raise InputError(f"{what} {domain.name!r} has 0 images: expected at least 1; add images to it")
    for what, value in (("budget", budget), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{what} is {value!r}: expected an integer")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed {seed} is out of range: expected 0 to 2^63 - 1; choose a smaller one")


def _data_notes(
    names: tuple[str, ...], train: Domain | None, support: Domain | None, target: Domain, test: Domain | None
) -> list[str]:
    """Say what a person should know of the images before believing the figures."""
    notes = []
    for what, domain in (("source", train), ("target", target)):
        if domain is None or not domain.has_labels:
            continue
        absent = [name for i, name in enumerate(names) if not (domain.labels == i).any()]
        if absent:
            notes.append(f"the {what} has no labelled image of {_some(absent)}")
        twice = copies(domain.images, domain.labels).contradicting
        if twice:
            notes.append(f"{twice} images are in the {what} with two labels, of which one must be wrong")
    if test is not None:
        for what, domain in (("source", train), ("labelled target", support)):
            same = 0 if domain is None else shared_images(test.images, domain.images)
            if same:
                notes.append(f"{same} of {len(test)} test images are also in the {what} images: test figures flatter")
    return notes


def _check_is_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}: expected a torch.nn.Module from images to logits")


def _wants_new_head(new_head: NewHead, n_outputs: int, classes: Sequence[str] | None, source: Domain | None) -> bool:
    if new_head not in ("auto", "always", "never"):
        raise InputError(f"new_head {new_head!r} is unknown: expected auto, always or never")
    if new_head != "auto":
        return new_head == "always"
    return classes is None and source is not None and source.n_classes != n_outputs


def _renewed(model: nn.Module, plan: StagePlan, labelled: Domain, way: Preprocessing) -> nn.Module:
    return with_head(model, plan.head, fitted_head(model, plan.head, labelled, way))


def _shape(model: nn.Module, domain: Domain, image_size: int | tuple[int, int] | None) -> tuple[int, int, int]:
    """Return channels, height and width of all images."""
    channels, height, width = (int(side) for side in domain.images.shape[1:])
    if isinstance(model, nn.Module):
        channels = input_channels(model, channels)
    if image_size is None:
        return channels, height, width
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2:
        raise TypeError(f"image_size is {image_size!r}: expected an integer or (height, width) in pixels")
    domain.take([0]).resized(*pair)  # refuses what is no size before the model is tried with it
    return channels, *pair


def _prepared(domain: Domain, shape: tuple[int, int, int], names: tuple[str, ...], what: str) -> Domain:
    converted = domain.with_channels(shape[0]).resized(*shape[1:])
    number = {name: i for i, name in enumerate(names)}
    for label in np.unique(domain.labels[domain.labels != UNLABELLED]):
        if domain.classes[label] not in number:
            raise InputError(
                f"class {domain.classes[label]!r} in the {what} {domain.name!r} is not known to the model: expected "
                f"{_some(names)}; rename it, or give its images without a label"
            )
    # The last entry serves -1, which stays unlabelled.
    table = np.array([*(number.get(name, UNLABELLED) for name in domain.classes), UNLABELLED], dtype=np.int64)
    return Domain(images=converted.images, labels=table[domain.labels], name=domain.name, classes=names)


def _test(test: Domain, shape: tuple[int, int, int], names: tuple[str, ...]) -> Domain:
    test = _prepared(test, shape, names, "test").labelled()
    if len(test) == 0:
        raise InputError(f"test {test.name!r} has no labels: expected labelled images; leave it out or label them")
    return test


def _class_names(
    n_classes: int | None, classes: Sequence[str] | None, source: Domain | None, target: Domain
) -> tuple[str, ...]:
    """Return the names of the model's outputs; None = there will be as many as there are names."""
    if classes is not None:
        if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
            raise TypeError(f"classes are {classes!r}: expected a sequence of strings, one an output")
        names, what = tuple(classes), "classes names"
    elif source is not None:
        names, what = source.classes, "the source knows"
    elif target.has_labels:
        names, what = target.classes, "the target, without a source, knows"
    elif n_classes is None:
        raise InputError(
            "a new head is asked for, and no class is known: expected classes, or a source or a target with labels"
        )
    else:
        return tuple(str(i) for i in range(n_classes))
    n_classes = len(names) if n_classes is None else n_classes
    if len(names) != n_classes or len(set(names)) != n_classes:
        raise InputError(
            f"the model has {n_classes} outputs but {what} {len(names)} classes ({_some(names)}): expected one name "
            "an output; give classes, the names of the model's outputs in their order, or ask for a new head"
        )
    return names


def _normalisation(
    given: tuple[Sequence[float], Sequence[float]] | None, channels: int, domain: Domain
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if given is None:
        mean, std = channel_statistics(domain.images)
        return mean, std
    mean, std = (np.atleast_1d(np.asarray(values, dtype=np.float64)) for values in given)
    good = mean.shape == std.shape == (channels,) and bool(np.isfinite([mean, std]).all() and (std > 0).all())
    if not good:
        raise InputError(
            f"normalisation has mean {mean.tolist()} and std {std.tolist()}: expected {channels} finite number(s) "
            "each, std above 0, in units of 0..1; give what the model was trained with"
        )
    return mean, std


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    return ", ".join(map(repr, names[:SHOWN_CLASSES])) + more
