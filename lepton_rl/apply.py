"""`lepton adapt`: the same as `adapt()`, from what a person types."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import nn

from lepton_rl.adapt import AdaptResult, adapt
from lepton_rl.artifact import SHIPPED, load_policy
from lepton_rl.class_names import NewHead, shares
from lepton_rl.decode import Corrupt
from lepton_rl.domain import Domain
from lepton_rl.inspect_command import groups_of
from lepton_rl.keeping import Keeper, keeping
from lepton_rl.loading import load_domain
from lepton_rl.named_models import ExpectedInput
from lepton_rl.policy import asking_for
from lepton_rl.run import decisions_of
from lepton_rl.splits import split_source
from lepton_rl.starting_model import Standardisation, StartingModel
from lepton_rl.warm_start import filled_in, image_size


@dataclass(frozen=True, kw_only=True)
class ApplyConfig:
    """Adapt a trained network to a new domain, in one run."""

    model: str = ""
    """package.module:function, which returns an nn.Module; timm:NAME, torchvision:NAME or hf:FOLDER; or vgg, resnet,
    vgg-gn, resnet-gn."""
    warm_start: Path | None = None
    """--out of an earlier run: start from its weights, with its model, classes, image size and standardisation."""
    target: str
    """New domain: a folder (one sub-folder a class, and unlabelled/), a .csv file of path,label, an .npz file, a folder
    that datasets saved, or digits."""
    out: Path
    """Folder for the weights, history.jsonl, result.json, report.html and manifest.json; new or empty."""
    source: str | None = None
    """Labelled domain that the model was trained on, like --target; leave it out to adapt source-free."""
    test: str | None = None
    """Labelled target images for the figures before and after alone, like --target."""
    weights: Path | None = None
    """Trained weights, .safetensors or .pt; without them a model known by name is first trained on --source."""
    policy: str = SHIPPED
    """lepton-v1 (shipped), tuned-default, or a policy file."""
    budget: int = 400
    """Gradient steps, at least 5."""
    seed: int = 0
    """Of splits and batches."""
    folds: int = 0
    """k of a k-fold cross-validation over the labelled target images, which takes k further runs; 0 = none."""
    classes: tuple[str, ...] = ()
    """Names of the model's outputs in their order; default the source's."""
    image_size: int | None = None
    """Side in pixels; default what a library states for its model, else the source's, or the target's own."""
    mean: tuple[float, ...] = ()
    """Per channel mean that the model was trained with, in 0..1; default that of the source."""
    std: tuple[float, ...] = ()
    """Per channel standard deviation that the model was trained with, in 0..1; default that of the source."""
    stages: tuple[str, ...] = ()
    """Layer groups by hand, from the image to the head: up to four texts of module names with commas between."""
    head: str | None = None
    """Name of the linear classifier; default the last linear layer."""
    new_head: NewHead = "auto"
    """Give the model a head for the classes at hand: auto = where the source has another number of classes."""
    class_prior: dict[str, float] = field(default_factory=dict)
    """Share, or number, of target images of each class, if you know it: cat 0.7 dog 0.3; default balanced."""
    min_gain: float | None = None
    """Points of accuracy that the learned guard has to expect, or the original is kept; 5 is careful. Default what the
    policy says, 0 for lepton-v1."""
    corrupt: Corrupt = "refuse"
    """What to do with image files that cannot be read: refuse the first, or skip and list them."""
    overwrite: bool = False
    """Let the output of an earlier command in --out go."""


def apply(
    config: ApplyConfig, *, argv: Sequence[str] | None = None, say: Callable[[str], None] | None = None
) -> AdaptResult:
    """Load, adapt and save.

    Args:
        config: What was typed.
        argv: Command line for the manifest; default that of this process.
        say: Called with lines that a person should read on the way.

    Raises:
        InputError: If something cannot be used; nothing is written then.
        Stopped: If SIGTERM or SIGUSR2 came; the last decision is kept, and the same call goes on.
    """
    config = filled_in(config)
    decisions_of(config.budget)  # what is wrong on the command line is said before anything is read
    with keeping(config.out, overwrite=config.overwrite) as keeper:
        result = _applied(config, keeper, say or (lambda _: None))
        facts = asdict(config)
        result.save(config.out, overwrite=keeper.overwrite, command="lepton adapt", arguments=facts, argv=argv)
        keeper.remove()
    return result


def _applied(config: ApplyConfig, keeper: Keeper, say: Callable[[str], None]) -> AdaptResult:
    policy = load_policy(config.policy)
    if config.min_gain is not None:
        policy = asking_for(policy, config.min_gain)  # what is wrong with it is said before anything is read
    classes = config.classes or None
    expected = _expected(config, say)
    size = image_size(config) or (None if expected is None else expected.size)

    def load(text: str, names: Sequence[str] | None, default: tuple[int, int] | None) -> Domain:
        return load_domain(text, classes=names, size=size or default, corrupt=config.corrupt)

    source = None if config.source is None else load(config.source, classes, None)
    # Labels of the target count or name the model's outputs; its images take the size of the source.
    known = classes or (None if source is None else source.classes)
    target = load(config.target, known, _size(source))
    test = None
    if config.test is not None:
        test = load(config.test, known or target.classes, _size(source or target))
    if config.class_prior and known:
        shares(config.class_prior, tuple(known))  # what is wrong with it is said before a network is trained
    model = _model(config, source, say)
    keeper.check_stop("loading")
    result = adapt(
        model,
        source=source,
        target=target,
        test=test,
        policy=policy,
        budget=config.budget,
        seed=config.seed,
        folds=config.folds,
        classes=classes,
        image_size=size,
        normalisation=_normalisation(config, say),
        stages=groups_of(config.stages),
        head=config.head,
        new_head=config.new_head,
        class_prior=config.class_prior or None,
        progress=sys.stderr.isatty(),
        keeper=keeper,
    )
    for note in (*_skipped(source, target, test), *result.notes):
        say(f"note: {note}")
    return result


def _skipped(*domains: Domain | None) -> list[str]:
    lost = [(d.name, len(d.reading.skipped)) for d in domains if d is not None and d.reading and d.reading.skipped]
    return [
        f"{count} files of {name} cannot be read and were skipped; lepton inspect lists them" for name, count in lost
    ]


def _expected(config: ApplyConfig, say: Callable[[str], None]) -> ExpectedInput | None:
    """Return what a library states about the images of its model; an earlier run knows better."""
    if config.warm_start is not None:
        return None
    expected = StartingModel(name=config.model).expected
    if expected is not None and config.image_size is None:
        height, width = expected.size
        say(f"images are read at {height}x{width} pixels, as {config.model} states; --image-size takes another side")
    return expected


def _normalisation(config: ApplyConfig, say: Callable[[str], None]) -> Standardisation | None:
    """Return what was typed, or what the library states, unless the model was trained here."""
    if config.mean or config.std:
        return config.mean, config.std
    stated = StartingModel(name=config.model, weights=config.weights).standardisation
    if stated is None:
        return None
    mean, std = ([round(value, 3) for value in values] for values in stated)
    say(f"standardised with mean {mean} and std {std}, as {config.model} states; --mean and --std take others")
    return stated


def _size(domain: Domain | None) -> tuple[int, int] | None:
    return None if domain is None else (int(domain.images.shape[2]), int(domain.images.shape[3]))


def _model(config: ApplyConfig, source: Domain | None, say: Callable[[str], None]) -> nn.Module:
    named = StartingModel(name=config.model, weights=config.weights)
    if named.comes_trained or source is None:
        return named.load()
    if config.image_size is not None:
        source = source.resized(config.image_size, config.image_size)
    train, _ = split_source(source, config.seed)
    say(f"training {config.model} on {len(train)} labelled images of {source.name}, as no --weights are given")
    return named.trained_on(train, config.head)
