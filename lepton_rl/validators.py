"""Scores of a model on visible data: higher is better, no gradient, one number per lane.

All arguments are keyword-only and their names declare which data a score may see, so that a leak shows in the
signature: `target_*` are unlabelled target images, `source_*` the source, `probe_*` the few labelled target
images. Logits are `[..., b, k]` with any leading lane dimensions; results are `[...]`. Padded classes are
large negative finite logits; `n_classes` (`[...]` or one number) then says how many are real.
"""

import math
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from lepton_rl.losses.cross_entropy import cross_entropy
from lepton_rl.losses.entropy import conditional_entropy, diversity


class TargetValidator(Protocol):
    """A score that sees the target's logits and nothing else."""

    def __call__(self, *, target_logits: Tensor, n_classes: Tensor | int | None = None) -> Tensor:
        """Return one number per lane, higher being better."""


@torch.no_grad()
def negative_entropy(*, target_logits: Tensor, n_classes: Tensor | int | None = None) -> Tensor:
    """Return minus the mean prediction entropy over log k, in -1..0. Collapse to one class scores best.

    Source: Morerio et al. 2018, "Minimal-entropy correlation alignment".
    """
    return -conditional_entropy(target_logits, n_classes)


@torch.no_grad()
def information_maximisation(
    *, target_logits: Tensor, n_classes: Tensor | int | None = None, log_prior: Tensor | float = 0.0
) -> Tensor:
    """Return `(H(mean p) - mean H(p)) / log k`, in 0..1: certain on each image, balanced over all.

    With a class prior (`log_prior` as in `losses.diversity`) the first term is `log k - KL(mean p, prior)`: certain on
    each image, over all as it is known.

    Source: Hu et al. 2017, "Learning discrete representations via information maximizing self-augmented
    training" (the mutual information term); Liang et al. 2020, "Do we really need to access the source
    data?".
    """
    return 1.0 - diversity(target_logits, n_classes, log_prior) - conditional_entropy(target_logits, n_classes)


@torch.no_grad()
def nuclear_norm(*, target_logits: Tensor, n_classes: Tensor | int | None = None) -> Tensor:
    """Return the nuclear norm of the predictions over its bound `sqrt(min(b, k) b)`, in 0..1.

    On a GPU the decomposition makes the host wait once for all lanes: a score for decisions, not for each
    step.

    Source: Cui et al. 2020, "Towards discriminability and diversity: batch nuclear-norm maximization".
    """
    b, k = target_logits.shape[-2:]
    norm: Tensor = torch.linalg.svdvals(target_logits.softmax(-1)).sum(-1)
    if isinstance(n_classes, Tensor):
        bound = (n_classes.to(norm.dtype).clamp(1.0, float(b)) * b).sqrt()
        return norm / bound
    return norm / math.sqrt(min(b, k if n_classes is None else n_classes) * b)


@torch.no_grad()
def soft_neighbourhood_density(*, target_features: Tensor, temperature: float = 0.05) -> Tensor:
    """Return how evenly each row shares its similarity among the others, over `log(b - 1)`, in 0..1.

    Args:
        target_features: features or probabilities `[..., b, d]`; each row is scaled to length 1. Fewer than
            three rows have no neighbourhood and score 0.
        temperature: of the softmax over cosine similarities; the paper uses 0.05.

    Source: Saito et al. 2021, "Tune it the right way: unsupervised validation via soft neighborhood density".
    """
    b = target_features.shape[-2]
    if b < 3:
        return target_features.new_zeros(target_features.shape[:-2])
    rows = torch.nn.functional.normalize(target_features, dim=-1)
    similarity = rows @ rows.mT / temperature
    itself = torch.eye(b, dtype=torch.bool, device=rows.device)
    p = similarity.masked_fill(itself, -torch.inf).softmax(-1)
    mean_entropy: Tensor = torch.special.entr(p).sum(-1).mean(-1)
    return mean_entropy / math.log(b - 1)


@torch.no_grad()
def prediction_density(*, target_logits: Tensor, n_classes: Tensor | int | None = None) -> Tensor:
    """Return the soft neighbourhood density of the predicted probabilities, as its authors use it, in 0..1.

    `n_classes` changes nothing here; it is accepted so that all target validators are called alike.
    """
    return soft_neighbourhood_density(target_features=target_logits.softmax(-1))


@torch.no_grad()
def mean_confidence(*, target_logits: Tensor, n_classes: Tensor | int | None = None) -> Tensor:
    """Return the mean probability of the predicted class, in 1/k..1.

    `n_classes` changes nothing here; it is accepted so that all target validators are called alike.

    Source: Guillory et al. 2021, "Predicting with confidence on unseen distributions".
    """
    return target_logits.softmax(-1).amax(-1).mean(-1)


@torch.no_grad()
def prior_match(*, target_logits: Tensor, source_prior: Tensor) -> Tensor:
    """Return minus the Jensen-Shannon divergence between mean prediction and source prior in bits, in -1..0.

    Args:
        target_logits: `[..., b, k]`.
        source_prior: class shares or counts of the source `[..., k]`, at least 0.

    Source: Lin 1991, "Divergence measures based on the Shannon entropy".
    """
    p = target_logits.softmax(-1).mean(-2)
    q = source_prior.to(p.dtype)
    q = q / q.sum(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
    entropies = [torch.special.entr(x).sum(-1) for x in (0.5 * (p + q), p, q)]
    divergence: Tensor = (entropies[0] - 0.5 * (entropies[1] + entropies[2])) / math.log(2.0)
    return -divergence.clamp(0.0, 1.0)


@torch.no_grad()
def agreement(*, target_logits: Tensor, reference_logits: Tensor) -> Tensor:
    """Return the share of target images with the same predicted class in both, in 0..1.

    `reference_logits` come from another model on the same target images: the start, or the last decision.
    """
    return (target_logits.argmax(-1) == reference_logits.argmax(-1)).to(target_logits.dtype).mean(-1)


@torch.no_grad()
def source_accuracy(*, source_logits: Tensor, source_labels: Tensor) -> Tensor:
    """Return the accuracy on source images, in 0..1; labels of -1 are ignored, 0 without any other."""
    return _accuracy(source_logits, source_labels)


@torch.no_grad()
def probe_accuracy(*, probe_logits: Tensor, probe_labels: Tensor) -> Tensor:
    """Return the accuracy on the probe, in 0..1; labels of -1 are ignored, 0 without any other."""
    return _accuracy(probe_logits, probe_labels)


@torch.no_grad()
def negative_probe_loss(*, probe_logits: Tensor, probe_labels: Tensor) -> Tensor:
    """Return minus the probe's cross-entropy in nats; labels of -1 are ignored, 0 without any other."""
    return -cross_entropy(probe_logits, probe_labels)


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of labelled rows whose predicted class is right."""
    labelled = labels >= 0
    right = (logits.argmax(-1) == labels) & labelled
    return right.sum(-1).to(logits.dtype) / labelled.sum(-1).clamp_min(1)


VALIDATORS: MappingProxyType[str, TargetValidator] = MappingProxyType(
    {
        "negative_entropy": negative_entropy,
        "information_maximisation": information_maximisation,
        "nuclear_norm": nuclear_norm,
        "prediction_density": prediction_density,
        "mean_confidence": mean_confidence,
    }
)
"""The label-free scores that need the target's logits only, by name."""
