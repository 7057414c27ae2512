"""Make an adaptation task from a user's own model and images."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lepton_rl.class_names import NewHead, class_names, relabelled, shares, wants_new_head
from lepton_rl.data_notes import data_notes
from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.model_check import check_model, input_channels
from lepton_rl.preprocessing import Preprocessing
from lepton_rl.pretrain import channel_statistics
from lepton_rl.run import decisions_of
from lepton_rl.splits import split_labelled, split_source
from lepton_rl.stages import StagePlan, plan_of
from lepton_rl.task import AdaptationTask, HiddenTask, VisibleTask
from lepton_rl.task_adapter import fitted_head, with_head


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
    class_prior: Mapping[str, float] | None = None,
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
        class_prior: Share, or number, of target images of each class by its name, where it is known.

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
    renewed = wants_new_head(new_head, facts.n_classes, classes, source)
    names = class_names(None if renewed else facts.n_classes, classes, source, target)
    prior = None if class_prior is None else shares(class_prior, names)
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
    notes += data_notes(names, train, support, target, hidden_test)
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
        class_prior=prior,
    )
    hidden = HiddenTask(target_test=hidden_test)
    assert previous is None or isinstance(previous, nn.Linear)
    task = AdaptationTask(visible=visible, hidden=hidden, notes=tuple(notes), previous_head=previous)
    return task, way


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


def _check_is_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}: expected a torch.nn.Module from images to logits")


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
    return relabelled(domain.with_channels(shape[0]).resized(*shape[1:]), names, what)


def _test(test: Domain, shape: tuple[int, int, int], names: tuple[str, ...]) -> Domain:
    test = _prepared(test, shape, names, "test").labelled()
    if len(test) == 0:
        raise InputError(f"test {test.name!r} has no labels: expected labelled images; leave it out or label them")
    return test


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
