"""Measures of the gap between two domains: no gradient, scale-free, comparable across batch sizes.

Every measure takes features `[..., b_s, d]` and `[..., b_t, d]` with any leading lane dimensions and returns
`[...]`. `b_s` may differ from `b_t`. Where a batch has too few rows to measure anything the result is 0;
whether a signal is available is for the caller to know. The losses to train with are in `lepton_rl.losses`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lepton_rl.losses.coral import covariance
from lepton_rl.losses.mmd import BANDWIDTHS, gaussian_kernel, mean_squared_distance, squared_distances

MAX_SHIFT = 10.0
"""Per-dimension limit of `mean_shift` (standard deviations) and `variance_shift` (nats)."""

_DEAD_VARIANCE = 1e-6
"""Share of the mean variance below which a dimension counts as constant."""

_LEAST_NORM = 1e-7
"""Squared covariance norms below it are rounding; at unit scale 4096 even dimensions have 3e-5."""


@torch.no_grad()
def coral_distance(features_s: Tensor, features_t: Tensor) -> Tensor:
    """Return the scale-free CORAL distance `||C_s - C_t||_F^2 / (||C_s||_F^2 + ||C_t||_F^2)`.

    Plugging in sample covariances gives far more than 0 for equal distributions (about 0.67 for 64 dimensions
    and 32 rows), so the squared norms are estimated without bias. The result is cut at 0.

    Args:
        features_s: source features `[..., b_s, d]`.
        features_t: target features `[..., b_t, d]`.

    Returns:
        `[...]` in 0..1; 1 means that the domains vary in orthogonal directions, or that one does not vary at
        all.

    Source: Sun & Saenko 2016, "Deep CORAL", equation 1, normalised; Himeno & Yamada 2014, "Estimations for
    some functions of covariance matrix in high dimension under non-normality" (the unbiased norms).
    """
    # Unit overall scale: fourth powers of the features would leave the range of float32.
    scale = (mean_squared_distance(features_s) + mean_squared_distance(features_t))[..., None, None].sqrt()
    features_s, features_t = features_s / scale, features_t / scale
    cross = 2.0 * (covariance(features_s) * covariance(features_t)).sum((-2, -1))
    norms = _squared_covariance_norm(features_s) + _squared_covariance_norm(features_t)
    # 2 <C_s, C_t> is at most the sum of the norms; the estimates obey that only on average.
    whole = torch.maximum(norms, cross)
    return (whole - cross) / whole.clamp_min(_LEAST_NORM)


def _squared_covariance_norm(features: Tensor) -> Tensor:
    """Estimate `||C||_F^2`, without bias from four rows on, else by the sample covariance."""
    n = features.shape[-2]
    sample_covariance = covariance(features)
    plug_in = sample_covariance.square().sum((-2, -1))
    if n < 4:
        return plug_in
    lengths = (features - features.mean(-2, keepdim=True)).square().sum(-1)
    trace = lengths.sum(-1) / (n - 1)
    fourth = lengths.square().sum(-1) / (n - 1)
    factor = (n - 1) / (n * (n - 2) * (n - 3))
    return factor * ((n - 1) * (n - 2) * plug_in + trace.square() - n * fourth)


@torch.no_grad()
def mmd2_unbiased(features_s: Tensor, features_t: Tensor, bandwidths: Sequence[float] = BANDWIDTHS) -> Tensor:
    """Return the unbiased estimate (U-statistic) of the squared MMD.

    The kernel width comes from the source alone, so that the ruler stays the same while the target moves.

    Args:
        features_s: source features `[..., b_s, d]`; 0 is returned for fewer than two rows.
        features_t: target features `[..., b_t, d]`; the same.
        bandwidths: squared kernel widths as multiples of the source's mean squared distance.

    Returns:
        `[...]`, about 0 for equal distributions (it may be negative) and at most 2.

    Source: Gretton et al. 2012, "A kernel two-sample test", equation 3; the kernels of Long et al. 2015.
    """
    if min(features_s.shape[-2], features_t.shape[-2]) < 2:
        return features_s.new_zeros(features_s.shape[:-2])
    within_s, within_t, across = _mean_kernels(features_s, features_t, bandwidths)
    return within_s + within_t - 2.0 * across


@torch.no_grad()
def mmd2_ratio(features_s: Tensor, features_t: Tensor, bandwidths: Sequence[float] = BANDWIDTHS) -> Tensor:
    """Return the squared MMD to the target in units of the source's own split-half MMD.

    Halves of h rows of the source differ, on average over all splits and by the biased squared MMD, by
    exactly `2/h (1 - k)`, where k is the mean kernel of two source rows. Without the factor `2/h`, which only
    tells the batch size, this is the source's variance under the kernel: the unit used here, in closed form
    and without drawing splits.

    Args:
        features_s: source features `[..., b_s, d]`; 0 is returned for fewer than two rows.
        features_t: target features `[..., b_t, d]`; the same.
        bandwidths: as in `mmd2_unbiased`.

    Returns:
        `[...]`, about 0 for equal distributions (it may be negative), usually below 4.

    Source: Gretton et al. 2012, "A kernel two-sample test", equations 3 and 5.
    """
    if min(features_s.shape[-2], features_t.shape[-2]) < 2:
        return features_s.new_zeros(features_s.shape[:-2])
    within_s, within_t, across = _mean_kernels(features_s, features_t, bandwidths)
    # The floor only matters for a source of equal rows.
    return (within_s + within_t - 2.0 * across) / (1.0 - within_s).clamp_min(1e-3)


def _mean_kernels(features_s: Tensor, features_t: Tensor, bandwidths: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean kernels of two different source rows, two different target rows and one of each."""
    scale = mean_squared_distance(features_s)
    centre = torch.cat([features_s, features_t], -2).mean(-2, keepdim=True)
    rows_s, rows_t = features_s - centre, features_t - centre

    def within(rows: Tensor) -> Tensor:
        kernel = gaussian_kernel(squared_distances(rows, rows), scale, bandwidths)
        n = rows.shape[-2]
        return (kernel.sum((-2, -1)) - kernel.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1))

    across = gaussian_kernel(squared_distances(rows_s, rows_t), scale, bandwidths).mean((-2, -1))
    return within(rows_s), within(rows_t), across


@torch.no_grad()
def proxy_a_distance(features_s: Tensor, features_t: Tensor, ridge: float = 0.1) -> Tensor:
    """Return `2 (1 - 2 error)` of a linear classifier that tells the domains apart, cut to 0..2.

    A ridge regression on -1 (source) and +1 (target), in closed form, fitted on the even rows and tested on
    the odd ones. The domains weigh the same in fit and error, whatever their sizes; a score of exactly 0
    counts as half an error.

    Args:
        features_s: source features `[..., b_s, d]`, in random order; 0 is returned for fewer than two rows.
        features_t: target features `[..., b_t, d]`; the same.
        ridge: penalty as a multiple of the mean eigenvalue of the fitted rows, above 0.

    Returns:
        `[...]` in 0..2: 0 for domains that cannot be told apart, 2 for separable ones.

    Source: Ben-David et al. 2007, "Analysis of representations for domain adaptation", section 4.
    """
    if min(features_s.shape[-2], features_t.shape[-2]) < 2:
        return features_s.new_zeros(features_s.shape[:-2])
    fit_s, fit_t = features_s[..., 0::2, :], features_t[..., 0::2, :]
    centre = 0.5 * (fit_s.mean(-2, keepdim=True) + fit_t.mean(-2, keepdim=True))
    fit_s, fit_t = fit_s - centre, fit_t - centre
    # Rows scaled by the root of their weights (one half per domain) turn the weighted fit into a plain one.
    root_s, root_t = (0.5 / fit_s.shape[-2]) ** 0.5, (0.5 / fit_t.shape[-2]) ** 0.5
    design = torch.cat([root_s * fit_s, root_t * fit_t], -2)
    goal = torch.cat([-root_s * torch.ones_like(fit_s[..., 0]), root_t * torch.ones_like(fit_t[..., 0])], -1)
    direction = _ridge_direction(design, goal, ridge).unsqueeze(-1)
    score_s = ((features_s[..., 1::2, :] - centre) @ direction).squeeze(-1)
    score_t = ((features_t[..., 1::2, :] - centre) @ direction).squeeze(-1)
    error = 0.5 + 0.25 * (score_s.sign().mean(-1) - score_t.sign().mean(-1))
    return (2.0 * (1.0 - 2.0 * error)).clamp(0.0, 2.0)


def _ridge_direction(design: Tensor, goal: Tensor, ridge: float) -> Tensor:
    """Solve ridge regression `[..., n, d], [..., n] -> [..., d]` by the smaller of its two systems."""
    n, d = design.shape[-2:]
    size = min(n, d)
    total = design.square().sum((-2, -1), keepdim=True)
    design = design / total.clamp_min(torch.finfo(design.dtype).tiny).sqrt()
    penalty = ridge / size * torch.eye(size, dtype=design.dtype, device=design.device)
    # solve_ex does not wait for the device to report success; the penalty makes both systems regular.
    if d <= n:
        right = design.mT @ goal.unsqueeze(-1)
        primal: Tensor = torch.linalg.solve_ex(design.mT @ design + penalty, right)[0]
        return primal.squeeze(-1)
    dual: Tensor = torch.linalg.solve_ex(design @ design.mT + penalty, goal.unsqueeze(-1))[0]
    return (design.mT @ dual).squeeze(-1)


@torch.no_grad()
def mean_shift(features_s: Tensor, features_t: Tensor) -> Tensor:
    """Return the distance of the means in pooled standard deviations, root mean square over the dimensions.

    The share that sampling alone explains is subtracted, so that small batches do not look shifted.

    Args:
        features_s: source features `[..., b_s, d]`; 0 is returned for fewer than two rows.
        features_t: target features `[..., b_t, d]`; the same.

    Returns:
        `[...]` in 0..10 standard deviations.

    Source: Cohen's d per dimension, `(mean_t - mean_s)^2 / ((var_s + var_t) / 2)`, corrected for small
    samples as by Hedges 1981, less its sampling variance.
    """
    n_s, n_t = features_s.shape[-2], features_t.shape[-2]
    if min(n_s, n_t) < 2:
        return features_s.new_zeros(features_s.shape[:-2])
    var_s, var_t = features_s.var(-2), features_t.var(-2)
    # The mean of 1 / (estimated variance) is too large by freedom / (freedom - 2), as in Hedges' correction.
    freedom = n_s + n_t - 2
    gap = max(freedom - 2, 1) / freedom * (features_t.mean(-2) - features_s.mean(-2)).square()
    gap = gap - var_s / n_s - var_t / n_t
    pooled = torch.maximum(0.5 * (var_s + var_t), _variance_floor(features_s, features_t))
    return (gap / pooled).clamp_max(MAX_SHIFT**2).mean(-1).clamp_min(0.0).sqrt()


@torch.no_grad()
def variance_shift(features_s: Tensor, features_t: Tensor) -> Tensor:
    """Return the mean over the dimensions of `|log(var_t / var_s)|`.

    Sampling adds about `0.8 sqrt(2/b_s + 2/b_t)`, the same at every scale of the features.

    Args:
        features_s: source features `[..., b_s, d]`; 0 is returned for fewer than two rows.
        features_t: target features `[..., b_t, d]`; the same.

    Returns:
        `[...]` in 0..10 nats. Dimensions that are constant in both domains count as 0.

    Source: the log variance ratio per dimension; the statistics that AdaBN (Li et al. 2016) replaces.
    """
    if min(features_s.shape[-2], features_t.shape[-2]) < 2:
        return features_s.new_zeros(features_s.shape[:-2])
    var_s, var_t = features_s.var(-2), features_t.var(-2)
    floor = _variance_floor(features_s, features_t)
    ratio = torch.maximum(var_t, floor).log() - torch.maximum(var_s, floor).log()
    return ratio.abs().clamp_max(MAX_SHIFT).mean(-1)


def _variance_floor(features_s: Tensor, features_t: Tensor) -> Tensor:
    """Return the variances `[..., d]` below which a dimension counts as constant; never 0."""
    mean_variance = 0.5 * (features_s.var(-2) + features_t.var(-2)).mean(-1, keepdim=True)
    limits = torch.finfo(mean_variance.dtype)
    magnitude = features_s.square().mean(-2) + features_t.square().mean(-2)
    rounding = (256 * limits.eps) ** 2 * magnitude
    return (_DEAD_VARIANCE * mean_variance + rounding).clamp_min(limits.tiny)
