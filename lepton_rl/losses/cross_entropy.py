"""Cross-entropy over the labelled rows of a batch."""

import torch
from torch import Tensor


def cross_entropy(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, *, n_classes: Tensor | int | None = None
) -> Tensor:
    """Return the mean cross-entropy of the labelled rows, 0 for a lane without any.

    Args:
        logits: `[..., b, k]`.
        labels: integers `[..., b]` in -1..k-1; -1 means unlabelled and is ignored.
        label_smoothing: share of the target spread evenly over the classes, 0..1.
        n_classes: number of real classes, `[...]` or one for all lanes (default k). Columns from `n_classes`
            on are padding; they get no smoothing mass. Without smoothing it changes nothing.

    Returns:
        Nats, `[...]`, at least 0.

    Source: Szegedy et al. 2016, "Rethinking the Inception architecture", section 7 (label smoothing).
    """
    log_p = logits.log_softmax(-1)
    # The clamp only makes -1 a legal index: those rows are zeroed below.
    row_loss = -log_p.gather(-1, labels.long().clamp_min(0).unsqueeze(-1)).squeeze(-1)
    if label_smoothing:
        uniform_loss = -_mean_over_classes(log_p, n_classes)
        row_loss = (1.0 - label_smoothing) * row_loss + label_smoothing * uniform_loss
    labelled = labels >= 0
    total = torch.where(labelled, row_loss, torch.zeros_like(row_loss)).sum(-1)
    return total / labelled.sum(-1).clamp_min(1)


def cross_entropy_of(log_p: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return `cross_entropy` of log-probabilities and its gradient by the logits, `(p - label) / labelled rows`."""
    labelled = (labels >= 0).to(log_p.dtype).unsqueeze(-1)
    share = labelled / labelled.sum(-2, keepdim=True).clamp_min(1)
    index = labels.clamp_min(0).unsqueeze(-1)
    value = -(log_p.gather(-1, index) * share).sum((-2, -1))
    gradient = log_p.exp()
    gradient.scatter_add_(-1, index, gradient.new_full((), -1.0).expand(index.shape))
    return value, gradient * share


def _mean_over_classes(log_p: Tensor, n_classes: Tensor | int | None) -> Tensor:
    """Average `[..., b, k]` over the first `n_classes` columns."""
    if n_classes is None:
        return log_p.mean(-1)
    if isinstance(n_classes, int):
        return log_p[..., :n_classes].mean(-1)
    real = torch.arange(log_p.shape[-1], device=log_p.device) < n_classes[..., None, None]
    return torch.where(real, log_p, torch.zeros_like(log_p)).sum(-1) / n_classes[..., None]
