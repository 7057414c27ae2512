"""Every loss against numbers by hand, a naive numpy version, one lane at a time, and its derivative."""

import importlib
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lepton_rl.errors import InputError
from lepton_rl.losses import (
    conditional_entropy,
    coral,
    cross_entropy,
    diversity,
    domain_adversarial,
    mmd,
    pseudo_label,
    reverse_gradient,
    rotate_batch,
)

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 5)
LOGIT_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "conditional_entropy": conditional_entropy,
    "diversity": diversity,
    "diversity of other than balanced classes": lambda logits: diversity(
        logits, None, torch.linspace(-1, 0.5, logits.shape[-1], dtype=logits.dtype)
    ),
    "pseudo_label": lambda logits: pseudo_label(logits, 0.5),
    "cross_entropy": lambda logits: cross_entropy(logits, _labels(logits), 0.1),
}
PAIR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "coral": coral,
    "mmd": mmd,
    "domain_adversarial": lambda s, t: domain_adversarial(s[..., 0], t[..., 0]),
}


def _labels(logits: Tensor) -> Tensor:
    """Labels -1, 0, 1, ... over the rows of each lane."""
    b, k = logits.shape[-2:]
    return (torch.arange(b) % (k + 1) - 1).expand(logits.shape[:-1])


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * 1.5)


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def _naive_cross_entropy(logits: np.ndarray, labels: np.ndarray, smoothing: float) -> float:
    losses = []
    for row, label in zip(logits, labels, strict=True):
        if label < 0:
            continue
        goal = np.full(len(row), smoothing / len(row))
        goal[label] += 1 - smoothing
        losses.append(-float((goal * np.log(_softmax(row))).sum()))
    return sum(losses) / len(losses) if losses else 0.0


def _naive_entropy(p: np.ndarray) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def _naive_mmd(s: np.ndarray, t: np.ndarray) -> float:
    pooled = [*s, *t]
    n = len(pooled)
    scale = sum(float(((x - y) ** 2).sum()) for x in pooled for y in pooled) / (n * (n - 1))

    def mean_kernel(xs: np.ndarray, ys: np.ndarray) -> float:
        values = [
            math.exp(-float(((x - y) ** 2).sum()) / (2 * m * scale))
            for x in xs
            for y in ys
            for m in (0.25, 0.5, 1, 2, 4)
        ]
        return sum(values) / len(values)

    return mean_kernel(s, s) + mean_kernel(t, t) - 2 * mean_kernel(s, t)


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0], [9.0, -9.0]], dtype=torch.float64)
    # Row 0 gives class 1 three quarters; row 1 is even; row 2 has no label.
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert cross_entropy(logits, torch.tensor([1, 0, -1])).item() == pytest.approx(expected, rel=1e-12)
    smoothed = 0.8 * math.log(4 / 3) + 0.2 * (math.log(4 / 3) + math.log(4)) / 2
    assert cross_entropy(logits[:1], torch.tensor([1]), 0.2).item() == pytest.approx(smoothed, rel=1e-12)


def test_cross_entropy_without_labels_is_zero_with_zero_gradient() -> None:
    logits = _normal(0, 4, 3).requires_grad_()
    loss = cross_entropy(logits, torch.full((4,), -1))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.abs().max().item() == 0.0


@pytest.mark.parametrize("n_classes", [3, torch.tensor(3), torch.tensor([3, 3])])
def test_smoothing_ignores_padded_classes(n_classes: Tensor | int) -> None:
    logits = _normal(1, 2, 4, 3)
    padded = torch.cat([logits, torch.full((2, 4, 2), -1e4, dtype=torch.float64)], -1)
    got = cross_entropy(padded, _labels(logits), 0.1, n_classes=n_classes)
    torch.testing.assert_close(got, cross_entropy(logits, _labels(logits), 0.1), rtol=1e-12, atol=0)


@settings(deadline=None)
@given(SEEDS, SIZES, st.integers(2, 5), st.sampled_from([0.0, 0.1, 1.0]))
def test_cross_entropy_equals_naive(seed: int, b: int, k: int, smoothing: float) -> None:
    logits = _normal(seed, b, k)
    labels = np.random.default_rng(seed).integers(-1, k, b)
    got = cross_entropy(logits, torch.from_numpy(labels), smoothing).item()
    assert got == pytest.approx(_naive_cross_entropy(logits.numpy(), labels, smoothing), rel=1e-10, abs=1e-14)


def test_coral_by_hand() -> None:
    # Variances 2 and 8, covariances 0: ((2 - 8)^2) / (4 * 2^2) = 36 / 16.
    source = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    target = torch.tensor([[8.0, 5.0], [4.0, 5.0]])
    assert coral(source, target).item() == pytest.approx(2.25)


@settings(deadline=None)
@given(SEEDS, SIZES, SIZES, st.integers(1, 4))
def test_coral_equals_naive(seed: int, b_s: int, b_t: int, d: int) -> None:
    s, t = _normal(seed, b_s, d), _normal(seed + 1, b_t, d)
    c_s, c_t = (np.atleast_2d(np.cov(x.numpy().T)) if len(x) > 1 else np.zeros((d, d)) for x in (s, t))
    expected = ((c_s - c_t) ** 2).sum() / (4 * d * d)
    assert coral(s, t).item() == pytest.approx(expected, rel=1e-10, abs=1e-14)


def test_mmd_by_hand() -> None:
    # One row each at distance 1: scale 1, so 1 + 1 - 2 exp(-1/2).
    s, t = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    assert mmd(s, t, bandwidths=(1.0,)).item() == pytest.approx(2 - 2 * math.exp(-0.5), rel=1e-12)
    assert mmd(s, s).item() == 0.0


@settings(deadline=None)
@given(SEEDS, SIZES, SIZES, st.integers(1, 4))
def test_mmd_equals_naive(seed: int, b_s: int, b_t: int, d: int) -> None:
    s, t = _normal(seed, b_s, d), _normal(seed + 1, b_t, d) + 0.5
    assert mmd(s, t).item() == pytest.approx(_naive_mmd(s.numpy(), t.numpy()), rel=1e-9, abs=1e-13)


def test_mmd_ignores_place_and_scale() -> None:
    s, t = _normal(2, 6, 3), _normal(3, 5, 3) + 1
    torch.testing.assert_close(mmd(1e3 * s + 50, 1e3 * t + 50), mmd(s, t), rtol=1e-9, atol=0)


def test_the_kernel_width_carries_no_gradient() -> None:
    # One row each: with a width that follows the rows the loss would be constant and the gradient 0.
    s = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    mmd(s, torch.ones(1, 1, dtype=torch.float64), bandwidths=(1.0,)).backward()
    assert s.grad is not None
    assert s.grad.item() == pytest.approx(-2 * math.exp(-0.5), rel=1e-10)


def test_domain_adversarial_by_hand() -> None:
    # Source at odds 1:3 for "source", target even: (log 4/3 + log 2) / 2.
    got = domain_adversarial(torch.tensor([-math.log(3.0)] * 2), torch.zeros(5))
    assert got.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


@settings(deadline=None)
@given(SEEDS, SIZES, SIZES)
def test_domain_adversarial_equals_naive(seed: int, b_s: int, b_t: int) -> None:
    s, t = _normal(seed, b_s) * 5, _normal(seed + 1, b_t) * 5
    loss_s = [math.log1p(math.exp(x)) for x in s.tolist()]
    loss_t = [math.log1p(math.exp(-x)) for x in t.tolist()]
    expected = 0.5 * (sum(loss_s) / b_s + sum(loss_t) / b_t)
    assert domain_adversarial(s, t).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_gradient_reversal_flips_and_scales(strength: float) -> None:
    x = _normal(4, 3, 2).requires_grad_()
    out = reverse_gradient(x, strength)
    assert torch.equal(out, x)
    (out * torch.arange(6.0).reshape(3, 2)).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, -strength * torch.arange(6.0).reshape(3, 2).double())


def test_gradient_reversal_has_one_strength_per_lane_and_survives_vmap() -> None:
    x = _normal(5, 2, 3, 4).requires_grad_()
    strength = torch.tensor([0.5, 2.0])
    reverse_gradient(x, strength).sum().backward()
    assert x.grad is not None
    assert x.grad.mean((1, 2)).tolist() == [-0.5, -2.0]

    def total(lane: Tensor, factor: Tensor) -> Tensor:
        return reverse_gradient(lane, factor).sum()

    grads = torch.func.vmap(torch.func.grad(total))(x.detach(), strength)
    assert torch.equal(grads, x.grad)


def test_entropies_by_hand() -> None:
    certain_and_varied = torch.eye(4, dtype=torch.float64) * 1e4
    assert conditional_entropy(certain_and_varied).item() == 0.0
    assert diversity(certain_and_varied).item() == pytest.approx(0.0, abs=1e-12)
    even = torch.zeros(3, 4, dtype=torch.float64)
    assert conditional_entropy(even).item() == pytest.approx(1.0)
    assert diversity(even).item() == pytest.approx(0.0, abs=1e-12)
    collapsed = certain_and_varied[:1].expand(5, 4)
    assert diversity(collapsed).item() == 1.0


@settings(deadline=None)
@given(SEEDS, SIZES, st.integers(2, 5))
def test_entropies_equal_naive(seed: int, b: int, k: int) -> None:
    logits = _normal(seed, b, k) * 3
    rows = [_softmax(row) for row in logits.numpy()]
    mean_entropy = sum(_naive_entropy(p) for p in rows) / b
    marginal = _naive_entropy(sum(rows) / b)
    assert conditional_entropy(logits).item() == pytest.approx(mean_entropy / math.log(k), rel=1e-10)
    assert diversity(logits).item() == pytest.approx(1 - marginal / math.log(k), rel=1e-10, abs=1e-12)


@given(SEEDS, SIZES, SIZES, SIZES)
def test_diversity_is_the_divergence_from_the_class_prior(seed, lanes, b, k):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(lanes, b, k + 1, generator=generator, dtype=torch.float64) * 3
    prior = torch.rand(lanes, k + 1, generator=generator, dtype=torch.float64) + 0.01
    prior /= prior.sum(-1, keepdim=True)
    mean = logits.softmax(-1).mean(-2)
    expected = (mean * (mean / prior).log()).sum(-1) / math.log(k + 1)
    log_prior = (prior * (k + 1)).log()[:, None]
    torch.testing.assert_close(diversity(logits, None, log_prior), expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(diversity(logits, None, torch.zeros_like(log_prior)), diversity(logits))


@pytest.mark.parametrize("loss", [conditional_entropy, diversity])
def test_padded_classes_change_nothing(loss: Callable[..., Tensor]) -> None:
    lanes = [_normal(6, 5, 2), _normal(7, 5, 4)]
    padded = torch.full((2, 5, 4), -1e4, dtype=torch.float64)
    for lane, logits in enumerate(lanes):
        padded[lane, :, : logits.shape[-1]] = logits
    got = loss(padded, torch.tensor([2, 4]))
    torch.testing.assert_close(got, torch.stack([loss(x) for x in lanes]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss(padded[0], 2), loss(lanes[0]), rtol=1e-12, atol=1e-12)


def test_pseudo_label_by_hand() -> None:
    # Row 0 is 0.95 sure, row 1 only 0.6: the mean is over both.
    logits = torch.tensor([[0.95, 0.05], [0.6, 0.4]], dtype=torch.float64).log()
    assert pseudo_label(logits).item() == pytest.approx(-math.log(0.95) / 2, rel=1e-12)
    assert pseudo_label(logits, 0.99).item() == 0.0


@settings(deadline=None)
@given(SEEDS, SIZES, st.integers(2, 5), st.floats(0, 1))
def test_pseudo_label_equals_naive(seed: int, b: int, k: int, threshold: float) -> None:
    logits = _normal(seed, b, k) * 3
    sure = [p.max() for p in (_softmax(row) for row in logits.numpy())]
    assume(min(abs(p - threshold) for p in sure) > 1e-9)
    expected = sum(-math.log(p) for p in sure if p >= threshold) / b
    assert pseudo_label(logits, threshold).item() == pytest.approx(expected, rel=1e-9, abs=1e-14)


def test_pseudo_label_pulls_towards_the_prediction_only() -> None:
    logits = torch.tensor([[2.0, 2.0, -9.0]], requires_grad=True)  # a tie goes to one class, not to both
    pseudo_label(logits, 0.4).backward()
    assert logits.grad is not None
    assert sorted(logits.grad[0].sign().tolist()) == [-1.0, 1.0, 1.0]


@settings(deadline=None)
@given(SEEDS, st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
def test_rotation_equals_numpy(seed: int, b: int, c: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, b, c, size, size), dtype=np.uint8)
    turns = rng.integers(0, 4, (2, b))
    got = rotate_batch(torch.from_numpy(images), torch.from_numpy(turns))
    assert got.dtype == torch.uint8
    for lane in range(2):
        for row in range(b):
            expected = np.rot90(images[lane, row], turns[lane, row], (-2, -1))
            assert np.array_equal(got[lane, row].numpy(), expected)


def test_rotation_by_hand_and_back() -> None:
    image = torch.tensor([[[[1, 2], [3, 4]]]])
    assert rotate_batch(image, torch.tensor([1])).flatten().tolist() == [2, 4, 1, 3]
    assert torch.equal(rotate_batch(rotate_batch(image, torch.tensor([3])), torch.tensor([1])), image)


def test_rotation_refuses_images_that_are_not_square() -> None:
    with pytest.raises(InputError, match=r"4x6.*square"):
        rotate_batch(torch.zeros(2, 1, 4, 6), torch.tensor([0, 1]))


@pytest.mark.parametrize("name", LOGIT_LOSSES)
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, b=SIZES)
def test_logit_lanes_equal_a_loop_and_rows_may_be_permuted(name: str, seed: int, b: int) -> None:
    loss = LOGIT_LOSSES[name]
    logits = _normal(seed, 2, 3, b, 4)
    together = loss(logits)
    assert together.shape == (2, 3)
    apart = torch.stack([loss(x) for x in logits.flatten(0, 1)]).reshape(2, 3)
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(loss(logits.float()).double(), together, rtol=2e-4, atol=2e-6)
    if name != "cross_entropy":  # its labels belong to the rows
        torch.testing.assert_close(loss(logits.flip(-2)), together, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", PAIR_LOSSES)
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, b_s=SIZES, b_t=SIZES)
def test_pair_lanes_equal_a_loop_and_rows_may_be_permuted(name: str, seed: int, b_s: int, b_t: int) -> None:
    loss = PAIR_LOSSES[name]
    s, t = _normal(seed, 2, 3, b_s, 4), _normal(seed + 1, 2, 3, b_t, 4)
    together = loss(s, t)
    assert together.shape == (2, 3)
    apart = [loss(x, y) for x, y in zip(s.flatten(0, 1), t.flatten(0, 1), strict=True)]
    torch.testing.assert_close(together, torch.stack(apart).reshape(2, 3), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(loss(s.flip(-2), t.roll(1, -2)), together, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_logit_gradients_are_the_derivatives(name: str) -> None:
    logits = _normal(8, 2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(LOGIT_LOSSES[name], (logits,))


@pytest.mark.parametrize("name", ["coral", "domain_adversarial"])
def test_pair_gradients_are_the_derivatives(name: str) -> None:
    pair = (_normal(9, 2, 4, 3).requires_grad_(), _normal(10, 2, 5, 3).requires_grad_())
    assert torch.autograd.gradcheck(PAIR_LOSSES[name], pair)


def test_mmd_gradient_is_the_derivative_at_a_fixed_width(monkeypatch: pytest.MonkeyPatch) -> None:
    # The width is detached on purpose, so the derivative is only the gradient while the width stands still.
    monkeypatch.setattr(
        importlib.import_module("lepton_rl.losses.mmd"),
        "mean_squared_distance",
        lambda rows: rows.new_ones(rows.shape[:-2]),
    )
    pair = (_normal(9, 2, 4, 3).requires_grad_(), _normal(10, 2, 5, 3).requires_grad_())
    assert torch.autograd.gradcheck(mmd, pair)


DEGENERATE = {
    "zeros": torch.zeros(4, 3),
    "constant": torch.full((4, 3), 3.7),
    "large constant": torch.full((4, 3), 1e6),
    "one row": torch.tensor([[1.0, -2.0, 0.5]]),
    "ties": torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]),
    "certain": torch.eye(3) * 1e4,
    "padded": torch.tensor([[1.0, 2.0, -1e4], [0.0, 2.0, -1e4]]),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_inputs_have_finite_values_and_gradients(case: str, dtype: torch.dtype) -> None:
    x = DEGENERATE[case].to(dtype)
    for logit_loss in LOGIT_LOSSES.values():
        logits = x.clone().requires_grad_()
        value = logit_loss(logits)
        (grad,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert grad.isfinite().all()
    for pair_loss in PAIR_LOSSES.values():
        for other in (x, x + 1, torch.zeros(2, 3, dtype=dtype)):
            s, t = x.clone().requires_grad_(), other.clone().requires_grad_()
            value = pair_loss(s, t)
            grads = torch.autograd.grad(value, (s, t))
            assert value.isfinite()
            assert all(grad.isfinite().all() for grad in grads)
