"""N lanes equal N single runs, step by step: weights, observations and ends, whatever happens beside a lane."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import EVERYTHING, PLAIN, lane_weights, largest_gap, task
from torch.utils._python_dispatch import TorchDispatchMode

from lepton_rl.controls import ACTION_SIZES, KEEP, KNOBS, Controls
from lepton_rl.engine import Engine
from lepton_rl.fleet import FleetEngine
from lepton_rl.run import AdaptationRun
from lepton_rl.solo import SoloEngine

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)
WEIGHT_TOLERANCE, OBSERVATION_TOLERANCE = 1e-7, 1e-5

lane_kinds = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 5),
        "classes": st.integers(2, 4),
        "source": st.booleans(),
        "labels": st.booleans(),
        "probe": st.booleans(),
        "budget": st.sampled_from((5, 9, 15)),
        "images": st.sampled_from((12, 40, 150)),
        "prior": st.booleans(),
    }
)
starts = st.sampled_from((PLAIN, EVERYTHING))


def random_actions(rng, lanes, stop=0.1, transfer=0.3):
    actions = np.stack([rng.integers(0, n, lanes) for n in ACTION_SIZES], axis=1)
    actions[:, KNOBS.index("stop")] = rng.random(lanes) < stop
    actions[:, KNOBS.index("transfer")] = rng.random(lanes) < transfer
    # Full steps up would only test how quickly both diverge.
    actions[:, 1] = np.minimum(actions[:, 1], 3)
    return torch.from_numpy(actions)


def fleet_of(tasks, lanes):
    widest = max(tasks, key=lambda t: t.n_classes)
    return AdaptationRun(FleetEngine(widest, lanes, dtype=torch.float64))


def assert_same_lane(fleet, lane, single, seen_fleet, seen_single):
    gap = (seen_fleet[lane] - seen_single[0]).abs()
    assert float(gap.max()) < OBSERVATION_TOLERANCE, int(gap.argmax())
    difference = largest_gap(lane_weights(fleet.engine, lane), lane_weights(single.engine))
    assert difference < WEIGHT_TOLERANCE


@settings(max_examples=10, deadline=None, suppress_health_check=SLOW)
@given(
    architecture=st.sampled_from(("vgg", "resnet", "vgg-gn")),
    kinds=st.lists(lane_kinds, min_size=1, max_size=4),
    start=st.lists(starts, min_size=4, max_size=4),
    seed=st.integers(0, 1000),
)
def test_lanes_equal_single_runs_under_random_actions_and_resets(architecture, kinds, start, seed):
    rng = np.random.default_rng(seed)
    tasks = [task(architecture=architecture, **kind) for kind in kinds]
    fleet = fleet_of(tasks, len(tasks))
    singles = [AdaptationRun(SoloEngine(t, dtype=torch.float64)) for t in tasks]
    seeds = rng.integers(0, 2**31, len(tasks)).tolist()
    seen = fleet.start({i: (t, seeds[i], start[i]) for i, t in enumerate(tasks)})
    seen_by = [single.start({0: (tasks[i], seeds[i], start[i])}) for i, single in enumerate(singles)]
    for _ in range(5):
        for lane, single in enumerate(singles):
            assert_same_lane(fleet, lane, single, seen, seen_by[lane])
        fresh = {}
        for lane, single in enumerate(singles):  # lanes that have ended start anew while the others go on
            if single.over[0]:
                fresh[lane] = (tasks[(lane + 1) % len(tasks)], int(rng.integers(2**31)), start[lane])
        if fresh:
            seen = fleet.start(fresh)
            for lane, begin in fresh.items():
                singles[lane] = AdaptationRun(SoloEngine(begin[0], dtype=torch.float64))
                seen_by[lane] = singles[lane].start({0: begin})
                assert_same_lane(fleet, lane, singles[lane], seen, seen_by[lane])
        actions = random_actions(rng, len(tasks))
        seen, outcome = fleet.step(actions)
        for lane, single in enumerate(singles):
            seen_by[lane], alone = single.step(actions[lane : lane + 1])
            assert (alone.steps[0], alone.ended[0], alone.diverged[0]) == (
                outcome.steps[lane],
                outcome.ended[lane],
                outcome.diverged[lane],
            )


@pytest.mark.parametrize("architecture", ["vgg", "resnet-gn"])
def test_a_lane_does_not_depend_on_how_many_run_beside_it(architecture):
    tasks = [task(i, architecture=architecture, budget=(15, 8)[i % 2], source=i != 1) for i in range(4)]
    ends = {}
    for lanes in (1, 2, 4):
        run = AdaptationRun(FleetEngine(tasks[0], lanes, dtype=torch.float64))
        seen = run.start({i: (tasks[i], 7 + i, EVERYTHING) for i in range(lanes)})
        rng = np.random.default_rng(0)
        while not run.over[0]:
            actions = random_actions(rng, 4, stop=0.0)[:lanes]
            seen, _ = run.step(actions)
        ends[lanes] = (seen[0], lane_weights(run.engine, 0))
    for lanes in (2, 4):
        assert float((ends[lanes][0] - ends[1][0]).abs().max()) < OBSERVATION_TOLERANCE
        assert largest_gap(ends[lanes][1], ends[1][1]) < WEIGHT_TOLERANCE


def test_a_lane_that_is_done_is_not_computed_any_longer(monkeypatch):
    engine = FleetEngine(task(0), 4)
    for lane in range(4):
        engine.load(lane, task(lane), lane)
    sizes, inner = [], FleetEngine._one_step

    def watched(self, window, k):
        sizes.append(self.lanes)
        return inner(self, window, k)

    monkeypatch.setattr(FleetEngine, "_one_step", watched)
    stats = engine.train(Controls.start([PLAIN] * 4, engine.device), [2, 0, 5, 2])
    assert sizes == [3, 3, 1, 1, 1]
    assert engine.step_count.tolist() == [2, 0, 5, 2]
    assert ((stats.gradient_norm > 0).any(1)).tolist() == [True, False, True, True]


def test_an_ended_lane_stays_as_it_is_while_others_go_on():
    tasks = [task(0, budget=15), task(1, budget=15)]
    run = AdaptationRun(FleetEngine(tasks[0], 2, dtype=torch.float64))
    run.start({i: (t, i, PLAIN) for i, t in enumerate(tasks)})
    run.step(torch.tensor([KEEP, KEEP]))
    stop = torch.tensor([KEEP, KEEP])
    stop[0, KNOBS.index("stop")] = 1
    stop[0, KNOBS.index("unfreeze")] = 0
    before = lane_weights(run.engine, 0)
    run.step(stop)
    run.step(stop)
    assert run.over == [True, True]
    assert largest_gap(before, lane_weights(run.engine, 0)) == 0.0


class Waits(TorchDispatchMode):
    """Notes every operation for which a device would make the host wait."""

    SYNCHRONISING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = "aten.index" in str(func) and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_mask or any(name in str(func) for name in self.SYNCHRONISING):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_no_step_of_a_fleet_waits_for_the_device(monkeypatch):
    tasks = [task(0, classes=3), task(1, classes=2, source=False, labels=False)]
    engine = FleetEngine(tasks[0], 2)
    for lane, visible in enumerate(tasks):
        engine.load(lane, visible, lane)
    steps, inner = [], Engine._take_steps

    def watched(self, window):
        with Waits() as waits:
            terms = inner(self, window)
        steps.append(waits.found)
        return terms

    monkeypatch.setattr(Engine, "_take_steps", watched)
    engine.train(Controls.start([EVERYTHING, replace(PLAIN, unfrozen_stages=1)], engine.device), [4, 2])
    assert steps == [[]] * 2


def test_the_check_for_waiting_itself():
    with Waits() as waits:
        float(torch.ones(1))
        torch.ones(2)[torch.tensor([True, False])]
    assert len(waits.found) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("implementation", ["grouped", "matmul"])
def test_lanes_on_the_gpu_equal_single_runs_on_the_cpu(implementation):
    tasks = [task(i, architecture="resnet", source=i != 1) for i in range(3)]
    fleet = AdaptationRun(FleetEngine(tasks[0], 3, dtype=torch.float64, device="cuda", implementation=implementation))
    seen = fleet.start({i: (t, i, EVERYTHING) for i, t in enumerate(tasks)})
    singles = [AdaptationRun(SoloEngine(t, dtype=torch.float64)) for t in tasks]
    alone = [single.start({0: (tasks[i], i, EVERYTHING)}) for i, single in enumerate(singles)]
    for _ in range(3):
        seen, _ = fleet.step(torch.tensor([KEEP] * 3))
        alone = [single.step(torch.tensor([KEEP]))[0] for single in singles]
    assert float((seen.cpu() - torch.cat(alone)).abs().max()) < OBSERVATION_TOLERANCE
