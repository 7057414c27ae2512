"""Logits out of what a model returns."""

from collections.abc import Mapping

from torch import Tensor


def logits_of(output: object) -> object:
    """Return `output.logits` (or `output["logits"]`) where there is one, as Hugging Face's models do, else `output`."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return output if found is None else found


def as_logits(output: object) -> Tensor:
    """Return the logits of a model that has passed `check_model`."""
    logits = logits_of(output)
    assert isinstance(logits, Tensor)
    return logits
