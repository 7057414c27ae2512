"""What the package makes of a model: its layer groups, as the knob *unfrozen stages* counts them."""

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lepton_rl.stages import HEAD, N_GROUPS, StagePlan, find_stages


@dataclass(frozen=True, kw_only=True)
class LayerGroup:
    """One of the four stages, or the head.

    Attributes:
        name: `stage 1` (next to the image) .. `stage 4`, `head`.
        modules: Dotted names of what belongs to it.
        parameters: Number of weights.
        batch_norms: Number of batch normalisation layers, which keep statistics of each domain.
        other_norms: Number of layer, group, instance and other normalisation layers, which keep none.
        unfrozen_from: Smallest value of the knob *unfrozen stages* that trains the group.
    """

    name: str
    modules: tuple[str, ...]
    parameters: int
    batch_norms: int
    other_norms: int
    unfrozen_from: int


def layer_groups(model: nn.Module, plan: StagePlan | None = None) -> list[LayerGroup]:
    """List the layer groups of a model, from the image to the head.

    Args:
        model: The network.
        plan: Its layer groups; default those that are found.

    Raises:
        InputError: If the model has no parameters or no linear head.
    """
    plan = plan or find_stages(model)
    parameters, norms, others = [0] * N_GROUPS, [0] * N_GROUPS, [0] * N_GROUPS
    for name, parameter in model.named_parameters():
        parameters[plan.group_of(name)] += parameter.numel()
    for name, module in model.named_modules():
        norms[plan.group_of(name)] += isinstance(module, _BatchNorm)
        others[plan.group_of(name)] += _keeps_nothing(module)
    modules = (*plan.stages, (plan.head,))
    return [
        LayerGroup(
            name="head" if group == HEAD else f"stage {group + 1}",
            modules=modules[group],
            parameters=parameters[group],
            batch_norms=norms[group],
            other_norms=others[group],
            unfrozen_from=HEAD - group,
        )
        for group in range(N_GROUPS)
    ]


def _keeps_nothing(module: nn.Module) -> bool:
    named = "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False))
    return named and not isinstance(module, _BatchNorm)
