"""Maximum mean discrepancy with several Gaussian kernels."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lepton_rl.losses.closed_form import with_gradient

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Squared kernel widths, as multiples of the mean squared distance between two rows."""


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return `[..., n, m]` squared Euclidean distances between the rows of `[..., n, d]` and `[..., m, d]`.

    The inner-product form needs no `[n, m, d]` tensor; call it with centred rows, where it loses few digits.
    """
    norms = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2)
    return (norms - 2.0 * (x @ y.mT)).clamp_min(0.0)


def mean_squared_distance(features: Tensor) -> Tensor:
    """Return the detached mean squared distance over the pairs of different rows, `[..., b, d] -> [...]`.

    That mean is twice the trace of the unbiased covariance, so no pairs are formed. It is kept above the
    rounding error of the rows, so that dividing by it is safe when all rows are equal.
    """
    rows = features.detach()
    centred = rows - rows.mean(-2, keepdim=True)
    mean: Tensor = 2.0 * centred.square().sum((-2, -1)) / max(rows.shape[-2] - 1, 1)
    limits = torch.finfo(rows.dtype)
    rounding: Tensor = (256 * limits.eps) ** 2 * rows.square().sum(-1).mean(-1)
    smallest: float = limits.tiny**0.5
    return mean + rounding + smallest


def gaussian_kernel(distances: Tensor, scale: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """Return the mean of `exp(-distances / (2 m scale))` over the multiples m in `bandwidths`.

    Args:
        distances: squared distances `[..., n, m]`.
        scale: squared width `[...]`, above 0.
        bandwidths: multiples of `scale`, each above 0.
    """
    exponents = -0.5 * distances / scale[..., None, None]
    return torch.stack([(exponents / multiple).exp() for multiple in bandwidths]).mean(0)


def mmd(features_s: Tensor, features_t: Tensor, bandwidths: Sequence[float] = BANDWIDTHS) -> Tensor:
    """Return the squared MMD between two batches, as the biased V-statistic.

    The V-statistic keeps the diagonal of the kernel matrices: never negative and smooth, as a loss should be,
    but of the order of 1/b for equal distributions. To compare gaps use
    `lepton_rl.discrepancy.mmd2_unbiased`. The kernel width is the mean squared distance of the pooled batch,
    detached, so that the loss cannot fall by rescaling. The derivative for row i is the sum over the rows j of
    `2 w_i w_j S_ij (x_j - x_i) / scale`, S being the mean over the widths m of `exp(..) / m`.

    Args:
        features_s: source features `[..., b_s, d]`.
        features_t: target features `[..., b_t, d]`; `b_t` may differ from `b_s`.
        bandwidths: squared kernel widths as multiples of the pooled mean squared distance.

    Returns:
        `[...]` in 0..2, without unit.

    Source: Long et al. 2015, "Deep Adaptation Networks", equations 1 and 2 (kernel weights equal); Gretton et
    al. 2012, equation 5.
    """
    with torch.no_grad():
        value, gradients = mmd_of(features_s, features_t, bandwidths)
    return with_gradient(value, (features_s, features_t), gradients)


def mmd_of(
    features_s: Tensor, features_t: Tensor, bandwidths: Sequence[float] = BANDWIDTHS
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return `mmd` and its gradients by the features."""
    n_s, n_t = features_s.shape[-2], features_t.shape[-2]
    pooled = torch.cat([features_s, features_t], -2)
    scale = mean_squared_distance(pooled)
    rows = pooled - pooled.mean(-2, keepdim=True)
    exponents = squared_distances(rows, rows) / (-2.0 * scale[..., None, None])
    multiples = _column(tuple(bandwidths), rows.dtype, rows.device).reshape(-1, *[1] * rows.dim())
    kernels = (exponents / multiples).exp_()
    # w sums over pairs as the three mean kernels do: w' K w with 1/n_s for source rows, -1/n_t for target rows.
    w = _column((1 / n_s,) * n_s + (-1 / n_t,) * n_t, rows.dtype, rows.device)
    value = (kernels.mean(0) @ w).mul(w).sum((-2, -1))
    pulls = kernels.div_(multiples).mean(0) @ torch.cat([w.expand_as(rows[..., :1]), w * rows], -1)
    gradient = (pulls[..., 1:] - pulls[..., :1] * rows) * (2.0 * w) / scale[..., None, None]
    return value, (gradient[..., :n_s, :], gradient[..., n_s:, :])


@lru_cache(maxsize=64)
def _column(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return constants `[n, 1]`; kept, because a copy from the host would make the device wait."""
    return torch.tensor(numbers, dtype=dtype, device=device)[:, None]
