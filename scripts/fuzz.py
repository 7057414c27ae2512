"""Feed damaged and malicious inputs to everything that reads a file or a command line.

Every input is a valid one with random damage. An input passes when it is read, or refused by an `InputError` in one
line, within the time and memory that are allowed; anything else is a failure, is kept, and makes the exit code 1.
"""

import json
import logging
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import tyro
from fuzz_damage import damaged
from fuzz_outputs import output_targets
from fuzz_targets import Target, targets

from lepton_rl.errors import InputError

MEMORY = 2**30  # more than this above what the libraries took is a failure
TINY = 50  # inputs of a target at least
CLOCKS = {  # what may not ring while an input is read, and in how many of the allowed seconds it rings
    signal.ITIMER_PROF: (signal.SIGPROF, 1),  # seconds of work: a busy machine, or a pause, makes no input slow
    signal.ITIMER_REAL: (signal.SIGALRM, 100),  # seconds on the clock: whoever waits for ever does no work
}


@dataclass(frozen=True, kw_only=True)
class FuzzConfig:
    """Feed damaged inputs to every parser."""

    inputs: int = 100_000
    """Inputs in all."""
    seed: int = 0
    """Of the damage; the same seed makes the same inputs."""
    only: tuple[str, ...] = ()
    """Names of parsers; default all."""
    seconds: float = 10.0
    """An input that takes more work than this is a failure (CPU time; on the clock a hundred times as much)."""
    keep: Path | None = None
    """Folder for the inputs that failed."""
    json: Path | None = None
    """File for the counts."""


class Hang(BaseException):
    """An input took too long."""


def _alarm(number: int, frame: FrameType | None) -> None:
    raise Hang


def fuzz(config: FuzzConfig, *, limit_memory: bool = True) -> dict[str, Any]:
    """Run, and return the counts of every parser."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it says of damaged TIFF files is expected here
    previous = {number: signal.signal(number, _alarm) for number, _ in CLOCKS.values()}
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        everything = [*targets(Path(folder)), *output_targets(Path(folder))]
        chosen = [t for t in everything if not config.only or t.name in config.only]
        for target in chosen:  # what is imported late counts as the libraries'
            for seed in target.seeds:
                target.parse(seed)
        if limit_memory:
            _limit_memory()
        whole = sum(target.share for target in chosen)
        try:
            for target in chosen:
                n = max(TINY, round(config.inputs * target.share / whole))
                report[target.name] = _feed(target, n, config)
                print(f"{target.name}: {n} inputs, {report[target.name]['failed']} failed", file=sys.stderr, flush=True)
        finally:
            _set_clocks(0)
            for number, handler in previous.items():
                signal.signal(number, handler)
    return report


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))


def _feed(target: Target, n: int, config: FuzzConfig) -> dict[str, Any]:
    began, counts, slowest, reasons = time.perf_counter(), Counter[str](), 0.0, Counter[str]()
    for number in range(n):
        rng = np.random.default_rng((config.seed, sum(target.name.encode()), number))
        content = damaged(target, rng)
        start = time.process_time()
        outcome, reason = _one(target, content, config.seconds)
        slowest = max(slowest, time.process_time() - start)
        counts[outcome] += 1
        if outcome == "failed":
            reasons[reason] += 1
            if config.keep is not None and reasons[reason] == 1:
                config.keep.mkdir(parents=True, exist_ok=True)
                (config.keep / f"{target.name}-{number}").write_bytes(content)
    return {
        "inputs": n,
        "read": counts["read"],
        "refused": counts["refused"],
        "failed": counts["failed"],
        "slowest": round(slowest, 3),
        "seconds": round(time.perf_counter() - began, 1),
        "reasons": dict(reasons.most_common(20)),
    }


def _one(target: Target, content: bytes, seconds: float) -> tuple[str, str]:
    _set_clocks(seconds)
    try:
        target.parse(content)
    except InputError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            return "failed", f"a message of several lines, or too long: {str(error)[:80]!r}"
        return "refused", ""
    except Hang:
        return "failed", f"took more than {seconds} s of work"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "failed", f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {str(error)[:80]}"
    finally:
        _set_clocks(0)
    return "read", ""


def _set_clocks(seconds: float) -> None:
    for clock, (_, times) in CLOCKS.items():
        signal.setitimer(clock, seconds * times)


def main() -> int:
    """Run and print a table."""
    config = tyro.cli(FuzzConfig)
    report = fuzz(config)
    print(f"{'parser':<12} {'inputs':>8} {'read':>8} {'refused':>8} {'failed':>7} {'slowest':>8} {'seconds':>8}")
    for name, row in report.items():
        figures = f"{row['inputs']:8} {row['read']:8} {row['refused']:8} {row['failed']:7}"
        print(f"{name:<12} {figures} {row['slowest']:7.3f}s {row['seconds']:7.1f}s")
        for reason, count in row["reasons"].items():
            print(f"    {count} x {reason}")
    total, failed = (sum(row[key] for row in report.values()) for key in ("inputs", "failed"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{total} inputs, {failed} failures, peak memory {peak} MiB with the libraries")
    if config.json is not None:
        settings = asdict(config) | {"json": None, "keep": None}
        config.json.write_text(json.dumps({"config": settings, "parsers": report, "peak_mib": peak}, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
