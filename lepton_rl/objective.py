"""The training objective of one gradient step, for all lanes at once.

The loss on labelled target images has weight 1 and anchors the others; every other term has its knob.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lepton_rl.controls import LOSS_TERMS
from lepton_rl.losses.closed_form import with_gradient
from lepton_rl.losses.coral import coral_of
from lepton_rl.losses.cross_entropy import cross_entropy_of
from lepton_rl.losses.entropy import conditional_entropy_of, diversity_of
from lepton_rl.losses.mmd import mmd_of
from lepton_rl.losses.self_training import pseudo_label_of

TERMS = (*LOSS_TERMS, "target")
NEEDS_SOURCE = ("source", "alignment", "adversarial")
PSEUDO_LABEL_THRESHOLD = 0.9
SUPPORT, UNLABELLED, SOURCE = range(3)  # the parts of a step's batch


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


def objective(
    batch: Outputs,
    sizes: tuple[int, ...],
    weights: Tensor,
    *,
    adversarial: Tensor | None,
    auxiliary: Tensor | None,
    n_classes: Tensor | None,
    log_prior: Tensor | None = None,
    trained: frozenset[str] = frozenset(TERMS),
    wanted: frozenset[str] = frozenset(TERMS),
) -> tuple[Tensor, Tensor]:
    """Compute the loss of every lane, and the terms it is made of.

    Terms of features and predictions come with their derivatives, which are added up here, so that the graph of a
    step has one node for all of them.

    Args:
        batch: Support, unlabelled and, if some lane has any, source images; the support's labels are all -1 in
            lanes without.
        sizes: Numbers of images of these two or three.
        weights: Of the terms, `[lanes, 8]`, 0 = off.
        adversarial: Loss of the domain discriminator behind a gradient reversal `[lanes]`, or None when off.
        auxiliary: Rotation loss `[lanes]`, or None when off.
        n_classes: int64 `[lanes]`; None = every lane has all classes of the logits.
        log_prior: `log(n_classes * class prior)` of the target images, `[lanes, k]`; None = balanced classes.
        trained: Terms that some lane trains on.
        wanted: Terms that are needed at all; the others are 0.

    Returns:
        The loss `[lanes]`, differentiable, and the terms `[lanes, 8]` in the order of `TERMS`, without a graph.
    """
    with torch.no_grad():
        values, by_logits, by_features = _known_terms(batch, sizes, n_classes, log_prior, wanted)
    if adversarial is not None:
        values["adversarial"] = adversarial
    if auxiliary is not None:
        values["auxiliary"] = auxiliary
    zero = batch.logits.new_zeros(len(batch.logits))
    terms = torch.stack([values[term] if term in wanted and term in values else zero for term in TERMS], dim=-1)
    loss = weighted_sum(terms, weights)
    with torch.no_grad():
        gradients = tuple(
            _joined(whole, sizes, [(part, term, pull) for part, term, pull in pulls if term in trained], weights)
            for whole, pulls in ((batch.logits, by_logits), (batch.features, by_features))
        )
    known = [(x, g) for x, g in zip((batch.logits, batch.features), gradients, strict=True) if g is not None]
    return with_gradient(loss, tuple(x for x, _ in known), tuple(g for _, g in known)), terms.detach()


_Pull = tuple[int, str, Tensor]  # number of the part, term, derivative of the term by what that part put out


def _known_terms(
    batch: Outputs,
    sizes: tuple[int, ...],
    n_classes: Tensor | None,
    log_prior: Tensor | None,
    wanted: frozenset[str],
) -> tuple[dict[str, Tensor], list[_Pull], list[_Pull]]:
    """Compute the terms of features and predictions, and their derivatives by logits and by features."""
    support, target, *source = batch.logits.log_softmax(-1).split(sizes, 1)
    expected = 0.0 if log_prior is None else log_prior[:, None]
    values: dict[str, Tensor] = {}
    by_logits: list[_Pull] = []
    by_features: list[_Pull] = []
    labels = batch.labels.split(sizes, 1)
    predictions: dict[str, tuple[int, Callable[[], tuple[Tensor, Tensor]]]] = {
        "entropy": (UNLABELLED, lambda: conditional_entropy_of(target, n_classes)),
        "diversity": (UNLABELLED, lambda: diversity_of(target, n_classes, expected)),
        "self_training": (UNLABELLED, lambda: pseudo_label_of(target, PSEUDO_LABEL_THRESHOLD)),
        "target": (SUPPORT, lambda: cross_entropy_of(support, labels[SUPPORT])),
    }
    if source:
        predictions["source"] = (SOURCE, lambda: cross_entropy_of(source[0], labels[SOURCE]))
    for term, (part, compute) in predictions.items():
        if term in wanted:
            values[term], pull = compute()
            by_logits.append((part, term, pull))
    if source and "alignment" in wanted:
        features = batch.features.split(sizes, 1)
        values["alignment"], pulls = _alignment(features[SOURCE], features[UNLABELLED])
        by_features = [(part, "alignment", pull) for part, pull in zip((SOURCE, UNLABELLED), pulls, strict=True)]
    return values, by_logits, by_features


def _alignment(features_s: Tensor, features_t: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Sum MMD, which sees means, and CORAL, which sees covariances."""
    mean, by_mean = mmd_of(features_s, features_t)
    covariance, by_covariance = coral_of(features_s, features_t)
    return mean + covariance, (by_mean[0] + by_covariance[0], by_mean[1] + by_covariance[1])


def _joined(whole: Tensor, sizes: tuple[int, ...], pulls: list[_Pull], weights: Tensor) -> Tensor | None:
    """Weigh derivatives and lay those of all parts side by side, `[lanes, b, d]`; None if there is none."""
    if not pulls or not whole.requires_grad:
        return None
    joined = torch.zeros_like(whole)
    parts = joined.split(sizes, 1)
    for part, term, pull in pulls:
        weight = weights[:, TERMS.index(term), None, None]
        # where, not a product alone: 0 * inf is nan, and a term that is off must not end a lane.
        parts[part].add_(torch.where(weight > 0, weight * pull, 0.0))
    return joined


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
