"""Make the files of an export and compare each with the network that it came from."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lepton_rl.cache import write_atomically
from lepton_rl.export.card import EXTRA_FILE, Card
from lepton_rl.export.int8 import int8_bytes
from lepton_rl.export.onnx_file import onnx_bytes
from lepton_rl.export.parity import Parity, Run, check, milliseconds_per_image, onnx_runner, over, parity, torch_runner
from lepton_rl.export.program import Deployable, Traced, trace
from lepton_rl.preprocessing import Preprocessing

ONNX, TORCH, INT8 = "model.onnx", "model.pt2", "model.int8.onnx"


@dataclass(frozen=True, kw_only=True)
class File:
    """One exported file.

    Attributes:
        name: Of the file.
        bytes: Its size.
        parity: With the network.
        accuracy: On the labelled images, or None.
        milliseconds: Per image, in batches of up to 64, on one thread.
    """

    name: str
    bytes: int
    parity: Parity
    accuracy: float | None
    milliseconds: float


@dataclass(frozen=True, kw_only=True)
class Made:
    """An export.

    Attributes:
        files: In the order in which they were made.
        kept: Numbers that the float32 network holds.
        pruned: Name -> numbers of the tensors that were left out, as nothing in the output depends on them.
    """

    files: tuple[File, ...]
    kept: int
    pruned: dict[str, int]


def make(
    model: nn.Module,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    folder: Path,
    *,
    images: NDArray[np.uint8],
    formats: Sequence[str] = ("onnx", "torch"),
    calibration: NDArray[np.uint8] | None = None,
    labels: NDArray[np.int64] | None = None,
) -> Made:
    """Write `model.onnx`, `model.pt2` and, with calibration images, `model.int8.onnx`.

    Args:
        model: From standardised images to logits, such as `AdaptResult.model`; it is not touched.
        preprocessing: What images go through on their way into it.
        classes: Names of its outputs.
        folder: Where to.
        images: To compare on, uint8 `[n, c, h, w]` in the model's size.
        formats: `onnx`, `torch` or both.
        calibration: Images of the domain that the model is for; int8 needs `onnx` among the formats.
        labels: Of `images`, to say what accuracy each file has.

    Raises:
        InputError: If the network cannot be exported, or the extra `export` is not installed.
        ParityError: If a float32 file computes something else than the network.
    """
    network = Deployable(model, preprocessing)
    traced = trace(network, preprocessing)
    card = Card(classes=tuple(classes), preprocessing=preprocessing)
    expected = over(torch_runner(network), images)

    def judged(name: str, run: Run) -> File:
        found = over(run, images)
        return File(
            name=name,
            bytes=(folder / name).stat().st_size,
            parity=parity(expected, found),
            accuracy=None if labels is None else float((found.argmax(1) == labels).mean()),
            milliseconds=milliseconds_per_image(run, images),
        )

    files = []
    if "onnx" in formats:
        write_atomically(folder / ONNX, onnx_bytes(traced.program, card))
        files.append(judged(ONNX, onnx_runner(folder / ONNX)))
        check(files[-1].parity, ONNX)
    if "torch" in formats:
        files.append(judged(TORCH, _torch_file(traced, card, folder / TORCH)))
        check(files[-1].parity, TORCH)
    if calibration is not None:
        whole = Card(classes=card.classes, preprocessing=preprocessing, weights="int8")
        write_atomically(folder / INT8, int8_bytes(folder / ONNX, calibration, whole))
        files.append(judged(INT8, onnx_runner(folder / INT8)))
    return Made(files=tuple(files), kept=traced.kept, pruned=traced.pruned)


def _torch_file(traced: Traced, card: Card, path: Path) -> Run:
    """Write a program and return what runs it, read back."""
    content = io.BytesIO()  # torch ends the whole process when it cannot write a file, as on a full disk
    torch.export.save(traced.program, content, extra_files={EXTRA_FILE: card.to_text()})
    write_atomically(path, content.getvalue())
    return torch_runner(torch.export.load(path).module())
