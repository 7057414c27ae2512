"""`lepton inspect`: what the package makes of a model, a data set or a policy file, before anything is trained."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from torch import nn

from lepton_rl.artifact import SHIPPED
from lepton_rl.console import print_table, say
from lepton_rl.errors import InputError
from lepton_rl.perceptron import Layers

INSPECT_SIDE = 64  # pixels at which copies are looked for
SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Config:
    """Show the layer groups of a model, the counts and faults of a data set, or the card of a policy file."""

    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WHAT")]
    """A model or a data set as lepton adapt takes them, lepton-v1, or a policy file."""
    weights: Path | None = None
    """Weights of the model, .safetensors or .pt."""
    stages: tuple[str, ...] = ()
    """Layer groups of the model by hand, as for lepton adapt."""
    head: str | None = None
    """Name of the model's linear classifier; default its last linear layer."""
    against: str | None = None
    """Another data set, to look for images that are in both and for classes that one of them lacks."""
    image_size: int = INSPECT_SIDE
    """Side in pixels at which image files are compared."""


def run(config: Config, argv: Sequence[str]) -> None:
    """Find out what is meant, and print it."""
    from lepton_rl.loading import is_domain

    del argv
    if config.what == SHIPPED or config.what.endswith(".safetensors"):
        _inspect_policy(config.what)
    elif is_domain(config.what):
        _inspect_data(config)
    elif ":" not in config.what and len(Path(config.what).parts) > 1:
        raise InputError(f"{config.what!r} does not exist: expected a folder or a file, or the name of a model")
    else:
        _inspect_model(config)


def _inspect_policy(what: str) -> None:
    from lepton_rl.artifact import PolicyArtifact, shipped_policy_path

    path = shipped_policy_path() if what == SHIPPED else Path(what)
    artifact = PolicyArtifact.load(path)
    guard = artifact.policy.guard
    facts = {
        "file": str(path),
        "network": f"{_widths(artifact.policy.layers)} (signals, hidden layers, logits of all knobs)",
        "guard": "none: the visible scores choose the final weights"
        if guard is None
        else f"{_widths(guard.layers)} (evidence, hidden, points expected); margin {guard.margin:g}",
        "starts from": artifact.policy.settings.to_json(),
        **artifact.card,
    }
    lines = [[key, value if isinstance(value, str) else json.dumps(value)] for key, value in facts.items()]
    print_table(["policy", ""], lines, words=2)


def _widths(layers: Layers) -> str:
    return " - ".join(str(width) for width in (layers[0][0].shape[1], *(weight.shape[0] for weight, _ in layers)))


def _inspect_model(config: Config) -> None:
    from lepton_rl.inspect_model import layer_groups
    from lepton_rl.stages import plan_of

    model = _model(config)
    groups = layer_groups(model, plan_of(model, groups_of(config.stages), config.head))
    lines = [
        [
            g.name,
            _shortened(g.modules),
            f"{g.parameters:,}",
            str(g.batch_norms),
            str(g.other_norms),
            str(g.unfrozen_from),
        ]
        for g in groups
    ]
    print_table(
        ["group", "modules", "parameters", "batch\nnorms", "other\nnorms", "trained from\nunfrozen_stages"],
        lines,
        words=2,
    )


def _model(config: Config) -> nn.Module:
    from lepton_rl.loading import load_model, untrained_model
    from lepton_rl.models import ARCHITECTURES, build_model
    from lepton_rl.named_models import find_named, is_named

    if config.weights is None and config.what in ARCHITECTURES:
        return build_model(config.what, channels=1, n_classes=10)
    if config.weights is None and is_named(config.what):
        expected = find_named(config.what).expected
        if expected is not None:
            mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (expected.mean, expected.std))
            say(f"images {expected.size[0]}x{expected.size[1]}, mean {mean}, std {std}, as the library states")
        return untrained_model(config.what)
    return load_model(config.what, config.weights)


def groups_of(stages: Sequence[str]) -> list[list[str]] | None:
    """Return layer groups from what was typed: one text a group, module names separated by commas."""
    return [[name.strip() for name in group.split(",") if name.strip()] for group in stages] or None


def _shortened(names: Sequence[str]) -> str:
    """Return names as a person can read them: the first and last of many."""
    if len(names) > SHOWN:
        names = [*names[: SHOWN // 2], f"({len(names) - SHOWN} more)", *names[-SHOWN // 2 :]]
    return ", ".join(names) or "-"


def _inspect_data(config: Config) -> None:
    from lepton_rl.data_summary import shared_images
    from lepton_rl.loading import load_domain

    side = (config.image_size, config.image_size)
    domain = load_domain(config.what, size=side, corrupt="skip")
    other = None if config.against is None else load_domain(config.against, size=side, corrupt="skip")
    both = [domain] if other is None else [domain, other]
    facts = [each.summary() for each in both]
    names = list(dict.fromkeys(name for each in facts for name in each["per_class"]))
    lines = [[name, *(_count(each["per_class"], name) for each in facts)] for name in names]
    lines.append(["(unlabelled)", *(f"{each['n'] - each['labelled']:,}" for each in facts)])
    lines.append(["all", *(f"{each['n']:,}" for each in facts)])
    print_table(["class", *(each["name"] for each in facts)], lines)
    for each in facts:
        _say_faults(each)
    if other is not None:
        same = other.with_channels(domain.images.shape[1]).resized(*domain.images.shape[2:])
        say(f"in both: {shared_images(domain.images, same.images):,} images")
        if set(domain.classes) != set(other.classes):
            say("the two name different classes: a class must have the same name in both")


def _count(counts: dict[str, int], name: str) -> str:
    return f"{counts[name]:,}" if name in counts else "-"


def _say_faults(facts: dict[str, object]) -> None:
    name, sizes, skipped = facts["name"], facts.get("file_sizes"), facts.get("skipped")
    if isinstance(sizes, dict):
        shown = ", ".join(f"{size} ({count:,})" for size, count in list(sizes.items())[:SHOWN])
        say(f"{name}: height x width {shown}" + (f" and {len(sizes) - SHOWN} more" if len(sizes) > SHOWN else ""))
    say(f"{name}: {facts['duplicates']} copies of earlier images, {facts['contradicting']} images with two labels")
    if isinstance(skipped, list):
        say(f"{name}: {len(skipped)} files cannot be read" + (":" if skipped else ""))
        for line in skipped:
            say(f"  {line}")
