"""Information maximisation in its two halves: certain predictions, varied predictions.

They are apart because the second one harms under label shift and needs a weight of its own. Entropy alone
rewards collapse to one class.
"""

import math

import torch
from torch import Tensor

from lepton_rl.losses.closed_form import of_logits


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


def conditional_entropy(logits: Tensor, n_classes: Tensor | int | None = None) -> Tensor:
    """Return the mean entropy of the predictions, in units of log k.

    Args:
        logits: `[..., b, k]`; padded classes are large negative finite numbers.
        n_classes: real classes, `[...]` or one for all lanes (default k).

    Returns:
        `[...]` in 0..1: 0 for certain, 1 for uniform predictions.

    Source: Grandvalet & Bengio 2005, "Semi-supervised learning by entropy minimization", equation 6.
    """
    return of_logits(logits, lambda log_p: conditional_entropy_of(log_p, n_classes))


def conditional_entropy_of(log_p: Tensor, n_classes: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """Return `conditional_entropy` of log-probabilities and its gradient by the logits, `-p (log p + H) / (b log k)`.

    H is the row's entropy.
    """
    p = log_p.exp()
    negative = (p * log_p).sum(-1, keepdim=True)
    unit = _unit(log_p, n_classes)
    return -(negative.squeeze(-1).sum(-1) * unit), p * (negative - log_p) * _outer(unit)


def diversity(logits: Tensor, n_classes: Tensor | int | None = None, log_prior: Tensor | float = 0.0) -> Tensor:
    """Return `KL(mean prediction, class prior) / log k`, which falls as the predicted classes become those expected.

    Where balanced classes are expected this is `1 - H(mean prediction) / log k`.

    Args:
        logits: `[..., b, k]`; padded classes are large negative finite numbers.
        n_classes: real classes, `[...]` or one for all lanes (default k).
        log_prior: `log(n_classes * class prior)`, `[..., 1, k]`; 0 = balanced classes.

    Returns:
        `[...]`, at least 0 (up to rounding): 0 for a mean prediction equal to the prior; 1 when all rows collapse on
        one class of balanced ones.

    Source: Liang et al. 2020, "Do we really need to access the source data?", the diversity term of the
    information-maximisation loss, here over log k; another prior than the balanced one as in Krause et al. 2010,
    "Discriminative clustering by regularized information maximization".
    """
    return of_logits(logits, lambda log_p: diversity_of(log_p, n_classes, log_prior))


def diversity_of(
    log_p: Tensor, n_classes: Tensor | int | None = None, log_prior: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return `diversity` of log-probabilities and its gradient by the logits, `p (r - p' r) / (b log k)`.

    r is the logarithm of the mean prediction, less `log_prior`.
    """
    p = log_p.exp()
    marginal = p.mean(-2, keepdim=True)
    log_m = marginal.clamp_min(torch.finfo(p.dtype).tiny).log()
    unit = _unit(log_p, n_classes)
    weighted = p * (log_m - log_prior)
    value = 1.0 + weighted.sum((-2, -1)) * unit
    return value, (weighted - p * weighted.sum(-1, keepdim=True)) * _outer(unit)


def _unit(log_p: Tensor, n_classes: Tensor | int | None) -> Tensor | float:
    return 1.0 / (log_p.shape[-2] * log_class_count(log_p, n_classes))


def _outer(unit: Tensor | float) -> Tensor | float:
    return unit[..., None, None] if isinstance(unit, Tensor) else unit
