"""`lepton drift`: whether it is time to adapt a run's model again, asked of new images without labels."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lepton_rl.console import print_table, say
from lepton_rl.domain import Domain
from lepton_rl.drift import LEAST_IMAGES, LEAST_REFERENCE, Drift, measure_drift
from lepton_rl.errors import InputError
from lepton_rl.features import features_and_logits
from lepton_rl.loading import load_domain
from lepton_rl.saved_run import REFERENCE, SavedRun

MOST_IMAGES = 512


@dataclass(frozen=True, kw_only=True)
class Config:
    """Say whether it is time to adapt a run's model again, by the gap between new images and the run's own."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The --out of lepton adapt."""
    new: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NEW_DATA")]
    """New images, like --target of lepton adapt; labels are not needed."""
    model: str | None = None
    """As --model of lepton adapt; needed where that was package.module:function."""
    seed: int = 0
    """Of the splits."""
    json: bool = False
    """Print one line of JSON and nothing else."""


def run(config: Config, argv: Sequence[str]) -> None:
    """Load, compare, print; the exit code does not depend on the answer."""
    del argv
    saved = SavedRun.read(config.run)
    reference = _reference(saved)
    model = saved.load(config.model)
    new, stranger = _new_images(config.new, saved)
    if len(new) < LEAST_IMAGES:
        raise InputError(
            f"new data {new.name!r} have {len(new)} images: expected at least {LEAST_IMAGES}; wait for more"
        )
    rows = np.random.default_rng(config.seed).permutation(len(new))[:MOST_IMAGES]
    features, logits = features_and_logits(model, saved.head_of(model), new.take(rows), saved.preprocessing)
    if features.shape[1] != reference.shape[1]:
        raise InputError(
            f"the model has {features.shape[1]} features and the run {reference.shape[1]}: expected the same model; "
            "give the --model that the run was made with"
        )
    drift = measure_drift(reference, features, config.seed)
    known = new.labels[rows] >= 0
    right = (logits.argmax(1).numpy() == new.labels[rows])[known]
    facts = {
        "time_to_adapt": drift.drifted or stranger is not None,
        "why": _why(drift, stranger),
        "new": config.new,
        "images": len(rows),
        "reference_images": len(reference),
        "accuracy": float(right.mean()) if known.any() and stranger is None else None,
        **drift.to_json(),
    }
    _tell(config, facts, drift)


def _tell(config: Config, facts: dict[str, Any], drift: Drift) -> None:
    if config.json:
        print(json.dumps(facts))
        return
    lines = [
        [name.replace("_", " "), *(f"{row[key]:.3f}" for key in ("gap", "usual", "limit")), f"{row['score']:+.1f}"]
        for name, row in drift.gaps.items()
    ]
    print_table(["gap", "new images", "own splits", "limit", "score"], lines)
    if facts["accuracy"] is not None:
        say(f"accuracy on those with a label: {facts['accuracy']:.3f}")
    say(("time to adapt again: " if facts["time_to_adapt"] else "no need to adapt: ") + facts["why"])
    if facts["time_to_adapt"]:
        named = "" if config.model is None else f" --model {config.model}"
        say(f"lepton adapt --warm-start {config.run}{named} --target {config.new} --out ..")


def _why(drift: Drift, stranger: str | None) -> str:
    """Give the reason in one line."""
    if stranger is not None:
        return stranger
    name, row = drift.loudest, drift.gaps[drift.loudest]
    if drift.drifted:
        return (
            f"{name.replace('_', ' ')} is {row['gap']:.3f}, where 99 in 100 splits of the run's own images stay below "
            f"{row['limit']:.3f}"
        )
    return (
        f"the largest gap, {name.replace('_', ' ')}, is {row['gap']:.3f}, and splits of the run's own images go up to "
        f"{row['limit']:.3f}"
    )


def _reference(saved: SavedRun) -> Tensor:
    path = saved.folder / REFERENCE
    if not path.is_file():
        raise InputError(f"run {str(saved.folder)!r} has no {REFERENCE}: expected a newer run; run lepton adapt again")
    try:
        held = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:80]
        raise InputError(f"{path} cannot be read ({reason}): expected a whole file; run lepton adapt again") from None
    reference = held.get("features")
    if reference is None or reference.dim() != 2 or not bool(reference.isfinite().all()):
        raise InputError(f"{path} holds no finite features [n, d]: run lepton adapt again")
    if len(reference) < LEAST_REFERENCE:
        raise InputError(
            f"run {str(saved.folder)!r} saw {len(reference)} target images: expected at least {LEAST_REFERENCE}, to "
            "know how much their own splits differ; adapt to more images"
        )
    return reference.float()


def _new_images(text: str, saved: SavedRun) -> tuple[Domain, str | None]:
    """Read new images in the size of the model; also say, in words, if they have classes that it does not know."""
    way = saved.preprocessing
    size = (way.height, way.width)
    try:
        return load_domain(text, classes=saved.classes, size=size), None
    except InputError as error:
        new = load_domain(text, size=size)  # what else is wrong is told by this
        return new, str(error).partition(": expected")[0]
