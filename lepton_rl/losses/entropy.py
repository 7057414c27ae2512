"""Information maximisation in its two halves: certain predictions, varied predictions.

They are apart because the second one harms under label shift and needs a weight of its own. Entropy alone
rewards collapse to one class.
"""

import math

import torch
from torch import Tensor


def log_class_count(logits: Tensor, n_classes: Tensor | int | None = None) -> Tensor | float:
    """Return the largest possible entropy in nats: log of `n_classes`, or of `logits.shape[-1]` when None.

    A single class counts as two, so that dividing by the result is safe; its entropy is 0 anyway.

    Args:
        logits: `[..., b, k]`, padded classes being large negative finite numbers such as -1e4.
        n_classes: real classes, `[...]` or one for all lanes.
    """
    if isinstance(n_classes, Tensor):
        return n_classes.to(logits.dtype).clamp_min(2.0).log()
    return math.log(max(logits.shape[-1] if n_classes is None else n_classes, 2))


def entropy(p: Tensor) -> Tensor:
    """Return the entropy in nats of distributions `[..., k] -> [...]`, with a finite gradient at p = 0."""
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(-1)


def conditional_entropy(logits: Tensor, n_classes: Tensor | int | None = None) -> Tensor:
    """Return the mean entropy of the predictions, in units of log k.

    Args:
        logits: `[..., b, k]`; padded classes are large negative finite numbers.
        n_classes: real classes, `[...]` or one for all lanes (default k).

    Returns:
        `[...]` in 0..1: 0 for certain, 1 for uniform predictions.

    Source: Grandvalet & Bengio 2005, "Semi-supervised learning by entropy minimization", equation 6.
    """
    log_p = logits.log_softmax(-1)
    row_entropy = -(log_p.exp() * log_p).sum(-1)
    return row_entropy.mean(-1) / log_class_count(logits, n_classes)


def diversity(logits: Tensor, n_classes: Tensor | int | None = None) -> Tensor:
    """Return `1 - H(mean prediction) / log k`, which falls as the predicted classes become balanced.

    Args:
        logits: `[..., b, k]`; padded classes are large negative finite numbers.
        n_classes: real classes, `[...]` or one for all lanes (default k).

    Returns:
        `[...]` in 0..1: 0 for a uniform mean prediction, 1 when all rows collapse on one class.

    Source: Liang et al. 2020, "Do we really need to access the source data?", the diversity term of the
    information-maximisation loss, here over log k.
    """
    marginal = logits.softmax(-1).mean(-2)
    return 1.0 - entropy(marginal) / log_class_count(logits, n_classes)
