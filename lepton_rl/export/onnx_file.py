"""A traced network as an ONNX file, with its card in the metadata."""

import io
import logging
import warnings
from contextlib import redirect_stdout
from typing import Any

from torch.export import ExportedProgram

from lepton_rl.errors import InputError
from lepton_rl.export.card import KEY, Card
from lepton_rl.export.program import BATCH, INPUT, OUTPUT
from lepton_rl.extras import extra


def onnx_bytes(program: ExportedProgram, card: Card) -> bytes:
    """Translate a program.

    Args:
        program: Its one input is called `images`, its output `logits`.
        card: Goes into the metadata.

    Raises:
        InputError: If ONNX lacks one of its operations, or the extra `export` is not installed.
    """
    import torch

    onnx = extra("export", "onnx")
    extra("export", "onnxscript")  # the translator
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        # What the translator says and prints is about itself.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program, (), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
            )
    except Exception as error:  # the translator raises many kinds; each means the same to the user
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(
            f"the network cannot be written as ONNX ({reason}): expected operations that ONNX has; "
            "use --formats torch, which takes any"
        ) from error
    assert made is not None
    model = made.model_proto
    _name_the_batch(model.graph)
    return with_card(onnx, model, card)


def with_card(onnx: Any, model: Any, card: Card) -> bytes:  # noqa: ANN401
    """Return the bytes of a model whose one metadata entry is the card."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, card.to_text()
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _name_the_batch(graph: Any) -> None:  # noqa: ANN401
    """Give the number of images a name that people know, in place of the tracer's."""
    old = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if old and dim.dim_param == old:
                dim.dim_param = BATCH
