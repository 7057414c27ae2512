"""The small networks of a policy file: linear layers with tanh between them."""

import torch
from torch import Tensor

Layers = tuple[tuple[Tensor, Tensor], ...]
"""Weights `[out, in]` and biases `[out]`, from the input to the output."""


def feed_forward(x: Tensor, layers: Layers) -> Tensor:
    """Return the outputs, `[..., in]` -> `[..., out]`."""
    *hidden, last = layers
    for weight, bias in hidden:
        x = torch.tanh(x @ weight.T + bias)
    return x @ last[0].T + last[1]
