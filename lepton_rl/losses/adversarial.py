"""Domain-adversarial training: gradient reversal and the discriminator's loss."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class GradientReversal(torch.autograd.Function):
    """Identity forwards; multiplies the gradient by `-strength` backwards."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, strength: Tensor) -> Tensor:
        """Return `x` unchanged."""
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ANN401
        """Keep the strength for the backward pass."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """Reverse and scale the gradient."""
        (strength,) = ctx.saved_tensors
        return -strength * grad_outputs[0], None


def reverse_gradient(x: Tensor, strength: Tensor | float = 1.0) -> Tensor:
    """Return `x`; in the backward pass its gradient is multiplied by `-strength`.

    Args:
        x: features `[..., b, d]`.
        strength: the factor, at least 0, usually 0..1: one number, or one per lane `[...]` (the leading
            dimensions of `x`). It gets no gradient.

    Source: Ganin & Lempitsky 2015, "Unsupervised domain adaptation by backpropagation", section 3.2.
    """
    # new_full fills on the device: a copy from the host would make the device wait.
    factor = strength.to(x.dtype) if isinstance(strength, Tensor) else x.new_full((), strength)
    factor = factor.reshape(factor.shape + (1,) * (x.ndim - factor.ndim))
    reversed_x: Tensor = GradientReversal.apply(x, factor)  # type: ignore[no-untyped-call]
    return reversed_x


def domain_adversarial(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """Return the discriminator's binary cross-entropy, each domain weighing one half.

    Feed it logits computed from `reverse_gradient(features)`: the discriminator then learns to tell the
    domains apart and the network to make them alike. `log 2` is chance.

    Args:
        logits_s: the discriminator's logits of source rows `[..., b_s]` (domain 0).
        logits_t: the same of target rows `[..., b_t]` (domain 1); a positive logit says "target".

    Returns:
        Nats, `[...]`, at least 0.

    Source: Ganin & Lempitsky 2015, section 3.1 (the domain loss), here with the domains weighted equally.
    """
    loss_s = -functional.logsigmoid(-logits_s).mean(-1)
    loss_t = -functional.logsigmoid(logits_t).mean(-1)
    return 0.5 * (loss_s + loss_t)
