"""Measure the engines: `python scripts/bench_engines.py --json [--quick]`.

Every ratio compares two things measured in turn within this run; every number is a median over repeats. On a
CPU single-process ratios use processor time, which other processes on the machine disturb least.
"""

import copy
import json
import multiprocessing
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import torch
import tyro
from bench_device import collecting, distance, memory_of_a_lane, timed, where_the_time_goes
from torch.nn import functional as F

import lepton_rl.envs  # noqa: F401 - registers the environments
from lepton_rl.choice import choose_engine, lane_steps_per_second
from lepton_rl.controls import KEEP, LOSS_TERMS, Controls, ControlSettings
from lepton_rl.domain import Domain
from lepton_rl.engine import Engine
from lepton_rl.fleet import FleetEngine
from lepton_rl.losses import conditional_entropy, coral, diversity, mmd, pseudo_label
from lepton_rl.models import build_model
from lepton_rl.policy import KeepPolicy
from lepton_rl.rollout import rollout
from lepton_rl.run import decisions_of
from lepton_rl.solo import SoloEngine
from lepton_rl.suite import BUDGETS
from lepton_rl.task import VisibleTask

MANY = 256  # lanes above which a CPU is measured once
Part = Literal["fleet", "choice", "solo", "prefix", "env", "linearity", "device"]

# Fixed, so that figures of different versions compare, and such that `plain_loop` can be written in a few lines.
SETTINGS = ControlSettings(
    learning_rate=1e-3,
    weights=dict.fromkeys(LOSS_TERMS, 0.3) | {"source": 1.0, "adversarial": 0.0, "auxiliary": 0.0},
)


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure."""

    json: bool = False
    """Print one JSON object instead of lines."""
    quick: bool = False
    """Fewer sizes, lanes and repeats: about four minutes on two idle cores."""
    only: tuple[Part, ...] = ()
    """Measure these parts; all when left out."""
    architectures: tuple[str, ...] = ()
    """Networks; vgg and resnet when left out, with --quick vgg alone."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto` = CUDA where there is one."""
    width: int = 16
    """Channels of the networks' first stage."""
    seconds: float = 3.0
    """Length of each measurement with worker processes, in processor time."""
    tf32: bool = False
    """Allow TF32 matrix products and convolutions on CUDA."""

    @property
    def place(self) -> str:
        """The device."""
        return self.device if self.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def repeats(self) -> int:
        """Measurements of each thing."""
        return 3 if self.quick else 5


def make_task(side: int, architecture: str, width: int, budget: int = 400, images: int = 512) -> VisibleTask:
    """Return a task of random images; what they show does not change how long a step takes."""
    rng = np.random.default_rng(0)

    def domain(n: int, labelled: bool = True) -> Domain:
        labels = rng.integers(0, 10, n) if labelled else np.full(n, -1)
        pixels = rng.integers(0, 256, (n, 1, side, side), dtype=np.uint8)
        return Domain(images=pixels, labels=labels, name="noise", classes=tuple("0123456789"))

    return VisibleTask(
        name=f"bench-{architecture}-{side}",
        model=build_model(architecture, channels=1, n_classes=10, width=width).eval(),
        n_classes=10,
        mean=np.array([0.5]),
        std=np.array([0.3]),
        budget=budget,
        source_train=domain(600),
        source_val=domain(150),
        target_support=domain(34),
        target_probe=domain(16),
        target_unlabelled=domain(images, labelled=False),
    )


def plain_loop(task: VisibleTask, settings: ControlSettings, device: str = "cpu") -> None:
    """Fine-tune as one would write it by hand: same batches, losses, optimizer and schedule; no signals, no checks."""
    model = copy.deepcopy(task.model).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.budget)
    weights, features = settings.weights, []
    model.get_submodule("head").register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    assert task.source_train is not None
    assert task.target_support is not None
    parts = (task.source_train, task.target_support, task.target_unlabelled)
    source, support, target = ((torch.from_numpy(p.images).to(device).float() / 255 - 0.5) / 0.3 for p in parts)
    source_labels, support_labels = (torch.from_numpy(p.labels).to(device) for p in parts[:2])
    for _ in range(task.budget):
        i, j, k = (torch.randint(len(x), (n,)) for x, n in ((source, 32), (support, 16), (target, 32)))
        features.clear()
        z_source, z = model(source[i]), model(torch.cat([support[j], target[k]]))
        f_source, f = features[0], features[1][16:]
        loss = F.cross_entropy(z[:16], support_labels[j]) + weights["source"] * F.cross_entropy(
            z_source, source_labels[i]
        )
        loss = loss + weights["alignment"] * (mmd(f_source, f) + coral(f_source, f))
        loss = loss + weights["entropy"] * conditional_entropy(z[16:])
        loss = loss + weights["diversity"] * diversity(z[16:])
        loss = loss + weights["self_training"] * pseudo_label(z[16:], 0.9)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def loaded(engine: Engine, task: VisibleTask) -> Engine:
    """Start every lane of an engine on a task."""
    for lane in range(engine.lanes):
        engine.load(lane, task, lane)
    return engine


def window(engine: Engine, steps: int, settings: ControlSettings | None = None) -> Callable[[], object]:
    """Return one window of gradient steps, as work to time."""
    controls = Controls.start([settings or SETTINGS] * engine.lanes, engine.device)
    return lambda: engine.train(controls, [steps] * engine.lanes)


# ----- the fleet


def fleet_speed(config: BenchConfig, side: int, architecture: str) -> list[dict[str, Any]]:
    """Measure lane-steps per second for growing N against one-after-the-other training on the same device."""
    say(f"fleet {architecture} {side}x{side}")
    task, device = make_task(side, architecture, config.width), config.place
    solo = window(loaded(SoloEngine(task, device=device), task), 8)
    timed(solo, device)
    rows: list[dict[str, Any]] = []
    for lanes in lane_counts(config, side):
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            fleet = window(loaded(FleetEngine(task, lanes, device=device), task), max(2, 16 // lanes))
            repeats = config.repeats if device == "cuda" or lanes <= MANY else 1
            pairs = [(timed(solo, device) / 8, timed(fleet, device) / max(2, 16 // lanes)) for _ in range(repeats + 1)]
        except torch.OutOfMemoryError:
            break
        alone, together = median(p[0] for p in pairs[1:]), median(p[1] for p in pairs[1:])
        speedup = median(lanes * p[0] / p[1] for p in pairs[1:])
        rows.append(
            {"lanes": lanes, "lane_steps_per_second": lanes / together, "sequential": 1 / alone, "speedup": speedup}
        )
        rows[-1] |= {"side": side, "architecture": architecture, "bytes": memory(device)}
    return rows


def lane_counts(config: BenchConfig, side: int) -> list[int]:
    """Return the numbers of lanes to measure."""
    if config.place == "cuda":
        return sorted({2**k for k in range(0, 12, 3 if config.quick else 1)} | {2048})
    if config.quick or side > 8:
        return [1, 4, 16]
    return [1, 4, 16, 64, 256, 2048]


def say(what: str) -> None:
    """Tell on the error stream what is being measured, because a whole run takes minutes."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def memory(device: str) -> int:
    """Return the most bytes used so far: of the device, or of this process on a CPU."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def recorded_speedup(config: BenchConfig, lanes: int) -> float | None:
    """Return how much faster recorded steps are than eager ones; None without CUDA."""
    if config.place != "cuda":
        return None
    say("recorded steps")
    task = make_task(8, "vgg", config.width)
    eager, recorded = (
        window(loaded(FleetEngine(task, lanes, device="cuda", record=record), task), 8) for record in (False, True)
    )
    pairs = [(timed(eager, "cuda"), timed(recorded, "cuda")) for _ in range(config.repeats + 3)][3:]
    return median(slow / fast for slow, fast in pairs)


def device_use(config: BenchConfig, lanes: int) -> dict[str, Any]:
    """Measure how far the fleet is from the device's ceilings, where its time goes, and what collecting adds."""
    say("the device")
    task = make_task(8, "vgg", config.width)
    options = {"record": False} if config.place == "cuda" else {}
    step = window(loaded(FleetEngine(task, lanes, device=config.place, **options), task), 4)
    return {
        "lanes": lanes,
        "distance": distance(step, 4, config.place),
        "profile": where_the_time_goes(step, config.place),
        "collecting": collecting(config.place, lanes if config.place == "cuda" else 6),
    }


def linearity(config: BenchConfig) -> dict[str, Any]:
    """Measure cost ratios that are 2 where cost is linear: twice the lanes, steps, and batch-independent images."""
    say("linearity")
    task, device = make_task(8, "vgg", config.width), config.place
    many = make_task(8, "vgg", config.width, images=1024)
    small, large = (loaded(FleetEngine(task, n, device=device), task) for n in (8, 16))
    longer = loaded(FleetEngine(many, 8, device=device), many)
    works = {"one": window(small, 4), "lanes": window(large, 4), "steps": window(small, 8), "images": window(longer, 4)}
    samples = [{name: timed(work, device) for name, work in works.items()} for _ in range(config.repeats + 1)][1:]
    ratio = {name: median(s[name] / s["one"] for s in samples) for name in ("lanes", "steps", "images")}
    return {
        "twice_the_lanes": ratio["lanes"],
        "twice_the_steps": ratio["steps"],
        "twice_the_stored_images": ratio["images"],
        "bytes_of_a_lane_of_8": memory_of_a_lane(small, window(small, 1)),
        "bytes_of_a_lane_of_16": memory_of_a_lane(large, window(large, 1)),
        "data_bytes": float(large.pool.images.numel()),
        "data_bytes_of_half_the_lanes": float(small.pool.images.numel()),
    }


def in_vain(lanes: int, decisions: int = 2000) -> dict[str, float]:
    """Play the windows of lanes with the suite's budgets, and count the lane-steps of lanes that are done.

    Returns:
        Their share if all lanes were computed to the end of the longest window, and if a fleet is halved in time.
    """
    rng = np.random.default_rng(0)
    played: list[Iterator[int]] = [iter(()) for _ in range(lanes)]
    useful = whole = halved = 0
    for _ in range(decisions):
        steps = []
        for lane in range(lanes):
            length = next(played[lane], None)
            if length is None:
                budget = int(rng.choice(BUDGETS))
                n = decisions_of(budget)
                played[lane] = iter([budget * (d + 1) // n - budget * d // n for d in range(n)])
                length = next(played[lane])
            steps.append(length)
        useful, whole = useful + sum(steps), whole + lanes * max(steps)
        for first, last in pairwise([0, *sorted(set(steps))]):
            going, size = sum(n > first for n in steps), lanes
            while size // 2 >= going:
                size //= 2
            halved += size * (last - first)
    return {"to_the_end": 1 - useful / whole, "halved": 1 - useful / halved}


# ----- worker processes against one, on a CPU


def rate_of(engine: Engine, threads: int, seconds: float) -> float:
    """Return lane-steps per second of an engine over some time, on windows of different lengths."""
    lane_steps_per_second(engine, threads)
    began, rates = time.process_time(), []
    while time.process_time() - began < seconds * threads:
        rates.append(lane_steps_per_second(engine, threads))
    return len(rates) / sum(1 / rate for rate in rates)


def _work(task: VisibleTask, lanes: int, seconds: float, start: Any, rates: Any) -> None:  # noqa: ANN401
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    engine = loaded(FleetEngine(task, lanes) if lanes > 1 else SoloEngine(task), task)
    start.wait()
    rates.put(rate_of(engine, 1, seconds))


def workers_rate(task: VisibleTask, processes: int, lanes: int, seconds: float) -> float:
    """Return lane-steps per second of worker processes with so many lanes at once each, all together."""
    context = multiprocessing.get_context("spawn")
    start, rates = context.Barrier(processes), context.Queue()
    crew = [context.Process(target=_work, args=(task, lanes, seconds, start, rates)) for _ in range(processes)]
    for process in crew:
        process.start()
    total = sum(rates.get() for _ in crew)
    for process in crew:
        process.join()
    return float(total)


def cpu_choice(config: BenchConfig, side: int, lanes: int = 16, cores: int = 2) -> dict[str, Any]:
    """Choose by the short measurement, then measure all kinds for longer: chosen / best."""
    say(f"workers or fleet, {side}x{side}")
    task = make_task(side, "vgg", config.width)
    torch.set_num_threads(cores)
    choice = choose_engine(task, lanes, workers=cores)
    fleet = loaded(FleetEngine(task, lanes), task)
    rates: dict[str, list[float]] = {"workers": [], "worker-fleets": [], "fleet": []}
    for _ in range(1 if config.quick else 3):
        rates["workers"].append(workers_rate(task, cores, 1, config.seconds))
        rates["worker-fleets"].append(workers_rate(task, cores, lanes // cores, config.seconds))
        rates["fleet"].append(rate_of(fleet, cores, config.seconds))
    torch.set_num_threads(1)
    found = {kind: median(values) for kind, values in rates.items()}
    return {"side": side, "chosen": choice.kind, "ratio": found[choice.kind] / max(found.values()), **found}


# ----- one run


def solo_overhead(config: BenchConfig, side: int, architecture: str, **options: Any) -> float:  # noqa: ANN401
    """Return the time of a whole run with signals, checkpoints and guard over that of the plain loop."""
    say(f"solo overhead {architecture} {side}x{side}")
    device = config.place
    task = make_task(side, architecture, config.width)
    policy = KeepPolicy(settings=SETTINGS)

    def run() -> None:
        rollout(task, policy, seed=0, engine=SoloEngine(task, device=device, **options))

    def by_hand() -> None:
        plain_loop(task, SETTINGS, device)

    short = replace(task, budget=10)
    rollout(short, policy, seed=0, engine=SoloEngine(short, device=device))
    plain_loop(short, SETTINGS, device)
    return median(
        timed(run, device) / timed(by_hand, device) for _ in range(1 if config.quick and side > 8 else config.repeats)
    )


def frozen_prefix(config: BenchConfig, side: int, architecture: str) -> dict[str, float]:
    """Return how much faster head-only windows of 50 steps are with the cache than without."""
    say(f"frozen prefix {architecture} {side}x{side}")
    task, device = make_task(side, architecture, config.width), config.place
    head_only = replace(SETTINGS, unfrozen_stages=0)
    windows = 4 if config.quick else 8
    kinds = {"with": 2**28, "without": 0}
    steps = {
        kind: window(loaded(SoloEngine(task, device=device, cache_bytes=limit), task), 50, head_only)
        for kind, limit in kinds.items()
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(windows):
        for kind, step in steps.items():
            seconds[kind].append(timed(step, device))
    return {
        "window": median(slow / fast for slow, fast in zip(seconds["without"], seconds["with"], strict=True)),
        "run_with_filling": sum(seconds["without"]) / sum(seconds["with"]),
    }


def env_steps(config: BenchConfig) -> float:
    """Return environment steps per second of the registered vector environment."""
    say("environment")
    envs = gymnasium.make_vec("lepton_rl/FineTune-v0", num_envs=6, vectorization_mode="vector_entry_point")
    envs.reset(seed=0)
    keep = np.tile(np.array(KEEP), (6, 1))
    # The mean, as windows have different lengths and some lanes start anew.
    seconds = [timed(lambda: envs.step(keep), config.place) for _ in range(4 if config.quick else 16)]
    envs.close()
    return 6 * len(seconds) / sum(seconds)


def bench(config: BenchConfig) -> dict[str, Any]:
    """Measure everything, or the parts that were asked for; what was not measured is None."""
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    sides, kinds = (8, 28), config.architectures or (("vgg",) if config.quick else ("vgg", "resnet"))
    asked = [part for part in get_args(Part) if not config.only or part in config.only]
    details: dict[str, Any] = {"torch": torch.__version__}
    rows: list[dict[str, Any]] = []
    if "fleet" in asked:
        rows = details["fleet"] = [row for side in sides for kind in kinds for row in fleet_speed(config, side, kind)]
    best = max(rows, key=lambda row: float(row["speedup"]), default={"speedup": None, "lanes": None})
    lanes = best["lanes"] or 16
    if "choice" in asked and config.place == "cpu":
        details["cpu_choice"] = [cpu_choice(config, side) for side in (8, 16, 28)]
    if "solo" in asked:
        details["solo_overhead"] = {f"{k}-{s}": solo_overhead(config, s, k) for s in sides for k in kinds}
    if "prefix" in asked:
        details["frozen_prefix"] = {f"{k}-28": frozen_prefix(config, 28, k) for k in kinds}
    if "env" in asked:
        details["env_steps_per_second"] = env_steps(config)
    if "linearity" in asked:
        details["linearity"] = linearity(config)
        details["in_vain"] = {lanes: in_vain(lanes) for lanes in (8, 16, 512)}
    if "device" in asked:
        details["device"] = device_use(config, lanes)
        details["recorded_speedup"] = recorded_speedup(config, lanes)
    return {
        "fleet_speedup": best["speedup"],
        "fleet_best_lanes": best["lanes"],
        "cpu_choice_ratio": min((row["ratio"] for row in details.get("cpu_choice", ())), default=None),
        "solo_overhead": max(details.get("solo_overhead", {}).values(), default=None),
        "frozen_prefix_speedup": min(
            (row["window"] for row in details.get("frozen_prefix", {}).values()), default=None
        ),
        "env_steps_per_second": details.get("env_steps_per_second"),
        "peak_memory_bytes": memory(config.place),
        "device": torch.cuda.get_device_name() if config.place == "cuda" else "cpu",
        "details": details,
    }


def main() -> None:
    """Parse, measure, print."""
    config = tyro.cli(BenchConfig, description=__doc__)
    found = bench(config)
    if config.json:
        print(json.dumps(found, indent=2, sort_keys=True))
        return
    for name, value in found.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
