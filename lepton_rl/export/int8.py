"""Static quantisation to 8 bit: weights per channel, activations by the range that calibration images show.

Source: Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only
inference"; onnxruntime's QDQ form, in which every quantised value stands between Quantize and Dequantize.
"""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_rl.export.card import Card
from lepton_rl.export.onnx_file import with_card
from lepton_rl.export.program import INPUT
from lepton_rl.extras import extra

CHUNK = 32
LEAST_IMAGES = 8
"""Fewer show no range: the int8 model would saturate on images that are only a little brighter."""


def int8_bytes(path: Path, images: NDArray[np.uint8], card: Card) -> bytes:
    """Quantise an ONNX file.

    Args:
        path: The float32 model.
        images: For the ranges of the activations, uint8 `[n, c, h, w]`, from the domain that the model is for.
        card: Goes into the metadata.

    Raises:
        InputError: If the extra `export` is not installed.
    """
    onnx = extra("export", "onnx")
    quantization: Any = extra("export", "onnxruntime.quantization")
    shapes: Any = extra("export", "onnxruntime.quantization.shape_inference")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Gives the calibration images in parts, as the quantiser asks for them; made here, as its base is an extra."""

        def __init__(self) -> None:
            self.parts: Iterator[NDArray[np.uint8]] = iter(
                [np.ascontiguousarray(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
            )

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            """Return the next inputs by name, or None after the last."""
            part = next(self.parts, None)
            return None if part is None else {INPUT: part}

    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it warns, of itself, that files should be prepared, which they are
    try:
        with tempfile.TemporaryDirectory() as folder:
            ready, done = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
            shapes.quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(ready),
                str(done),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
            )
            return with_card(onnx, onnx.load(done), card)
    finally:
        root.setLevel(level)
