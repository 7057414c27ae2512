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


def loss_terms(
    *,
    source: Outputs | None,
    support: Outputs,
    target: Outputs,
    adversarial: Tensor | None,
    auxiliary: Tensor | None,
    n_classes: Tensor,
) -> Tensor:
    """Compute every loss term of every lane.

    Args:
        source: Labelled source batch, or None where no lane needs it.
        support: Labelled target batch; labels are all -1 in lanes without.
        target: Unlabelled target batch.
        adversarial: Loss of the domain discriminator behind a gradient reversal `[lanes]`, or None when off.
        auxiliary: Rotation loss `[lanes]`, or None when off.
        n_classes: int64 `[lanes]`.

    Returns:
        `[lanes, 8]` in the order of `TERMS`.
    """
    zero = target.logits.new_zeros(target.logits.shape[0])
    values = {
        "source": zero if source is None else cross_entropy(source.logits, source.labels, n_classes=n_classes),
        "alignment": zero if source is None else _alignment(source.features, target.features),
        "adversarial": zero if adversarial is None else adversarial,
        "entropy": conditional_entropy(target.logits, n_classes),
        "diversity": diversity(target.logits, n_classes),
        "self_training": pseudo_label(target.logits, PSEUDO_LABEL_THRESHOLD),
        "auxiliary": zero if auxiliary is None else auxiliary,
        "target": cross_entropy(support.logits, support.labels, n_classes=n_classes),
    }
    return torch.stack([values[term] for term in TERMS], dim=-1)


def _alignment(features_s: Tensor, features_t: Tensor) -> Tensor:
    """Sum MMD, which sees means, and CORAL, which sees covariances."""
    return mmd(features_s, features_t) + coral(features_s, features_t)


def weighted_sum(terms: Tensor, weights: Tensor) -> Tensor:
    """Weigh the terms; a term that is off adds exactly nothing, whatever its value.

    Args:
        terms: `[lanes, 8]`.
        weights: Of the seven knobs, `[lanes, 7]`.

    Returns:
        `[lanes]`.
    """
    weights = torch.cat([weights, torch.ones_like(weights[:, :1])], dim=-1).to(terms.dtype)
    # where, not a product: 0 * inf is nan, and a term that is off must not end a lane.
    return torch.where(weights > 0, weights * terms, torch.zeros_like(terms)).sum(-1)
