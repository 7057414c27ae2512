"""Every shift: type, shape, determinism, identity at severity 0, and numbers by hand."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.shifts import (
    HELD_OUT_KINDS,
    KERNELS,
    SHIFT_KINDS,
    TRAIN_KINDS,
    Shift,
    compose,
    geometric,
    texture,
)
from lepton_rl.shifts.kernel import Streams, blur_matrix, interpolation_matrix, plane

WITHOUT_DRAWS = ("blur", "invert", "pixelate", "posterize", "stroke_thick", "stroke_thin")


def streams(seed: int = 0) -> Streams:
    return Streams(domain=np.random.default_rng(seed), image=np.random.default_rng(seed + 1))


def random_domain(n: int, c: int, h: int, w: int, seed: int = 0) -> Domain:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, c, h, w), dtype=np.uint8)
    return Domain.from_arrays(images, rng.integers(-1, 3, n), name="r", classes=("a", "b", "c"))


def flat(value: int, n: int = 2, c: int = 1, size: int = 8) -> Domain:
    return Domain.from_arrays(np.full((n, c, size, size), value, np.uint8))


def change(kind: str, severity: float, domain: Domain, seed: int = 0) -> float:
    shifted = Shift(kind=kind, severity=severity, seed=seed)(domain)
    return float(np.abs(shifted.images.astype(float) - domain.images).mean())


@pytest.fixture(scope="module")
def digits() -> Domain:
    return Domain.digits().take(range(300))


def test_registry() -> None:
    assert len(SHIFT_KINDS) >= 16
    assert len(HELD_OUT_KINDS) >= 4
    assert set(TRAIN_KINDS) | set(HELD_OUT_KINDS) == set(SHIFT_KINDS)
    assert not set(TRAIN_KINDS) & set(HELD_OUT_KINDS)
    assert list(SHIFT_KINDS) == sorted(SHIFT_KINDS)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(SHIFT_KINDS),
    severity=st.floats(0, 1),
    seed=st.integers(0, 2**40),
    shape=st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(8, 40), st.integers(8, 40)),
)
def test_any_shift_keeps_the_contract(kind: str, severity: float, seed: int, shape: tuple[int, int, int, int]) -> None:
    domain = random_domain(*shape)
    before = domain.images.copy()
    shift = Shift(kind=kind, severity=severity, seed=seed)
    first, second = shift(domain), shift(domain)
    assert first.images.dtype == np.uint8
    assert first.images.shape == shape
    assert (first.images == second.images).all()
    assert (first.labels == domain.labels).all()
    assert first.classes == domain.classes
    assert (domain.images == before).all()
    if severity == 0:
        assert (first.images == before).all()


@pytest.mark.parametrize("kind", SHIFT_KINDS)
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (2, 3, 224, 224), (2, 1, 3, 2), (1, 3, 1, 1)])
def test_extreme_sizes(kind: str, shape: tuple[int, int, int, int]) -> None:
    assert Shift(kind=kind, severity=1.0)(random_domain(*shape)).images.shape == shape


@pytest.mark.parametrize("kind", SHIFT_KINDS)
def test_severity_grows_and_content_survives(kind: str, digits: Domain) -> None:
    seeds = range(4)
    weak, middle, strong = (np.mean([change(kind, s, digits, seed) for seed in seeds]) for s in (0.1, 0.5, 1.0))
    assert 0 < weak < middle < strong


def nearest_neighbour_accuracy(train: Domain, test: Domain) -> float:
    a, b = (d.images.reshape(len(d), -1).astype(float) / 255 for d in (train, test))
    distance = (a**2).sum(axis=1) - 2 * b @ a.T
    return float((train.labels[distance.argmin(axis=1)] == test.labels).mean())


@pytest.mark.parametrize("kind", SHIFT_KINDS)
def test_severe_shifts_keep_the_class(kind: str) -> None:
    """Whoever knows the shifted domain can still tell the digits: nearest neighbour, source 0.96."""
    digits = Domain.digits()
    for seed in range(2):
        shifted = Shift(kind=kind, severity=1.0, seed=seed)(digits)
        train, test = shifted.take(range(1000)), shifted.take(range(1000, 1797))
        assert nearest_neighbour_accuracy(train, test) > 0.6


@pytest.mark.parametrize("kind", [kind for kind in SHIFT_KINDS if kind not in WITHOUT_DRAWS])
def test_seeds_differ(kind: str, digits: Domain) -> None:
    images = [Shift(kind=kind, severity=1.0, seed=seed)(digits).images.tobytes() for seed in range(6)]
    assert len(set(images)) > 1


@pytest.mark.parametrize("kind", WITHOUT_DRAWS)
def test_kinds_without_draws_ignore_the_seed(kind: str, digits: Domain) -> None:
    results = [Shift(kind=kind, severity=0.7, seed=seed)(digits).images for seed in (0, 1)]
    assert (results[0] == results[1]).all()


def test_results_do_not_depend_on_what_ran_before(digits: Domain) -> None:
    np.random.seed(0)
    alone = {kind: Shift(kind=kind, severity=0.6)(digits).images for kind in SHIFT_KINDS}
    np.random.seed(1)
    for kind in reversed(SHIFT_KINDS):
        assert (Shift(kind=kind, severity=0.6)(digits).images == alone[kind]).all()


def test_what_the_domain_shares_is_the_same_for_every_part_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = flat(100, n=7)
    whole = Shift(kind="stripes", severity=1.0, seed=3)(domain).images
    monkeypatch.setattr("lepton_rl.shifts._PART_VALUES", 64)  # one image a part
    assert (Shift(kind="stripes", severity=1.0, seed=3)(domain).images == whole).all()
    split = Shift(kind="occlusion", severity=1.0, seed=3)(domain.take([5, 6])).images
    assert set(np.unique(split)) == set(np.unique(Shift(kind="occlusion", severity=1.0, seed=3)(domain).images))


def test_name_and_compose() -> None:
    domain = flat(10)
    result = compose(domain, [Shift(kind="blur", severity=0.5), Shift(kind="invert", severity=1)])
    assert result.name == "arrays+blur0.5+invert1"
    assert (result.images == 245).all()
    assert compose(domain, []) is domain
    same = Shift(kind="rotate", severity=0.0)(domain)
    assert same.name == "arrays+rotate0"
    assert same.images is domain.images
    assert len(Shift(kind="blur", severity=1.0)(domain.take([]))) == 0


def test_photometric_numbers() -> None:
    def value(kind: str, severity: float, start: int) -> int:
        return int(Shift(kind=kind, severity=severity)(flat(start)).images[0, 0, 0, 0])

    assert value("invert", 1.0, 30) == 225
    assert value("invert", 0.25, 255) == 217  # 127.5 + 0.7 * 127.5 = 216.75
    assert value("invert", 0.5, 255) == 76  # 127.5 - 0.4 * 127.5 = 76.5, to even
    assert value("posterize", 1.0, 127) == 0
    assert value("posterize", 1.0, 128) == 255
    assert value("posterize", 0.5, 30) == 32  # round(8.5) = 8 steps of 31.875
    assert value("gamma", 1.0, 255) == 255
    assert value("contrast", 1.0, 90) == 90  # a flat image is its own mean
    pair = Domain.from_arrays(np.array([[[0, 200]]], np.uint8))
    low, high = Shift(kind="contrast", severity=0.5)(pair).images.ravel().tolist()
    assert low + high == 200
    assert abs((high - low) - 120) <= 10  # 0.6 of 200, jitter up to 10 % of the 0.4


@pytest.mark.parametrize("kind", ["blur", "motion_blur", "pixelate", "stroke_thin", "stroke_thick", "contrast"])
@pytest.mark.parametrize("kind2", ["rotate", "scale", "translate", "shear", "perspective", "elastic"])
def test_flat_images_stay_flat(kind: str, kind2: str) -> None:
    shifts = [Shift(kind=kind, severity=1.0), Shift(kind=kind2, severity=1.0)]
    assert (compose(flat(77, c=3), shifts).images == 77).all()


def test_warp_by_hand() -> None:
    image = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    turn = np.array([[[-1.0, 0.0], [0.0, -1.0]]])
    assert geometric.warp(image, turn, np.zeros((1, 2))) == pytest.approx(image[..., ::-1, ::-1], abs=1e-4)
    right = geometric.warp(image, np.eye(2)[None], np.array([[0.25, 0.0]]))  # one of four pixels
    assert right[0, 0, 0] == pytest.approx([1, 2, 3, 3], abs=1e-4)
    square = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    quarter = geometric.warp(square, np.array([[[0.0, -1.0], [1.0, 0.0]]]), np.zeros((1, 2)))
    assert quarter[0, 0] == pytest.approx(np.rot90(square[0, 0]), abs=1e-4)


def test_rotation_keeps_the_shape_of_wide_images() -> None:
    image = np.zeros((1, 1, 9, 21), np.float32)
    image[0, 0, 4, 8:13] = 255  # a bar of 5 pixels
    turned = geometric.warp(image, np.array([[[0.0, -1.0], [1.0, 0.0]]]), np.zeros((1, 2)))
    assert turned[0, 0, 2:7, 10] == pytest.approx(np.full(5, 255), abs=0.1)  # still 5 long
    assert turned.sum() == pytest.approx(5 * 255, rel=1e-3)


def test_matrices_by_hand() -> None:
    assert interpolation_matrix(4, 2) == pytest.approx(np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]), abs=1e-6)
    blurred = blur_matrix(9, 1.0)
    assert blurred.sum(axis=1) == pytest.approx(np.ones(9), abs=1e-6)
    assert blurred[4, 5] / blurred[4, 4] == pytest.approx(np.exp(-0.5), rel=1e-5)
    image = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    block = texture._block_matrix(4, 2.0)
    assert (block @ image[0, 0] @ block.T)[:2].ravel() == pytest.approx([2.5, 2.5, 4.5, 4.5] * 2)
    assert plane(image, 0.0)[0] == pytest.approx([-1, -1 / 3, 1 / 3, 1], abs=1e-6)


def test_strokes_by_hand() -> None:
    dot = np.zeros((1, 1, 5, 5), np.float32)
    dot[0, 0, 2, 2] = 100
    cross = texture._grow(dot, 1.0)[0, 0]
    assert cross.sum() == 500
    assert cross[1, 1] == 0
    assert texture._grow(dot, 0.5)[0, 0, 2].tolist() == [0, 50, 100, 50, 0]
    assert texture._grow(dot, 2.0)[0, 0, 0].tolist() == [0, 0, 100, 0, 0]
    assert texture._grow(dot, 0.0).tolist() == dot.tolist()


def test_noise_statistics() -> None:
    domain = flat(128, n=200, size=16)
    noise = Shift(kind="gaussian_noise", severity=0.5)(domain).images.astype(float) - 128
    assert abs(noise.mean()) < 1
    assert noise.std() == pytest.approx(35, rel=0.02)
    specks = Shift(kind="salt_and_pepper", severity=1.0)(domain).images
    assert (specks == 0).mean() == pytest.approx(0.08, abs=0.01)
    assert (specks == 255).mean() == pytest.approx(0.08, abs=0.01)
    hidden = Shift(kind="occlusion", severity=1.0)(domain).images != 128
    assert hidden.reshape(200, -1).sum(axis=1).tolist() == [36] * 200  # 0.4 * 16 = 6 pixels a side


def test_background_stays_behind() -> None:
    image = np.zeros((1, 1, 16, 16), np.uint8)
    image[0, 0, 6:10, 6:10] = 255
    for sign in (1, -1):  # dark rim, light rim
        domain = Domain.from_arrays(image if sign > 0 else 255 - image)
        out = Shift(kind="background", severity=1.0)(domain).images
        assert (out[0, 0, 6:10, 6:10] == domain.images[0, 0, 6:10, 6:10]).all()
        rim = out[0, 0, :6].astype(int)
        assert rim.std() > 5
        assert (rim.mean() < 200) if sign > 0 else (rim.mean() > 55)


def test_tint_colours_the_channels_apart() -> None:
    out = Shift(kind="tint", severity=1.0)(flat(128, c=3)).images[0, :, 0, 0]
    assert len(set(out.tolist())) > 1


def test_kernels_leave_their_input_alone() -> None:
    for kind, kernel in KERNELS.items():
        images: NDArray[np.float32] = random_domain(3, 3, 9, 11).images.astype(np.float32)
        before = images.copy()
        out = kernel(images, 0.8, streams())
        assert out.dtype == np.float32, kind
        assert (images == before).all(), kind


def test_fast_enough() -> None:
    domain = random_domain(2000, 1, 28, 28)
    start = time.process_time()
    for kind in SHIFT_KINDS:
        Shift(kind=kind, severity=1.0)(domain)
    assert time.process_time() - start < 1.0 * len(SHIFT_KINDS)


@pytest.mark.parametrize(("kind", "near"), [("blurr", "'blur'"), ("gausian_noise", "'gaussian_noise'"), ("", "'")])
def test_unknown_kind_names_the_nearest(kind: str, near: str) -> None:
    with pytest.raises(InputError, match=f"did you mean {near}"):
        Shift(kind=kind, severity=0.5)


@pytest.mark.parametrize("severity", [-0.1, 1.1, float("nan"), float("inf")])
def test_severity_out_of_range(severity: float) -> None:
    with pytest.raises(InputError, match=r"severity is .*0\.\.1"):
        Shift(kind="blur", severity=severity)


def test_wrong_types() -> None:
    bad: list[dict[str, Any]] = [{"severity": "1"}, {"severity": True}, {"severity": 0.5, "seed": 1.0}]
    for options in bad:
        with pytest.raises(TypeError, match="expected"):
            Shift(kind="blur", **options)
    with pytest.raises(InputError, match="seed is -1"):
        Shift(kind="blur", severity=0.5, seed=-1)
