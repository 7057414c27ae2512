"""Feature vectors of a network: what reaches its head."""

import torch
from torch import Tensor, nn

from lepton_rl.domain import Domain
from lepton_rl.preprocessing import Preprocessing, logits


def features_and_logits(
    model: nn.Module, head: str, domain: Domain, preprocessing: Preprocessing
) -> tuple[Tensor, Tensor]:
    """Run a model in evaluation mode over images.

    Args:
        model: From standardised images to logits.
        head: Dotted name of its linear classifier.
        domain: The images; labels are not looked at.
        preprocessing: The way into the model.

    Returns:
        Features `[n, d]` and logits `[n, k]`, float32 on the CPU.
    """
    seen: list[Tensor] = []
    hook = model.get_submodule(head).register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].detach().flatten(1).float().cpu())
    )
    try:
        found = logits(model, domain, preprocessing)
    finally:
        hook.remove()
    return torch.cat(seen), found
