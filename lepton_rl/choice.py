"""Which engine to run many lanes on: one fleet, or one-lane engines in worker processes. Measured, not hoped.

A GPU always takes the fleet. On a CPU the answer depends on image size, network, lanes and cores: grouped
convolutions save the cost per call of small images, and lose to plain convolutions on large ones.
"""

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

Kind = Literal["fleet", "workers"]
STEPS = 4  # gradient steps of one measurement
PROCESS_EFFICIENCY = 0.9  # what a core of two busy ones does, against one alone (shared caches and memory)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The faster kind, and the lane-steps per second that were measured.

    Attributes:
        kind: `fleet` or `workers`.
        fleet: Lane-steps per second of one fleet in this process.
        workers: Lane-steps per second of one-lane engines, for all worker processes together.
    """

    kind: Kind
    fleet: float
    workers: float


def choose_engine(
    task: VisibleTask, lanes: int, *, workers: int | None = None, device: str = "cpu", repeats: int = 3
) -> Choice:
    """Measure both kinds for a moment and return the faster one.

    The measurement takes about a second. Both kinds compute the same runs, up to rounding.

    Args:
        task: Like those that the lanes will have.
        lanes: Number of lanes, at least 1.
        workers: Processes that may run at once; None = the number of cores.
        device: Where to train; other than `cpu` the fleet is chosen without measuring.
        repeats: Measurements of each kind, taken in turn; the median counts.

    Raises:
        InputError: If there is no lane.
    """
    if lanes < 1:
        raise InputError(f"lanes {lanes} is out of range: expected at least 1")
    if torch.device(device).type != "cpu":
        return Choice(kind="fleet", fleet=float("nan"), workers=float("nan"))
    processes = min(lanes, workers or os.cpu_count() or 1)
    engines: dict[Kind, Engine] = {"workers": SoloEngine(task), "fleet": FleetEngine(task, lanes)}
    for engine in engines.values():
        for lane in range(engine.lanes):
            engine.load(lane, task, lane)
    rates: dict[Kind, list[float]] = {"workers": [], "fleet": []}
    for repeat in range(repeats + 1):
        for kind, engine in engines.items():
            rate = _lane_steps_per_second(engine, kind)
            if repeat:  # the first one warms up
                rates[kind].append(rate)
    efficiency = PROCESS_EFFICIENCY if processes > 1 else 1.0
    fleet, single = median(rates["fleet"]), median(rates["workers"])
    together = single * processes * efficiency
    return Choice(kind="fleet" if fleet >= together else "workers", fleet=fleet, workers=together)


def _lane_steps_per_second(engine: Engine, kind: Kind) -> float:
    controls = Controls.start([tuned_default()] * engine.lanes, engine.device)
    threads = torch.get_num_threads()
    if kind == "workers":  # a worker process has one core
        torch.set_num_threads(1)
    try:
        began = time.perf_counter()
        engine.train(controls, [STEPS] * engine.lanes)
        return STEPS * engine.lanes / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
