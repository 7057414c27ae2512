"""Deep CORAL: match the second moments of two domains."""

from torch import Tensor


def covariance(features: Tensor) -> Tensor:
    """Return the unbiased covariance `[..., d, d]` of the rows of `[..., b, d]`; zeros for a single row."""
    centred = features - features.mean(-2, keepdim=True)
    return centred.mT @ centred / max(features.shape[-2] - 1, 1)


def coral(features_s: Tensor, features_t: Tensor) -> Tensor:
    """Return the CORAL loss `||C_s - C_t||_F^2 / (4 d^2)` with unbiased covariances.

    Args:
        features_s: source features `[..., b_s, d]`.
        features_t: target features `[..., b_t, d]`; `b_t` may differ from `b_s`.

    Returns:
        `[...]`, at least 0, in the fourth power of the features' unit.

    Source: Sun & Saenko 2016, "Deep CORAL", equations 1 to 3.
    """
    gap = covariance(features_s) - covariance(features_t)
    return gap.square().sum((-2, -1)) / (4 * features_s.shape[-1] ** 2)
