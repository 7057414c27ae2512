"""Wide layers train slower, on every engine alike."""

import pytest
import torch
from torch import nn

from lepton_rl.controls import Controls
from lepton_rl.fleet import FleetEngine
from lepton_rl.optim import FULL_RATE_INPUTS, rate_factor
from lepton_rl.solo import SoloEngine
from tests.tiny import PLAIN, lane_weights, task


@pytest.mark.parametrize(
    ("name", "shape", "factor"),
    [
        ("conv.weight", (64, 32, 3, 3), 1.0),  # 288 inputs
        ("conv.weight", (64, 64, 3, 3), 0.5),
        ("depthwise.weight", (512, 1, 3, 3), 1.0),
        ("head.weight", (10, 1152), 0.25),
        ("head.bias", (1152,), 1.0),
        ("norm.weight", (4096,), 1.0),
        ("position_embedding", (1, 197, 768), 1.0),
    ],
)
def test_factors_by_hand(name, shape, factor):
    assert rate_factor(name, shape) == factor


def test_training_suites_train_at_the_full_rate():
    for architecture in ("vgg", "vgg-gn", "resnet", "resnet-gn"):
        model = task(architecture=architecture, width=8).model
        assert all(rate_factor(name, p.shape) == 1 for name, p in model.named_parameters())


def test_the_first_step_of_a_wide_layer_is_smaller_in_proportion_to_its_inputs():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.lift = nn.Linear(36, 4 * FULL_RATE_INPUTS)
            self.head = nn.Linear(4 * FULL_RATE_INPUTS, 3)

        def forward(self, x):
            return self.head(torch.relu(self.lift(x.flatten(1))))

    torch.manual_seed(0)
    seen = task(model=Wide(), budget=5)
    engine = SoloEngine(seen)
    engine.load_lanes({0: (seen, 1)})
    before = lane_weights(engine)
    engine.train(Controls.start([PLAIN], torch.device("cpu")), [1])
    after = lane_weights(engine)
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    # The first step of Adam moves every weight by the learning rate.
    assert moved["lift.weight"] == pytest.approx(moved["head.bias"], rel=0.05)
    assert moved["head.weight"] == pytest.approx(moved["head.bias"] / 4, rel=0.05)


def test_a_wide_fleet_equals_wide_single_runs():
    seen = [task(seed=seed, width=40, budget=5) for seed in (0, 1)]
    assert any(rate_factor(name, p.shape) < 1 for name, p in seen[0].model.named_parameters())
    fleet = FleetEngine(seen[0], 2, dtype=torch.float64)
    fleet.load_lanes({i: (one, i) for i, one in enumerate(seen)})
    fleet.train(Controls.start([PLAIN] * 2, torch.device("cpu")), [3, 3])
    for i, one in enumerate(seen):
        solo = SoloEngine(one, dtype=torch.float64)
        solo.load_lanes({0: (one, i)})
        solo.train(Controls.start([PLAIN], torch.device("cpu")), [3])
        mine, theirs = lane_weights(fleet, i), lane_weights(solo)
        for name, value in theirs.items():
            assert torch.allclose(mine[name], value, rtol=1e-7, atol=1e-9), name
