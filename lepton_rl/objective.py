"""The training objective of one gradient step, for all lanes at once.

The loss on labelled target images has weight 1 and anchors the others; every other term has its knob.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lepton_rl.controls import LOSS_TERMS
from lepton_rl.losses import (
    conditional_entropy,
    coral,
    cross_entropy,
    diversity,
    mmd,
    pseudo_label,
)

TERMS = (*LOSS_TERMS, "target")
NEEDS_SOURCE = ("source", "alignment", "adversarial")
PSEUDO_LABEL_THRESHOLD = 0.9


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the network said about one batch of every lane.

    Attributes:
        features: `[lanes, b, d]`.
        logits: `[lanes, b, k]`; classes that a lane does not have are at a large negative value.
        labels: int64 `[lanes, b]`, -1 = unlabelled.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor

    def detached(self) -> "Outputs":
        """Return the same without gradients."""
        return Outputs(features=self.features.detach(), logits=self.logits.detach(), labels=self.labels)


def loss_terms(
    *,
    source: Outputs | None,
    support: Outputs,
    target: Outputs,
    adversarial: Tensor | None,
    auxiliary: Tensor | None,
    n_classes: Tensor | None,
    trained: frozenset[str] = frozenset(TERMS),
    wanted: frozenset[str] = frozenset(TERMS),
) -> Tensor:
    """Compute loss terms of every lane.

    Args:
        source: Labelled source batch, or None where no lane needs it.
        support: Labelled target batch; labels are all -1 in lanes without.
        target: Unlabelled target batch.
        adversarial: Loss of the domain discriminator behind a gradient reversal `[lanes]`, or None when off.
        auxiliary: Rotation loss `[lanes]`, or None when off.
        n_classes: int64 `[lanes]`; None = every lane has all classes of the logits.
        trained: Terms that need a gradient.
        wanted: Terms that are needed at all; the others are 0.

    Returns:
        `[lanes, 8]` in the order of `TERMS`.
    """
    zero = target.logits.new_zeros(target.logits.shape[0])

    def value(term: str) -> Tensor:
        seen = target if term in trained else target.detached()
        match term:
            case "source" if source is not None:
                return cross_entropy(source.logits, source.labels, n_classes=n_classes)
            case "alignment" if source is not None:
                origin = source if term in trained else source.detached()
                return _alignment(origin.features, seen.features)
            case "adversarial" if adversarial is not None:
                return adversarial
            case "entropy":
                return conditional_entropy(seen.logits, n_classes)
            case "diversity":
                return diversity(seen.logits, n_classes)
            case "self_training":
                return pseudo_label(seen.logits, PSEUDO_LABEL_THRESHOLD)
            case "auxiliary" if auxiliary is not None:
                return auxiliary
            case "target":
                return cross_entropy(support.logits, support.labels, n_classes=n_classes)
        return zero

    return torch.stack([value(term) if term in wanted else zero for term in TERMS], dim=-1)


def _alignment(features_s: Tensor, features_t: Tensor) -> Tensor:
    """Sum MMD, which sees means, and CORAL, which sees covariances."""
    return mmd(features_s, features_t) + coral(features_s, features_t)


def weighted_sum(terms: Tensor, weights: Tensor) -> Tensor:
    """Weigh the terms; a term that is off adds exactly nothing, whatever its value.

    Args:
        terms: `[lanes, 8]`.
        weights: `[lanes, 8]`, 0 = off.

    Returns:
        `[lanes]`.
    """
    # where, not a product: 0 * inf is nan, and a term that is off must not end a lane.
    return torch.where(weights > 0, weights * terms, 0.0).sum(-1)
