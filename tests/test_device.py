"""What a fleet asks of a device, seen without one: tensors of the device `meta` have place and shape, but no numbers.

An operation that mixes devices fails there as it would on a GPU. What the host reads comes back as ones.
"""

import pytest
import torch
from tiny import EVERYTHING, task
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lepton_rl.controls import KEEP, KNOBS
from lepton_rl.engine import Engine
from lepton_rl.fleet import FleetEngine
from lepton_rl.run import AdaptationRun


class Watched(TorchDispatchMode):
    """Counts operations, answers what the host reads with ones, and notes transfers in either direction."""

    def __init__(self):
        super().__init__()
        self.operations, self.reads, self.writes = 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.operations += 1
        name = str(func)
        if "_local_scalar_dense" in name and args[0].is_meta:
            self.reads += 1
            return True if args[0].dtype == torch.bool else 1
        if "_to_copy" in name and args[0].is_meta and torch.device(kwargs.get("device") or "meta").type == "cpu":
            self.reads += 1
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        out = func(*args, **kwargs)
        places = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.dim()}
        to_device = torch.device(kwargs.get("device") or "cpu").type == "meta" and places == {"cpu"}
        self.writes += to_device or places == {"cpu", "meta"}
        return out

    def __enter__(self):
        self._made = Made(self)
        self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._made.__exit__(*error)


class Made(TorchFunctionMode):
    """Notes tensors that are made of Python's numbers, which no dispatch shows."""

    def __init__(self, watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.watch.writes += func in (torch.tensor, torch.as_tensor) and out.is_meta
        return out


def actions(lanes):
    """Keep everything, but pull back, for the path that does."""
    chosen = torch.tensor([KEEP] * lanes)
    chosen[:, KNOBS.index("transfer")] = 1
    return chosen


def run_on(device, lanes, budget=40):
    run = AdaptationRun(FleetEngine(task(0), lanes, device=device))
    run.start({lane: (task(lane, budget=budget), lane, EVERYTHING) for lane in range(lanes)})
    return run


@pytest.mark.parametrize("architecture", ["vgg", "resnet", "vgg-gn"])
def test_a_run_mixes_no_devices_and_its_steps_ask_nothing_of_the_host(architecture, monkeypatch):
    inner, seen = Engine._take_steps, []

    def watched(self, window):
        with Watched() as watch:
            found = inner(self, window)
        seen.append((watch.operations, watch.reads, watch.writes))
        return found

    monkeypatch.setattr(Engine, "_take_steps", watched)
    tasks = [task(lane, architecture=architecture, source=lane > 0, labels=lane > 0, budget=40) for lane in range(3)]
    with Watched() as watch:
        run = AdaptationRun(FleetEngine(tasks[0], 3, device="meta"))
        run.start({lane: (mine, lane, EVERYTHING) for lane, mine in enumerate(tasks)})
        for _ in range(2):
            observation, outcome = run.step(actions(3))
    assert observation.is_meta
    assert outcome.steps == [5, 5, 5]
    assert watch.reads > 0
    # In the first window a loss puts its constants there; they stay.
    assert [reads for _, reads, _ in seen] == [0, 0]
    assert seen[1][2] == 0
    assert all(operations > 1000 for operations, *_ in seen)


def test_what_a_decision_asks_of_the_device_does_not_depend_on_the_number_of_lanes():
    counts = []
    for lanes in (2, 5):
        with Watched():
            run = run_on("meta", lanes)
        with Watched() as watch:
            run.step(actions(lanes))
        counts.append((watch.operations, watch.reads, watch.writes))
    assert counts[0] == counts[1]


def test_lanes_that_start_together_ask_for_as_much_as_one():
    counts = []
    for lanes in (2, 5):
        with Watched():
            run = run_on("meta", lanes)
            tasks = {lane: (task(0), lane, EVERYTHING) for lane in range(lanes)}
            run.start(tasks)
        with Watched() as watch:
            run.start(tasks)
        counts.append((watch.reads, watch.writes))
    assert counts[0] == counts[1]


def test_the_watch_itself():
    with Watched() as watch:
        there = torch.ones(3, device="meta")
        assert there.tolist() == [1, 1, 1]
        torch.tensor([1.0, 2.0], device="meta")
        there.copy_(torch.ones(3))
        assert bool((there > 0).any())
        with pytest.raises((RuntimeError, NotImplementedError)):
            there + torch.ones(3)
    assert (watch.reads, watch.writes) == (2, 2)
