"""Every gap measure against numbers by hand, a naive version, one lane at a time, and what it promises."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lepton_rl.discrepancy import (
    coral_distance,
    mean_shift,
    mmd2_ratio,
    mmd2_unbiased,
    proxy_a_distance,
    variance_shift,
)

MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "coral_distance": coral_distance,
    "mmd2_unbiased": mmd2_unbiased,
    "mmd2_ratio": mmd2_ratio,
    "proxy_a_distance": proxy_a_distance,
    "mean_shift": mean_shift,
    "variance_shift": variance_shift,
}
SEEDS = st.integers(0, 2**32 - 1)
ROWS = st.integers(2, 7)
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def _pair(seed: int, b_s: int, b_t: int, d: int) -> tuple[Tensor, Tensor]:
    return _normal(seed, b_s, d), 1.5 * _normal(seed + 1, b_t, d) + 0.5


def _kernel(x: np.ndarray, y: np.ndarray, scale: float) -> float:
    distance = float(((x - y) ** 2).sum())
    return sum(math.exp(-distance / (2 * m * scale)) for m in WIDTHS) / len(WIDTHS)


def _source_scale(s: np.ndarray) -> float:
    pairs = list(itertools.permutations(s, 2))
    return sum(float(((x - y) ** 2).sum()) for x, y in pairs) / len(pairs)


def _naive_mmd2(s: np.ndarray, t: np.ndarray) -> float:
    scale = _source_scale(s)
    within = [[_kernel(x, y, scale) for x, y in itertools.permutations(z, 2)] for z in (s, t)]
    across = [_kernel(x, y, scale) for x in s for y in t]
    return float(np.mean(within[0]) + np.mean(within[1]) - 2 * np.mean(across))


def _naive_squared_norm(x: np.ndarray) -> float:
    """The U-statistic over four different rows whose mean is the trace of the squared covariance."""
    values = [(a @ b) ** 2 - 2 * (a @ b) * (b @ c) + (a @ b) * (c @ d) for a, b, c, d in itertools.permutations(x, 4)]
    return float(np.mean(values))


def _naive_proxy(s: np.ndarray, t: np.ndarray, ridge: float = 0.1) -> float:
    fit, goal, weight = [], [], []
    for rows, sign in ((s[0::2], -1.0), (t[0::2], 1.0)):
        fit += list(rows)
        goal += [sign] * len(rows)
        weight += [0.5 / len(rows)] * len(rows)
    x, y, w = np.array(fit), np.array(goal), np.array(weight)
    centre = (w[:, None] * x).sum(0)
    x = x - centre
    gram = sum(wi * np.outer(xi, xi) for wi, xi in zip(w, x, strict=True))
    penalty = ridge * np.trace(gram) / min(x.shape)
    beta = np.linalg.solve(gram + penalty * np.eye(x.shape[1]), (w * y) @ x)
    error_s = np.mean([(row - centre) @ beta > 0 for row in s[1::2]])
    error_t = np.mean([(row - centre) @ beta < 0 for row in t[1::2]])
    return float(min(max(2 * (1 - (error_s + error_t)), 0), 2))


def test_coral_distance_by_hand() -> None:
    # Three rows: sample covariances diag(1, 0) and diag(4, 0): (1 - 4)^2 / (1 + 16).
    s = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert coral_distance(s, 2 * s + 7).item() == pytest.approx(9 / 17, rel=1e-9)
    assert coral_distance(s, s).item() == pytest.approx(0.0, abs=1e-12)
    assert coral_distance(s, s.flip(-1)).item() == pytest.approx(1.0, rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(2, 6), st.integers(2, 6), st.integers(1, 3))
def test_coral_distance_equals_naive(seed: int, b_s: int, b_t: int, d: int) -> None:
    s, t = _pair(seed, b_s, b_t, d)
    covariances = [np.atleast_2d(np.cov(x.numpy().T)) for x in (s, t)]
    norms = [
        _naive_squared_norm(x.numpy()) if len(x) >= 4 else float((c**2).sum())
        for x, c in zip((s, t), covariances, strict=True)
    ]
    cross = 2 * float((covariances[0] * covariances[1]).sum())
    expected = max(0.0, 1 - cross / sum(norms)) if sum(norms) > 0 else 0.0
    assert coral_distance(s, t).item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_coral_distance_of_equal_distributions_is_small_in_small_batches() -> None:
    s, t = _normal(0, 200, 32, 64), _normal(1, 200, 32, 64)
    assert coral_distance(s, t).mean().item() < 0.1  # plugging in covariances gives about 0.67
    twice = coral_distance(s, 2 * t)
    assert twice.mean().item() == pytest.approx(9 / 17, abs=0.05)


def test_mmd2_by_hand() -> None:
    # Source at distance 1, so scale 1 and k = exp(-1/2); the target sits on the two source rows.
    s = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    k = math.exp(-0.5)
    expected = 2 * k - 2 * (1 + k) / 2
    assert mmd2_unbiased(s, s, bandwidths=(1.0,)).item() == pytest.approx(expected, rel=1e-10)
    assert mmd2_ratio(s, s, bandwidths=(1.0,)).item() == pytest.approx(expected / (1 - k), rel=1e-10)


@settings(max_examples=40, deadline=None)
@given(SEEDS, ROWS, ROWS, st.integers(1, 4))
def test_mmd2_equals_naive(seed: int, b_s: int, b_t: int, d: int) -> None:
    s, t = _pair(seed, b_s, b_t, d)
    assert mmd2_unbiased(s, t).item() == pytest.approx(_naive_mmd2(s.numpy(), t.numpy()), rel=1e-8, abs=1e-9)


def test_mmd2_ratio_is_relative_to_the_mean_over_all_split_halves() -> None:
    s, t = _pair(2, 6, 5, 3)
    rows, scale = s.numpy(), _source_scale(s.numpy())
    halves = []
    for first in itertools.combinations(range(6), 3):
        a, b = rows[list(first)], rows[[i for i in range(6) if i not in first]]
        means = [np.mean([_kernel(x, y, scale) for x in u for y in v]) for u, v in ((a, a), (b, b), (a, b))]
        halves.append(means[0] + means[1] - 2 * means[2])
    expected = _naive_mmd2(rows, t.numpy()) / (float(np.mean(halves)) / (2 / 3))
    assert mmd2_ratio(s, t).item() == pytest.approx(expected, rel=1e-9)


def test_mmd2_of_equal_distributions_is_zero_on_average() -> None:
    for b_t in (8, 24):
        draws = mmd2_unbiased(_normal(3, 4000, 16, 3), _normal(4, 4000, b_t, 3))
        error = draws.std().item() / math.sqrt(4000)
        assert abs(draws.mean().item()) < 4 * error
        assert error < 0.002
        assert draws.min().item() < 0


def test_proxy_a_distance_of_separable_and_of_equal_domains() -> None:
    s, t = _normal(5, 100, 40, 5), _normal(6, 100, 30, 5)
    assert (proxy_a_distance(s, t + 12.0) == 2.0).all()
    assert proxy_a_distance(s, t).mean().item() < 0.25  # cut at 0, so not 0 on average
    assert proxy_a_distance(s[0], s[0]).item() == pytest.approx(0.0, abs=1e-12)


def test_proxy_a_distance_by_hand() -> None:
    # Fit on -1 and 1 (threshold 0), test on -3, 3 (source) and 2, 4 (target): errors 1/2 and 0.
    s = torch.tensor([[-1.0], [-3.0], [-1.0], [3.0]])
    t = torch.tensor([[1.0], [2.0], [1.0], [4.0]])
    assert proxy_a_distance(s, t).item() == pytest.approx(2 * (1 - 2 * 0.25))


@settings(max_examples=60, deadline=None)
@given(SEEDS, ROWS, ROWS, st.integers(1, 9))
def test_proxy_a_distance_equals_naive_in_primal_and_dual(seed: int, b_s: int, b_t: int, d: int) -> None:
    s, t = _pair(seed, b_s, b_t, d)
    assert proxy_a_distance(s, t).item() == pytest.approx(_naive_proxy(s.numpy(), t.numpy()), abs=1e-9)


def test_mean_shift_by_hand() -> None:
    # Variance 2 in both, means 4 apart: (16 / 2 - 2/2 - 2/2) / 2 = 3, one half being the correction at two
    # degrees of freedom.
    s = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    assert mean_shift(s, s + 4).item() == pytest.approx(math.sqrt(3), rel=1e-12)
    assert mean_shift(s, s).item() == 0.0
    assert mean_shift(s, s + 1e6).item() == 10.0


@settings(deadline=None)
@given(SEEDS, ROWS, ROWS, st.integers(1, 4))
def test_shifts_equal_naive(seed: int, b_s: int, b_t: int, d: int) -> None:
    s, t = _pair(seed, b_s, b_t, d)
    mean_parts, variance_parts = [], []
    for x, y in zip(s.numpy().T, t.numpy().T, strict=True):
        var_x, var_y = x.var(ddof=1), y.var(ddof=1)
        assume(min(var_x, var_y) > 1e-4)  # the floor of a constant dimension is another case
        correction = max(b_s + b_t - 4, 1) / (b_s + b_t - 2)
        gap = correction * (x.mean() - y.mean()) ** 2 - var_x / b_s - var_y / b_t
        mean_parts.append(min(gap / ((var_x + var_y) / 2), 100.0))
        variance_parts.append(min(abs(math.log(var_y / var_x)), 10.0))
    assert mean_shift(s, t).item() == pytest.approx(math.sqrt(max(np.mean(mean_parts), 0)), rel=1e-9, abs=1e-7)
    assert variance_shift(s, t).item() == pytest.approx(np.mean(variance_parts), rel=1e-9)


def test_mean_shift_does_not_depend_on_the_batch_size() -> None:
    for b in (8, 32, 128):
        shift = mean_shift(_normal(7, 300, b, 16), _normal(8, 300, b, 16) + 0.5)
        assert shift.square().mean().item() == pytest.approx(0.25, rel=0.2)


def test_variance_shift_by_hand() -> None:
    s = torch.tensor([[-1.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
    # One dimension doubles its spread, the other is constant in both.
    assert variance_shift(s, 2 * s).item() == pytest.approx(math.log(4) / 2, rel=1e-12)
    assert variance_shift(s, torch.zeros_like(s)).item() == pytest.approx(5.0)


@pytest.mark.parametrize("name", MEASURES)
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, b_s=st.integers(1, 7), b_t=st.integers(1, 7), d=st.integers(1, 9))
def test_lanes_equal_a_loop(name: str, seed: int, b_s: int, b_t: int, d: int) -> None:
    measure = MEASURES[name]
    s, t = _normal(seed, 2, 3, b_s, d), _normal(seed + 1, 2, 3, b_t, d) + 1
    together = measure(s, t)
    assert together.shape == (2, 3)
    apart = [measure(x, y) for x, y in zip(s.flatten(0, 1), t.flatten(0, 1), strict=True)]
    torch.testing.assert_close(together, torch.stack(apart).reshape(2, 3), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MEASURES)
def test_measures_ignore_scale_and_place_and_see_a_shift(name: str) -> None:
    measure = MEASURES[name]
    s, t = _normal(11, 20, 6), 2 * _normal(12, 24, 6) + 1
    for scale in (1e-6, 1e6):
        torch.testing.assert_close(measure(scale * s, scale * t), measure(s, t), rtol=1e-7, atol=1e-9)
        single = measure((scale * s).float(), (scale * t).float())
        assert single.item() == pytest.approx(measure(s, t).item(), rel=1e-3)
    torch.testing.assert_close(measure(s + 9, t + 9), measure(s, t), rtol=1e-7, atol=1e-9)
    assert measure(s, t).item() > measure(s, _normal(13, 24, 6)).item()


@pytest.mark.parametrize("name", sorted(set(MEASURES) - {"proxy_a_distance"}))
def test_the_order_of_the_rows_does_not_matter(name: str) -> None:
    s, t = _pair(14, 7, 9, 4)
    got = MEASURES[name](s.flip(-2), t.roll(3, -2))
    torch.testing.assert_close(got, MEASURES[name](s, t), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_never_vary_show_no_gap(name: str, dtype: torch.dtype) -> None:
    for value in (0.0, 3.7, 1e6):
        s, t = torch.full((5, 3), value, dtype=dtype), torch.full((7, 3), value, dtype=dtype)
        assert MEASURES[name](s, t).item() == pytest.approx(0.0, abs=2e-3)  # rounding
        moved = MEASURES[name](s, t + 1)
        assert moved.isfinite()
        varied = MEASURES[name](s, torch.arange(21, dtype=dtype).reshape(7, 3))
        assert varied.isfinite()


@pytest.mark.parametrize("name", MEASURES)
def test_one_row_is_finite_and_no_measure_has_a_gradient(name: str) -> None:
    s, t = _pair(15, 6, 1, 3)
    assert MEASURES[name](s, t).isfinite()
    assert MEASURES[name](t, t + 1).item() == 0.0
    assert not MEASURES[name](s.requires_grad_(), s + 1).requires_grad
