"""Every validator against numbers by hand, a naive version, one lane at a time, and what it may see."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lepton_rl import validators
from lepton_rl.validators import (
    VALIDATORS,
    agreement,
    information_maximisation,
    mean_confidence,
    negative_entropy,
    negative_probe_loss,
    nuclear_norm,
    prediction_density,
    prior_match,
    probe_accuracy,
    soft_neighbourhood_density,
    source_accuracy,
)

SEEDS = st.integers(0, 2**32 - 1)
CERTAIN = torch.eye(4, dtype=torch.float64) * 1e4
EVEN = torch.zeros(4, 4, dtype=torch.float64)
VISIBLE = {
    "target_logits",
    "target_features",
    "reference_logits",
    "source_logits",
    "source_labels",
    "source_prior",
    "probe_logits",
    "probe_labels",
}
OPTIONS = {"n_classes", "temperature", "log_prior"}  # the class prior is told by the user


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * 2)


def _softmax(logits: Tensor) -> np.ndarray:
    e = np.exp(logits.numpy() - logits.numpy().max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _entropy(p: np.ndarray) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def _public() -> dict[str, Callable[..., Tensor]]:
    members = inspect.getmembers(validators, inspect.isfunction)
    return {n: f for n, f in members if f.__module__ == validators.__name__ and not n.startswith("_")}


def test_signatures_declare_what_a_score_may_see() -> None:
    assert len(_public()) == 11
    for function in _public().values():
        parameters = inspect.signature(function).parameters
        assert set(parameters) <= VISIBLE | OPTIONS
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())


def test_the_table_holds_scores_that_see_target_logits_only() -> None:
    for name, function in VALIDATORS.items():
        assert function is _public()[name]
        told = {"log_prior"} if function is information_maximisation else set()
        assert set(inspect.signature(function).parameters) == {"target_logits", "n_classes"} | told
        assert function(target_logits=_normal(0, 3, 5, 4)).shape == (3,)


@pytest.mark.parametrize(
    ("function", "certain", "even"),
    [
        (negative_entropy, 0.0, -1.0),
        (information_maximisation, 1.0, 0.0),
        (
            nuclear_norm,
            1.0,
            0.25,
        ),  # a 4x4 matrix of quarters has one singular value, 1; the bound is sqrt(16)
        (prediction_density, 1.0, 1.0),
        (mean_confidence, 1.0, 0.25),
    ],
)
def test_certain_and_even_predictions_by_hand(function: Callable[..., Tensor], certain: float, even: float) -> None:
    assert function(target_logits=CERTAIN).item() == pytest.approx(certain, abs=1e-12)
    assert function(target_logits=EVEN).item() == pytest.approx(even, abs=1e-12)


def test_collapse_is_certain_but_neither_varied_nor_of_full_rank() -> None:
    collapsed = CERTAIN[:1].expand(4, 4)
    assert negative_entropy(target_logits=collapsed).item() == 0.0
    assert information_maximisation(target_logits=collapsed).item() == 0.0
    expected = torch.full_like(collapsed[0], 0.01).scatter(0, collapsed[0].argmax(), 1.0)
    log_prior = (expected / expected.sum() * len(expected)).log()
    assert information_maximisation(target_logits=collapsed, log_prior=log_prior).item() > 0.9
    assert nuclear_norm(target_logits=collapsed).item() == pytest.approx(0.5)  # sqrt(4) / sqrt(16)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(2, 5))
def test_logit_scores_equal_naive(seed: int, b: int, k: int) -> None:
    logits = _normal(seed, b, k)
    p = _softmax(logits)
    mean_entropy = sum(_entropy(row) for row in p) / b / math.log(k)
    marginal = _entropy(p.mean(0)) / math.log(k)
    nuclear = np.linalg.norm(p, "nuc") / math.sqrt(min(b, k) * b)
    assert negative_entropy(target_logits=logits).item() == pytest.approx(-mean_entropy, rel=1e-10)
    gain = information_maximisation(target_logits=logits).item()
    assert gain == pytest.approx(marginal - mean_entropy, rel=1e-9, abs=1e-12)
    assert -1e-12 <= gain <= 1
    assert nuclear_norm(target_logits=logits).item() == pytest.approx(nuclear, rel=1e-10)
    assert nuclear <= 1 + 1e-12
    assert mean_confidence(target_logits=logits).item() == pytest.approx(p.max(-1).mean(), rel=1e-12)


def _naive_density(rows: np.ndarray, temperature: float) -> float:
    unit = [row / np.linalg.norm(row) for row in rows]
    total = 0.0
    for i, x in enumerate(unit):
        weights = np.array([math.exp(float(x @ y) / temperature) for j, y in enumerate(unit) if j != i])
        total += _entropy(weights / weights.sum())
    return total / len(unit) / math.log(len(unit) - 1)


@settings(deadline=None)
@given(SEEDS, st.integers(3, 7), st.integers(1, 5), st.sampled_from([0.05, 1.0]))
def test_density_equals_naive(seed: int, b: int, d: int, temperature: float) -> None:
    rows = _normal(seed, b, d)
    got = soft_neighbourhood_density(target_features=rows, temperature=temperature).item()
    assert got == pytest.approx(_naive_density(rows.numpy(), temperature), rel=1e-9, abs=1e-12)
    assert -1e-12 <= got <= 1 + 1e-12
    probabilities = torch.from_numpy(_softmax(rows))
    expected = soft_neighbourhood_density(target_features=probabilities).item()
    assert prediction_density(target_logits=rows).item() == pytest.approx(expected, rel=1e-10)


def test_density_by_hand() -> None:
    # Two pairs of equal rows at right angles: each row looks at its twin alone.
    rows = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    assert soft_neighbourhood_density(target_features=rows).item() < 1e-6
    assert soft_neighbourhood_density(target_features=rows, temperature=1e9).item() == pytest.approx(1.0)
    assert soft_neighbourhood_density(target_features=rows[:2]).item() == 0.0
    assert soft_neighbourhood_density(target_features=torch.zeros(4, 2)).item() == pytest.approx(1.0)


def test_prior_match_by_hand() -> None:
    even = torch.full((4,), 0.25, dtype=torch.float64)
    assert prior_match(target_logits=CERTAIN, source_prior=even).item() == pytest.approx(0.0, abs=1e-12)
    other = torch.tensor([0.0, 0.0, 3.0, 5.0])  # counts are scaled to shares
    assert prior_match(target_logits=CERTAIN[:2], source_prior=other).item() == pytest.approx(-1.0)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5), st.integers(2, 5))
def test_prior_match_equals_naive(seed: int, b: int, k: int) -> None:
    logits = _normal(seed, b, k)
    prior = np.random.default_rng(seed).dirichlet(np.ones(k))
    p = _softmax(logits).mean(0)
    middle = (p + prior) / 2
    divergence = sum(0.5 * (x * np.log2(x / middle)).sum() for x in (p, prior))
    got = prior_match(target_logits=logits, source_prior=torch.from_numpy(prior)).item()
    assert got == pytest.approx(-divergence, rel=1e-8, abs=1e-12)


def test_accuracies_ignore_rows_without_label() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [5.0, 0.0]])
    labels = torch.tensor([0, 0, -1, 0])
    assert source_accuracy(source_logits=logits, source_labels=labels).item() == pytest.approx(2 / 3)
    assert probe_accuracy(probe_logits=logits, probe_labels=labels).item() == pytest.approx(2 / 3)
    none = torch.full((4,), -1)
    assert probe_accuracy(probe_logits=logits, probe_labels=none).item() == 0.0
    assert negative_probe_loss(probe_logits=logits, probe_labels=none).item() == 0.0


def test_probe_loss_by_hand() -> None:
    logits = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64).log()
    got = negative_probe_loss(probe_logits=logits, probe_labels=torch.tensor([1, -1])).item()
    assert got == pytest.approx(math.log(0.75), rel=1e-12)


def test_agreement_by_hand() -> None:
    assert agreement(target_logits=CERTAIN, reference_logits=CERTAIN * 0.1).item() == 1.0
    assert agreement(target_logits=CERTAIN, reference_logits=CERTAIN[[0, 1, 3, 2]]).item() == 0.5


@pytest.mark.parametrize("name", sorted(VALIDATORS))
def test_padded_classes_change_nothing(name: str) -> None:
    lanes = [_normal(1, 5, 2), _normal(2, 5, 4)]
    padded = torch.full((2, 5, 4), -1e4, dtype=torch.float64)
    for lane, logits in enumerate(lanes):
        padded[lane, :, : logits.shape[-1]] = logits
    got = VALIDATORS[name](target_logits=padded, n_classes=torch.tensor([2, 4]))
    apart = torch.stack([VALIDATORS[name](target_logits=x) for x in lanes])
    torch.testing.assert_close(got, apart, rtol=1e-10, atol=1e-12)
    single = VALIDATORS[name](target_logits=padded[0], n_classes=2)
    torch.testing.assert_close(single, apart[0], rtol=1e-10, atol=1e-12)


def _inputs(seed: int, b: int) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    logits = {name: _normal(seed + i, 2, 3, b, 4) for i, name in enumerate(sorted(VISIBLE))}
    labels = {n: torch.from_numpy(rng.integers(-1, 4, (2, 3, b))) for n in ("source_labels", "probe_labels")}
    return logits | labels | {"source_prior": torch.from_numpy(rng.dirichlet(np.ones(4), (2, 3)))}


@pytest.mark.parametrize("name", sorted(_public()))
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, b=st.integers(1, 6))
def test_lanes_equal_a_loop_and_rows_may_be_permuted(name: str, seed: int, b: int) -> None:
    function = _public()[name]
    every = _inputs(seed, b)
    given_: dict[str, Any] = {n: every[n] for n in inspect.signature(function).parameters if n in VISIBLE}
    together = function(**given_)
    assert together.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = function(**{n: x[i, j] for n, x in given_.items()})
            torch.testing.assert_close(alone, together[i, j], rtol=1e-10, atol=1e-12)
    turned = {n: x if n == "source_prior" else x.roll(1, 2) for n, x in given_.items()}
    torch.testing.assert_close(function(**turned), together, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", sorted(_public()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odd_batches_are_finite_and_carry_no_gradient(name: str, dtype: torch.dtype) -> None:
    function = _public()[name]
    for base in (torch.zeros(1, 3), torch.zeros(4, 3), torch.eye(3) * 1e4, torch.full((2, 3), 1e4)):
        x = base.to(dtype).requires_grad_()
        values = {n: x for n in VISIBLE if n.endswith(("logits", "features"))}
        labels = {n: torch.zeros(len(x), dtype=torch.int64) for n in ("source_labels", "probe_labels")}
        every = values | labels | {"source_prior": torch.zeros(3)}
        got = function(**{n: every[n] for n in inspect.signature(function).parameters if n in VISIBLE})
        assert got.isfinite()
        assert not got.requires_grad
        assert got.dtype == dtype
