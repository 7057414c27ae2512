"""One gradient step of all lanes: what the host decides beforehand, what the device is given, and the step itself.

Nothing in a step waits for the host, and nothing but `StepKind` steers it: two steps of the same kind are the same
operations on other numbers. That is what makes a step recordable (`graphs.py`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lepton_rl import streams
from lepton_rl.augment import augment
from lepton_rl.losses import rotate_batch
from lepton_rl.normalisation import Part
from lepton_rl.objective import SOURCE, SUPPORT, Outputs, objective
from lepton_rl.window import SUPPORT_BATCH, TARGET_BATCH, Window

if TYPE_CHECKING:
    from lepton_rl.engine import Engine


@dataclass(frozen=True, kw_only=True)
class StepKind:
    """What the host knows of a step.

    Attributes:
        sizes: Numbers of support, unlabelled and, if some lane has any, source images.
        active: Terms that some lane trains on.
        wanted: Terms that are computed.
        masked: Whether some lane does not train.
        all_use_source: Whether every lane has a source batch.
        all_classes: Whether every lane has all classes of the logits.
        heads: Whether the auxiliary heads of some lane train.
        augmented: Whether the labelled images of some lane are augmented.
    """

    sizes: tuple[int, ...]
    active: frozenset[str]
    wanted: frozenset[str]
    masked: bool
    all_use_source: bool
    all_classes: bool
    heads: bool
    augmented: bool

    @classmethod
    def of(cls, window: Window, k: int, *, all_classes: bool) -> "StepKind":
        """Describe step k of a window."""
        return cls(
            sizes=window.sizes,
            active=window.active,
            wanted=window.present if k in window.looks else window.active,
            masked=k >= window.shortest,
            all_use_source=window.all_use_source,
            all_classes=all_classes,
            heads=window.uses_heads is not None,
            augmented=window.strength is not None,
        )


@dataclass(frozen=True, kw_only=True)
class StepInputs:
    """The numbers of a step; what its kind does not ask for is not looked at.

    Attributes:
        rows: Pool rows of the batch, int64 `[lanes, b]`.
        labels: Of these images, int64 `[lanes, b]`.
        rates: Learning rates, `[lanes]`.
        counters: Numbers of the step in the lanes' runs, int64 `[lanes]`.
        trained: Which lanes train, bool `[lanes]`.
        weights: Of the loss terms, `[lanes, 8]`.
        strength: Of the augmentation, `[lanes]`.
        uses_source: Lanes with a source batch, bool `[lanes]`.
        uses_heads: Lanes whose auxiliary heads train, bool `[lanes]`.
    """

    rows: Tensor
    labels: Tensor
    rates: Tensor
    counters: Tensor
    trained: Tensor
    weights: Tensor
    strength: Tensor
    uses_source: Tensor
    uses_heads: Tensor

    @classmethod
    def of(cls, window: Window, k: int, labels: Tensor) -> "StepInputs":
        """Cut step k out of a window; `labels` are those of its rows, `[steps, lanes, b]`."""
        trained, rates = window.trained[k], window.rates[k]
        return cls(
            rows=window.rows[k],
            labels=labels[k],
            rates=rates,
            counters=window.counters[k],
            trained=trained,
            weights=window.weights,
            strength=rates if window.strength is None else window.strength,
            uses_source=trained if window.uses_source is None else window.uses_source,
            uses_heads=trained if window.uses_heads is None else window.uses_heads,
        )


def take_step(engine: "Engine", kind: StepKind, inputs: StepInputs) -> Tensor:
    """Take one gradient step and return its loss terms, `[lanes, 8]`."""
    trained = inputs.trained if kind.masked else None  # None = every lane
    adversarial = auxiliary = None
    batch = _outputs(engine, kind, inputs)
    if "adversarial" in kind.active:
        _, target, source = batch.features.split(kind.sizes, dim=1)
        adversarial = engine.heads.adversarial(source, target)
    if "auxiliary" in kind.active:
        auxiliary = _rotation_loss(engine, inputs)
    loss, terms = objective(
        batch,
        kind.sizes,
        inputs.weights,
        adversarial=adversarial,
        auxiliary=auxiliary,
        n_classes=None if kind.all_classes else engine.n_classes,
        log_prior=engine.log_prior,
        trained=kind.active,
        wanted=kind.wanted,
    )
    if trained is not None:
        loss = torch.where(trained, loss, torch.zeros_like(loss))
    heads = engine.heads
    heads.flat.grad = None
    engine.backward(loss, inputs.rates, trained)
    if heads.flat.grad is not None and kind.heads:
        uses = inputs.uses_heads if trained is None else inputs.uses_heads & trained
        heads.optimizer.step(heads.flat.grad, inputs.rates, uses)
    return terms


def _outputs(engine: "Engine", kind: StepKind, inputs: StepInputs) -> Outputs:
    """Run support, unlabelled and source images in one pass.

    Support and unlabelled images are normalised by the same statistics, source images by their own.
    """
    everyone = inputs.trained if kind.masked else engine.everyone
    parts = [Part(side="target", size=SUPPORT_BATCH + TARGET_BATCH, update=everyone)]
    if len(kind.sizes) > SOURCE:
        mine = everyone
        if not kind.all_use_source:
            mine = inputs.uses_source & inputs.trained if kind.masked else inputs.uses_source
        parts.append(Part(side="source", size=kind.sizes[SOURCE], update=mine))
    if kind.augmented:
        features, logits = engine.forward_pixels(_augmented(engine, kind, inputs), tuple(parts), True)
    else:
        features, logits = engine.forward_rows(inputs.rows, tuple(parts), True)
    return Outputs(features=features, logits=engine.mask_classes(logits), labels=inputs.labels)


def _augmented(engine: "Engine", kind: StepKind, inputs: StepInputs) -> Tensor:
    """Return the images of a step, the labelled ones augmented."""
    images = list(engine.pixels(inputs.rows).split(kind.sizes, dim=1))
    for labelled in (SUPPORT, SOURCE)[: len(images) - 1]:
        images[labelled] = augment(images[labelled], inputs.strength, engine.seeds, inputs.counters)
    return torch.cat(images, dim=1)


def _rotation_loss(engine: "Engine", inputs: StepInputs) -> Tensor:
    rows = inputs.rows[:, SUPPORT_BATCH : SUPPORT_BATCH + TARGET_BATCH]
    four = torch.full_like(engine.seeds, 4)
    turns = streams.integers(engine.seeds, streams.ROTATION, inputs.counters[:, None], rows.shape[1], four)[:, 0]
    pixels = rotate_batch(engine.pixels(rows), turns)
    # Rotated images are not the target's: they normalise by their batch and leave the statistics alone.
    features, _ = engine.forward_pixels(pixels, (Part(side="target", size=rows.shape[1]),), True)
    return engine.heads.rotation(features, turns)
