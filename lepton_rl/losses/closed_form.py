"""Losses that bring their own derivative: a few operations instead of a graph of dozens.

The networks are small, so that a loss of forty operations on a few kilobytes takes as long as the network's
own layers. Where the derivative is short, it is written down (and checked against the numerical one in tests).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *tensors: Tensor) -> Tensor:  # noqa: ANN401
        """Return the value; the first half of `tensors` are the inputs, the second their gradients."""
        ctx.save_for_backward(*tensors[len(tensors) // 2 :])
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Scale the gradients, lane by lane."""
        gradients = ctx.saved_tensors
        factor = grad_outputs[0][..., None, None]
        return grad_outputs[0], *(factor * gradient for gradient in gradients), *(None for _ in gradients)


def with_gradient(value: Tensor, inputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
    """Return `value` as a differentiable function of `inputs` whose derivative is known.

    Args:
        value: `[...]`, computed without the graph of these inputs; that of others it keeps.
        inputs: What it depends on, each `[..., n, d]`.
        gradients: Of each lane's value, in the shapes of `inputs`.
    """
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in (value, *inputs)):
        return value
    out: Tensor = _Known.apply(value, *inputs, *gradients)  # type: ignore[no-untyped-call]
    return out


def of_logits(logits: Tensor, loss: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Return a loss of predictions as a differentiable function of the logits.

    Args:
        logits: `[..., b, k]`.
        loss: From log-probabilities to the value `[...]` and its gradient by the logits.
    """
    with torch.no_grad():
        value, gradient = loss(logits.log_softmax(-1))
    return with_gradient(value, (logits,), (gradient,))
