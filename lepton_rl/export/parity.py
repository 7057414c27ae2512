"""Whether an exported file gives what the network gives, on the same images."""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_rl.export.program import INPUT, OUTPUT
from lepton_rl.extras import extra
from lepton_rl.stopping import Unfinished

TOLERANCE = 1e-4
"""Largest allowed gap of two logits, as a share of the largest logit or of 1 if that is more."""
CHUNK, TIMED = 64, 5

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class ParityError(Unfinished):
    """The exported file does not compute what the network computes; nothing was kept."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Two versions of one network on the same images.

    Attributes:
        images: Their number.
        largest_gap: Largest difference of two logits, as a share of the largest logit or of 1 if that is more.
        agreement: Share of images that both put into the same class.
    """

    images: int
    largest_gap: float
    agreement: float


def parity(expected: NDArray[np.float32], found: NDArray[np.float32]) -> Parity:
    """Compare logits `[n, k]`; what is not finite is infinitely far off."""
    scale = max(1.0, float(np.abs(expected).max()))
    gap = float(np.abs(expected - found).max()) / scale if expected.shape == found.shape else np.inf
    same = float((expected.argmax(1) == found.argmax(1)).mean()) if expected.shape == found.shape else 0.0
    return Parity(images=len(expected), largest_gap=gap if np.isfinite(gap) else np.inf, agreement=same)


def check(found: Parity, what: str) -> None:
    """Refuse a file that computes something else.

    Raises:
        ParityError: If it is off by more than rounding.
    """
    if not found.largest_gap <= TOLERANCE:
        raise ParityError(
            f"{what} differs from the network by {found.largest_gap:.2g} of its largest logit: "
            f"expected at most {TOLERANCE:g}; nothing was written, please report this network"
        )


def onnx_runner(path: Path) -> Run:
    """Return what runs an ONNX file, on one thread.

    Raises:
        InputError: If onnxruntime is not installed.
    """
    runtime: Any = extra("export", "onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def torch_runner(module: Callable[[torch.Tensor], torch.Tensor]) -> Run:
    """Return what runs a module or a loaded program."""

    @torch.no_grad()
    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = module(torch.from_numpy(images)).numpy()
        return result

    return run


def over(run: Run, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run over images `[n, c, h, w]` in parts; also of one image, which some graphs are not made for."""
    cuts = [0, 1, *range(1 + CHUNK, len(images), CHUNK), len(images)]
    parts = [run(np.ascontiguousarray(images[a:b])) for a, b in itertools.pairwise(cuts) if a < b]
    return np.concatenate(parts)


def milliseconds_per_image(run: Run, images: NDArray[np.uint8]) -> float:
    """Return the median time per image in batches of up to 64."""
    batch = np.ascontiguousarray(images[:CHUNK])
    run(batch)
    times = []
    for _ in range(TIMED):
        began = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times) / len(batch)
