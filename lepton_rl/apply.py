"""`lepton adapt`: the same as `adapt()`, from what a person types."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from lepton_rl.adapt import AdaptResult, adapt
from lepton_rl.artifact import SHIPPED, load_policy
from lepton_rl.domain import Domain
from lepton_rl.keeping import Keeper, keeping
from lepton_rl.loading import load_domain, load_model
from lepton_rl.models import ARCHITECTURES
from lepton_rl.own import split_source
from lepton_rl.pretrain import pretrained
from lepton_rl.run import decisions_of


@dataclass(frozen=True, kw_only=True)
class ApplyConfig:
    """Adapt a trained network to a new domain, in one run."""

    model: str
    """vgg, resnet, vgg-gn or resnet-gn, or package.module:function, which returns an nn.Module."""
    target: str
    """New domain: a folder (one sub-folder a class, and unlabelled/), an .npz file, or digits."""
    out: Path
    """Folder for the weights, history.jsonl, result.json, report.html and manifest.json; new or empty."""
    source: str | None = None
    """Labelled domain that the model was trained on, like --target; leave it out to adapt source-free."""
    test: str | None = None
    """Labelled target images for the figures before and after alone, like --target."""
    weights: Path | None = None
    """Trained weights, .safetensors or .pt; without them a built-in model is first trained on --source."""
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
    """Side in pixels; default the source's, or the target's own."""
    mean: tuple[float, ...] = ()
    """Per channel mean that the model was trained with, in 0..1; default that of the source."""
    std: tuple[float, ...] = ()
    """Per channel standard deviation that the model was trained with, in 0..1; default that of the source."""
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
    decisions_of(config.budget)  # what is wrong on the command line is said before anything is read
    with keeping(config.out, overwrite=config.overwrite) as keeper:
        result = _applied(config, keeper, say or (lambda _: None))
        facts = asdict(config)
        result.save(config.out, overwrite=keeper.overwrite, command="lepton adapt", arguments=facts, argv=argv)
        keeper.remove()
    return result


def _applied(config: ApplyConfig, keeper: Keeper, say: Callable[[str], None]) -> AdaptResult:
    policy = load_policy(config.policy)
    classes = config.classes or None
    size = None if config.image_size is None else (config.image_size, config.image_size)
    source = None if config.source is None else load_domain(config.source, classes=classes, size=size)
    # Labels of the target count or name the model's outputs; its images take the size of the source.
    known = classes or (None if source is None else source.classes)
    target = load_domain(config.target, classes=known, size=size or _size(source))
    test = None
    if config.test is not None:
        test = load_domain(config.test, classes=known or target.classes, size=size or _size(source or target))
    model = _model(config, source, say)
    keeper.check_stop("loading")
    return adapt(
        model,
        source=source,
        target=target,
        test=test,
        policy=policy,
        budget=config.budget,
        seed=config.seed,
        folds=config.folds,
        classes=classes,
        image_size=config.image_size,
        normalisation=(config.mean, config.std) if config.mean or config.std else None,
        progress=sys.stderr.isatty(),
        keeper=keeper,
    )


def _size(domain: Domain | None) -> tuple[int, int] | None:
    return None if domain is None else (int(domain.images.shape[2]), int(domain.images.shape[3]))


def _model(config: ApplyConfig, source: Domain | None, say: Callable[[str], None]) -> nn.Module:
    if config.model not in ARCHITECTURES or config.weights is not None or source is None:
        return load_model(config.model, config.weights)
    if config.image_size is not None:
        source = source.resized(config.image_size, config.image_size)
    train, _ = split_source(source, config.seed)
    say(f"training {config.model} on {len(train)} labelled images of {source.name}, as no --weights are given")
    return pretrained(config.model, train)
