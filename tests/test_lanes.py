"""The parts of a fleet: stacked layers, the lane optimizer, the image pool."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tiny import domain
from torch import nn
from torch.nn import functional as F

from lepton_rl.errors import InputError
from lepton_rl.lanes import LaneBatchNorm2d, LaneConv2d, LaneLinear, LaneMode, stack_lanes
from lepton_rl.models import ARCHITECTURES, build_model
from lepton_rl.normalisation import Part
from lepton_rl.optim import LaneAdam
from lepton_rl.pool import ImagePool
from lepton_rl.stages import N_GROUPS

LANES, CHANNELS, BATCH = 3, 4, 8


# ----- the optimizer


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=12))
def test_lane_adam_equals_adam_for_every_lane_whichever_lanes_train(seed, plan):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    rates = torch.tensor([1e-3, 1e-2, 0.3], dtype=torch.float64)
    block = start.clone().requires_grad_(True)
    mine = LaneAdam(block)
    single = [start[lane].clone().requires_grad_(True) for lane in range(3)]
    theirs = [torch.optim.Adam([p], lr=float(rate)) for p, rate in zip(single, rates, strict=True)]
    for trained in plan:
        gradient = torch.randn(3, 5, generator=generator, dtype=torch.float64)
        mine.step(gradient, rates, None if all(trained) else torch.tensor(trained))
        for lane in range(3):
            if trained[lane]:
                single[lane].grad = gradient[lane].clone()
                theirs[lane].step()
    assert torch.allclose(block, torch.stack(single), rtol=1e-10, atol=1e-12)


def test_lane_adam_forgets_a_marked_lane_even_when_its_moments_are_not_finite():
    block = torch.zeros(2, 3)
    adam = LaneAdam(block)
    adam.step(torch.tensor([[1.0, 2.0, 3.0], [float("nan"), float("inf"), 1.0]]), torch.ones(2), None)
    adam.forget(torch.tensor([False, True]))
    assert adam.count.tolist() == [1.0, 0.0]
    assert float(adam.first[0].abs().min()) > 0
    assert adam.first[1].tolist() == adam.second[1].tolist() == [0.0, 0.0, 0.0]


# ----- layers


def normalisation(seed=0):
    """A lane normalisation with different weights and statistics everywhere, and its parts lane by lane."""
    layer = LaneBatchNorm2d(nn.BatchNorm2d(CHANNELS), LANES).double()
    layer.group, layer.mode = 2, LaneMode()
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*layer.parameters(), *layer.buffers()):
        tensor.data = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
    x = torch.randn(BATCH, LANES * CHANNELS, 3, 3, generator=generator, dtype=torch.float64) * 2 + 1
    return layer, x


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("live", [[False] * 3, [True] * 3, [True, False, True]])
@pytest.mark.parametrize("update", [None, [True] * 3, [False, True, True]])
@pytest.mark.parametrize("host_knows", [False, True])
def test_batch_normalisation_equals_the_usual_one_lane_by_lane(side, live, update, host_knows):
    layer, x = normalisation()
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer.mode = LaneMode(
        parts=(Part(side=side, size=BATCH, update=None if update is None else torch.tensor(update)),),
        live=torch.tensor(live)[:, None].expand(-1, N_GROUPS),
        everyone=[host_knows and update == [True] * 3],
        all_live=[host_knows and all(live)] * N_GROUPS,
        any_live=[not host_knows or any(live)] * N_GROUPS,
    )
    out = layer(x).unflatten(1, (LANES, CHANNELS))
    other = "target" if side == "source" else "source"
    for lane in range(LANES):
        mean, var = (before[f"{side}_{what}"][lane].clone() for what in ("mean", "var"))
        moves = live[lane] and update is not None and update[lane]
        expected = F.batch_norm(
            x.unflatten(1, (LANES, CHANNELS))[:, lane],
            mean if moves or not live[lane] else None,
            var if moves or not live[lane] else None,
            layer.weight[lane],
            layer.bias[lane],
            live[lane],
            0.1,
            layer.eps,
        )
        assert torch.allclose(out[:, lane], expected, rtol=1e-10, atol=1e-12)
        assert torch.allclose(layer.get_buffer(f"{side}_mean")[lane], mean, rtol=1e-10)
        assert torch.allclose(layer.get_buffer(f"{side}_var")[lane], var, rtol=1e-10)
    for what in ("mean", "var"):
        assert torch.equal(layer.get_buffer(f"{other}_{what}"), before[f"{other}_{what}"])


def test_stored_statistics_without_a_mode_are_used_as_they_are():
    layer, x = normalisation()
    layer.mode.parts = (Part(side="source", size=BATCH),)
    expected = F.batch_norm(
        x,
        layer.get_buffer("source_mean").flatten(),
        layer.get_buffer("source_var").flatten(),
        layer.weight.flatten(),
        layer.bias.flatten(),
    )
    assert torch.allclose(layer(x), expected)


@pytest.mark.parametrize("implementation", ["grouped", "matmul"])
@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "bias"), [(3, 1, 1, True), (3, 2, 1, False), (1, 2, 1, True), (3, 1, 2, False)]
)
def test_lane_convolution_and_its_gradients_equal_one_convolution_per_lane(
    implementation, kernel, stride, groups, bias
):
    torch.manual_seed(0)
    convs = [nn.Conv2d(4, 6, kernel, stride, kernel // 2, groups=groups, bias=bias).double() for _ in range(LANES)]
    layer = LaneConv2d(convs[0], LANES, implementation).double()
    layer.weight.data = torch.stack([conv.weight.data for conv in convs])
    if layer.bias is not None:
        layer.bias.data = torch.stack([conv.bias.data for conv in convs])
    x = torch.randn(BATCH, LANES * 4, 5, 5, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    expected = torch.cat([conv(part) for conv, part in zip(convs, x.split(4, 1), strict=True)], dim=1)
    assert torch.allclose(out, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(out)
    mine = torch.autograd.grad((out * weight).sum(), [x, layer.weight])
    theirs = torch.autograd.grad((expected * weight).sum(), [x, *(conv.weight for conv in convs)])
    assert torch.allclose(mine[0], theirs[0], rtol=1e-10, atol=1e-12)
    assert torch.allclose(mine[1], torch.stack(theirs[1:]), rtol=1e-10, atol=1e-12)


def test_lane_linear_equals_one_layer_per_lane():
    torch.manual_seed(0)
    layer = LaneLinear(nn.Linear(5, 2), LANES)
    layer.weight.data.normal_()
    layer.bias.data.normal_()
    x = torch.randn(BATCH, LANES * 5)
    expected = [part @ layer.weight[i].T + layer.bias[i] for i, part in enumerate(x.split(5, 1))]
    assert torch.allclose(layer(x), torch.cat(expected, 1), atol=1e-6)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_stacked_network_gives_what_the_network_gives(architecture):
    model = build_model(architecture, channels=3, n_classes=5, width=4, seed=1).eval().double()
    stacked = stack_lanes(model, 2)
    for name, layer in stacked.named_modules():
        if isinstance(layer, LaneBatchNorm2d):
            layer.group, layer.mode = 0, LaneMode()
            assert name
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    out = stacked(torch.cat([x, x + 1], dim=1))
    assert torch.allclose(out, torch.cat([model(x), model(x + 1)], dim=1), atol=1e-10)


@pytest.mark.parametrize(
    "layer",
    [nn.LSTM(2, 2), nn.Conv2d(1, 1, 3, padding="same"), nn.Conv2d(1, 1, 3, padding_mode="reflect", padding=1)],
)
def test_layers_that_cannot_be_stacked_are_refused_in_one_line(layer):
    with pytest.raises(InputError, match="use SoloEngine") as caught:
        stack_lanes(nn.Sequential(layer), 2)
    assert "\n" not in str(caught.value)


# ----- the image pool


class PoolMachine(RuleBasedStateMachine):
    """Hold and release domains in any order; whatever is held is always there, at rows of its own."""

    def __init__(self):
        super().__init__()
        self.pool = ImagePool((1, 2, 2), torch.device("cpu"))
        self.held = []
        self.number = 0

    @rule(n=st.integers(1, 9))
    def hold_new(self, n):
        self.number += 1
        fresh = domain(self.number, n, 2, side=2)
        self.held.append((fresh, self.pool.hold(fresh)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def hold_again(self, data):
        kept, segment = data.draw(st.sampled_from(self.held))
        again = self.pool.hold(kept)
        assert again == segment
        self.held.append((kept, again))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        index = data.draw(st.integers(0, len(self.held) - 1))
        kept, _ = self.held.pop(index)
        self.pool.release(kept)

    @invariant()
    def what_is_held_is_there_and_apart(self):
        owner = {}
        for kept, segment in self.held:
            rows = range(segment.offset, segment.offset + segment.length)
            assert np.array_equal(self.pool.images[segment.offset : rows.stop].numpy(), kept.images)
            assert np.array_equal(self.pool.labels[segment.offset : rows.stop].numpy(), kept.labels)
            assert all(owner.setdefault(row, id(kept)) == id(kept) for row in rows)

    @invariant()
    def memory_stays_within_twice_the_largest_need(self):
        needed = sum(len(d) for d in {id(d): d for d, _ in self.held}.values())
        self.peak = max(getattr(self, "peak", 0), needed)
        assert len(self.pool.images) <= 3 * self.peak + 9


PoolMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestPool = PoolMachine.TestCase


def test_a_released_place_is_used_again():
    pool = ImagePool((1, 2, 2), torch.device("cpu"))
    first, second = domain(1, 6, 2, side=2), domain(2, 6, 2, side=2)
    offset = pool.hold(first).offset
    pool.release(first)
    assert pool.hold(second).offset == offset
    assert len(pool.images) == 6
