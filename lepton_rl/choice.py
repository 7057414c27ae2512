"""Which engines to run many lanes on: one-lane engines or fleets, in worker processes or in one. Measured, not hoped.

A GPU always takes fleets in one process. On a CPU the answer depends on image size, network, lanes and cores: grouped
convolutions save the cost per call of small images, and lose to plain convolutions on large ones.
"""

import math
import os
import time
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch

from lepton_rl.controls import Controls, tuned_default
from lepton_rl.engine import Engine
from lepton_rl.errors import InputError
from lepton_rl.fleet import FleetEngine
from lepton_rl.solo import SoloEngine
from lepton_rl.task import VisibleTask

Kind = Literal["workers", "worker-fleets", "fleet"]
STEPS = 2  # gradient steps of the shortest window of a measurement
PROCESS_EFFICIENCY = 0.9  # what a core of two busy ones does, against one alone (shared caches and memory)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The fastest kind, and what was measured.

    Attributes:
        kind: `workers` (one-lane engines in worker processes), `worker-fleets` (fleets in worker processes) or `fleet`
            (fleets in this process).
        rates: Lane-steps per second of each kind on free cores, of all processes together; empty where nothing was
            measured.
    """

    kind: Kind
    rates: dict[Kind, float]


def choose_engine(
    task: VisibleTask,
    lanes: int,
    *,
    architectures: int = 1,
    workers: int | None = None,
    device: str = "cpu",
    repeats: int = 3,
) -> Choice:
    """Measure all kinds for a moment and return the fastest one.

    The measurement takes some seconds, more on large images. All kinds compute the same runs, up to rounding.

    Args:
        task: Like those that the lanes will have.
        lanes: Number of lanes, at least 1.
        architectures: Number of architectures that the lanes are of; a fleet is of one.
        workers: Processes that may run at once; None = the number of cores.
        device: Where to train; other than `cpu` the fleet is chosen without measuring.
        repeats: Measurements of each kind, taken in turn; the median counts.

    Raises:
        InputError: If there is no lane.
    """
    if lanes < 1:
        raise InputError(f"lanes {lanes} is out of range: expected at least 1")
    if torch.device(device).type != "cpu":
        return Choice(kind="fleet", rates={})
    processes = min(lanes, workers or os.cpu_count() or 1)
    whole = math.ceil(lanes / architectures)
    part = math.ceil(lanes / (architectures + processes - 1))  # lanes of one kind are dealt together (`workers.py`)
    engines: dict[Kind, Engine] = {
        "workers": SoloEngine(task),
        "worker-fleets": FleetEngine(task, part),
        "fleet": FleetEngine(task, whole),
    }
    for engine in engines.values():
        for lane in range(engine.lanes):
            engine.load(lane, task, lane)
    rates: dict[Kind, list[float]] = {kind: [] for kind in engines}
    for repeat in range(repeats + 1):
        for kind, engine in engines.items():
            rate = lane_steps_per_second(engine, torch.get_num_threads() if kind == "fleet" else 1)
            if repeat:  # the first one warms up
                rates[kind].append(rate)
    share = processes * PROCESS_EFFICIENCY if processes > 1 else 1.0
    found = {kind: median(values) * (1.0 if kind == "fleet" else share) for kind, values in rates.items()}
    return Choice(kind=max(found, key=lambda kind: found[kind]), rates=found)


def windows(lanes: int, shortest: int = STEPS) -> list[int]:
    """Return windows as lanes have them whose budgets differ: 4, 8, 1 and 2 times the shortest, in turn."""
    return [shortest * 2 ** ((lane + 2) % 4) for lane in range(lanes)]


def lane_steps_per_second(engine: Engine, threads: int, shortest: int = STEPS) -> float:
    """Train one window of every lane, and return what is done per second when the cores are free.

    Processor time is measured, shared out over the threads: other processes disturb it least.
    """
    controls = Controls.start([tuned_default()] * engine.lanes, engine.device)
    steps = windows(engine.lanes, shortest)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        began = time.process_time()
        engine.train(controls, steps)
        return sum(steps) * threads / (time.process_time() - began)
    finally:
        torch.set_num_threads(before)
