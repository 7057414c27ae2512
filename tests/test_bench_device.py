"""What the engine benchmark says of memory, operations and time beside training."""

import sys
from pathlib import Path

import pytest
import torch
from tiny import PLAIN, task

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from bench_device import TrainingClock, _Traffic, distance, memory_of_a_lane, where_the_time_goes

from lepton_rl.controls import Controls
from lepton_rl.engine import Engine
from lepton_rl.fleet import FleetEngine


def fleet(lanes):
    engine = FleetEngine(task(), lanes)
    for lane in range(lanes):
        engine.load(lane, task(lane), lane)
    controls = Controls.start([PLAIN] * lanes, engine.device)
    return engine, lambda: engine.train(controls, [1] * lanes)


def test_a_lane_keeps_its_weights_four_times_and_the_same_activations_beside_any_number_of_others():
    sizes = [memory_of_a_lane(*fleet(lanes)) for lanes in (2, 4)]
    parameters = sum(p.numel() for p in task().model.parameters())
    # Weights, their start and two moments, in four bytes each.
    assert sizes[0]["weights_start_and_moments"] == sizes[1]["weights_start_and_moments"] == 4 * 4 * parameters
    assert sizes[1]["activations"] == pytest.approx(sizes[0]["activations"], rel=0.05)
    # The first layer's output alone: 80 images of 4 channels and 6x6 pixels.
    assert sizes[0]["activations"] > 80 * 4 * 36 * 4


def test_traffic_counts_what_is_read_and_written_and_no_views():
    x = torch.ones(10)
    with _Traffic() as traffic:
        y = x.view(2, 5) + 1
    assert y.shape == (2, 5)
    assert traffic.bytes == 40 + 40  # read and written


def test_the_clock_of_training_counts_training_and_leaves_engines_as_they_were():
    plain, (_, step) = Engine.train, fleet(1)
    with TrainingClock("cpu") as clock:
        assert clock.seconds == 0.0
        step()
        assert clock.seconds > 0.0
    assert Engine.train is plain


def test_distance_and_profile_are_shares():
    _, step = fleet(2)
    found = distance(step, 1, "cpu")
    assert 0 < found["share_of_matrix_flops"] < 1
    assert found["share_of_copy_bandwidth"] > 0
    shares = [row["share"] for row in where_the_time_goes(step, "cpu")]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1
