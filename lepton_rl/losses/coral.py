"""Deep CORAL: match the second moments of two domains."""

import torch
from torch import Tensor

from lepton_rl.losses.closed_form import with_gradient


def covariance(features: Tensor) -> Tensor:
    """Return the unbiased covariance `[..., d, d]` of the rows of `[..., b, d]`; zeros for a single row."""
    return _covariance(features - features.mean(-2, keepdim=True))


def _covariance(centred: Tensor) -> Tensor:
    return centred.mT @ centred / max(centred.shape[-2] - 1, 1)


def coral(features_s: Tensor, features_t: Tensor) -> Tensor:
    """Return the CORAL loss `||C_s - C_t||_F^2 / (4 d^2)` with unbiased covariances.

    Its derivative for centred source rows X is `X (C_s - C_t) / (d^2 (b_s - 1))`, for target rows the negative.

    Args:
        features_s: source features `[..., b_s, d]`.
        features_t: target features `[..., b_t, d]`; `b_t` may differ from `b_s`.

    Returns:
        `[...]`, at least 0, in the fourth power of the features' unit.

    Source: Sun & Saenko 2016, "Deep CORAL", equations 1 to 3.
    """
    with torch.no_grad():
        value, gradients = coral_of(features_s, features_t)
    return with_gradient(value, (features_s, features_t), gradients)


def coral_of(features_s: Tensor, features_t: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return `coral` and its gradients by the features."""
    d = features_s.shape[-1]
    source, target = (features - features.mean(-2, keepdim=True) for features in (features_s, features_t))
    gap = _covariance(source) - _covariance(target)
    value = gap.square().sum((-2, -1)) / (4 * d**2)
    factors = [sign / (d**2 * max(x.shape[-2] - 1, 1)) for sign, x in ((1, source), (-1, target))]
    return value, (source @ gap * factors[0], target @ gap * factors[1])
