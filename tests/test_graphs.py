"""Recorded steps: buffers, the rule and the way back, with a recorder for the CPU; CUDA graphs where there is one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import EVERYTHING, PLAIN, lane_weights, largest_gap, same, task

from lepton_rl.controls import Controls
from lepton_rl.errors import InputError
from lepton_rl.fleet import FleetEngine
from lepton_rl.graphs import WARM_UP

LANES = 2


class OnBuffers:
    """What a device's recorder does, by Python: the recorded work runs again on the buffers it was recorded with."""

    def __init__(self):
        self.recorded = 0

    def warm(self, work):
        return work()

    def record(self, work, leaves):
        self.recorded += 1
        return work


class Wrong(OnBuffers):
    """Replays that leave other weights than the step."""

    def record(self, work, leaves):
        def replay():
            out = work()
            with torch.no_grad():
                leaves[-1].mul_(1.1)
            return out

        return replay


class Refusing(OnBuffers):
    """A device that cannot record."""

    def record(self, work, leaves):
        raise RuntimeError("operation not permitted when stream is capturing\nand a long trace")


def fleet(recorder=None, device="cpu", **options):
    tasks = [task(0, classes=3), task(1, classes=2, source=False)]
    engine = FleetEngine(tasks[0], LANES, dtype=torch.float64, device=device, **options)
    if recorder is not None:
        engine.record_with(recorder)
    for lane, visible in enumerate(tasks):
        engine.load(lane, visible, lane)
    return engine


def eager():
    """A fleet that might record and never does: its lanes stay together, as those of a recording one do."""
    engine = fleet(OnBuffers())
    engine.recorded.broken = True
    return engine


def windows():
    """Settings and steps of windows that change everything a recording could have kept."""
    other = replace(EVERYTHING, learning_rate=1e-2, weights=EVERYTHING.weights | {"entropy": 1.0}, augmentation=0.75)
    return [
        ([PLAIN, PLAIN], [8, 8]),
        ([EVERYTHING, EVERYTHING], [8, 6]),
        ([other, EVERYTHING], [8, 8]),
        ([replace(PLAIN, unfrozen_stages=1), PLAIN], [6, 8]),
        ([PLAIN, replace(PLAIN, learning_rate=2e-2)], [8, 8]),
    ]


def play(engine):
    """Train through all windows, with a new task, a pull back and a restore in between."""
    seen = []
    for number, (settings, steps) in enumerate(windows()):
        stats = engine.train(Controls.start(settings, engine.device), steps)
        seen += [stats.terms, stats.slopes, stats.gradient_norm]
        if number == 1:
            saved = engine.snapshot(0)
            engine.load(1, task(5, classes=3, images=150), 9)  # more images: the pool grows
        if number == 2:
            engine.pull_back(torch.tensor([True, False], device=engine.device), 0.5)
        if number == 3:
            engine.restore(0, saved)
    return torch.cat([part.flatten() for part in seen]).cpu(), [lane_weights(engine, lane) for lane in range(LANES)]


def test_recorded_steps_are_the_eager_steps_to_the_bit():
    recorder = OnBuffers()
    expected, weights = play(eager())
    engine = fleet(recorder)
    seen, found = play(engine)
    assert torch.equal(seen, expected)
    assert all(same(*pair) for pair in zip(found, weights, strict=True))
    assert recorder.recorded >= 4
    # Steps 4 and 8 of the first window look at all terms; the other six are of one kind, recorded as its fourth.
    assert engine.recorded.replays > 6 - WARM_UP - 1


def test_lanes_that_are_done_keep_company_so_that_few_sizes_are_recorded():
    engines = [FleetEngine(task(0), 5, dtype=torch.float64) for _ in range(2)]
    engines[1].record_with(OnBuffers())
    for engine in engines:
        for lane in range(5):
            engine.load(lane, task(lane), lane)
        for steps in ([2, 9, 4, 0, 9], [9, 2, 9, 3, 2], [1, 9, 1, 1, 1]):
            engine.train(Controls.start([EVERYTHING] * 5, engine.device), steps)
    assert sorted(engines[1]._narrower) == [1, 2]
    assert all(few.recorded.replays for few in engines[1]._narrower.values())
    assert not engines[0]._narrower
    for lane in range(5):
        assert largest_gap(*(lane_weights(engine, lane) for engine in engines)) < 1e-7


@pytest.mark.parametrize(("recorder", "says"), [(Wrong, "a replay differs"), (Refusing, "when stream is capturing$")])
def test_where_recording_fails_steps_stay_eager_and_a_warning_says_so(recorder, says):
    expected, weights = play(eager())
    engine = fleet(recorder())
    with pytest.warns(RuntimeWarning, match=says) as caught:
        seen, found = play(engine)
    assert len(caught) == 1
    assert engine.recorded.broken
    assert torch.equal(seen, expected)
    assert all(same(*pair) for pair in zip(found, weights, strict=True))


def test_everything_that_a_recording_uses_stays_in_its_place():
    engine = fleet()

    def places():
        fixed = (
            engine.live,
            engine.seeds,
            engine.mean,
            engine.std,
            engine.n_classes,
            engine.has_class,
            engine.everyone,
        )
        return [tensor.data_ptr() for tensor in (*engine._changing(), *fixed)]

    before = places()
    play(engine)
    assert places() == before


def test_a_recording_is_not_used_after_the_images_have_moved():
    engine = fleet(OnBuffers())
    place = engine._place()
    engine.load(1, task(5, images=400), 9)
    assert engine._place() != place


def test_recording_without_cuda_is_refused():
    with pytest.raises(InputError, match="record on device cpu"):
        FleetEngine(task(), 2, record=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_equal_eager_steps():
    engines = [fleet(device="cuda", record=record) for record in (False, True)]
    (expected, weights), (seen, found) = (play(engine) for engine in engines)
    assert not engines[1].recorded.broken
    assert engines[1].recorded.replays > 0
    assert np.allclose(seen, expected, atol=1e-8)
    assert max(largest_gap(*pair) for pair in zip(found, weights, strict=True)) < 1e-7
