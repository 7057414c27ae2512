"""Self-training on confident predictions."""

from torch import Tensor

from lepton_rl.losses.closed_form import of_logits


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
    return of_logits(logits, lambda log_p: pseudo_label_of(log_p, threshold))


def pseudo_label_of(log_p: Tensor, threshold: float = 0.9) -> tuple[Tensor, Tensor]:
    """Return `pseudo_label` of log-probabilities and its gradient by the logits, `(p - label) / b` where confident."""
    best, labels = log_p.max(-1, keepdim=True)
    confident = (best.exp() >= threshold).to(log_p.dtype) / log_p.shape[-2]
    gradient = log_p.exp()
    gradient.scatter_add_(-1, labels, gradient.new_full((), -1.0).expand(labels.shape))
    return -(best * confident).sum((-2, -1)), gradient * confident
