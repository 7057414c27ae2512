"""Self-training on confident predictions."""

import torch
from torch import Tensor


def pseudo_label(logits: Tensor, threshold: float = 0.9) -> Tensor:
    """Return the cross-entropy to the predicted classes of confident rows, divided by the batch size.

    Dividing by the batch, not by the number of confident rows, lets the loss grow with confidence and stay 0
    while nothing is confident. Neither the labels nor the choice of rows carries a gradient.

    Args:
        logits: `[..., b, k]`.
        threshold: least probability of the predicted class, 0..1.

    Returns:
        Nats, `[...]`, at least 0.

    Source: Lee 2013, "Pseudo-label", equation 15; the threshold and the mean of Sohn et al. 2020, "FixMatch",
    equation 4 (here both sides see the same image).
    """
    log_p = logits.log_softmax(-1)
    labels = log_p.detach().argmax(-1, keepdim=True)
    row_loss = -log_p.gather(-1, labels).squeeze(-1)
    confident = (-row_loss.detach()).exp() >= threshold
    return torch.where(confident, row_loss, torch.zeros_like(row_loss)).mean(-1)
