"""Map the layer groups of any network onto four stages and a head.

The knob *unfrozen stages* counts from the head downwards: 0 trains the head alone, 4 trains everything.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import nn

from lepton_rl.errors import InputError

N_STAGES = 4
HEAD = N_STAGES  # index of the head behind the four stages
N_GROUPS = N_STAGES + 1


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Which modules belong to which stage.

    Attributes:
        stages: For each of the four stages the dotted names of its modules; a stage may be empty in a
            network with fewer layer groups.
        head: Dotted name of the classifier; its input is the feature vector.
    """

    stages: tuple[tuple[str, ...], ...]
    head: str

    def group_of(self, parameter_name: str) -> int:
        """Return the stage (0..3) of a parameter or buffer, or `HEAD`; what no group claims is stage 0."""
        for group, prefixes in enumerate((*self.stages, (self.head,))):
            if any(_inside(parameter_name, prefix) for prefix in prefixes):
                return group
        return 0


def _inside(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def find_stages(model: nn.Module) -> StagePlan:
    """Find the layer groups of a network.

    The head is the last `nn.Linear`. The modules before it are taken at the coarsest level that has at
    least four groups with parameters, and dealt evenly, in order, onto the four stages.

    Args:
        model: Any network from images to logits.

    Raises:
        InputError: If the model has no parameters, or no linear layer that could be the head.
    """
    if not any(True for _ in model.parameters()):
        raise InputError(
            f"model {type(model).__name__} has no parameters: expected a network with weights; pass a trained one"
        )
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError(
            f"model {type(model).__name__} has no nn.Linear layer: expected a linear classifier as its head; "
            "wrap the network so that it ends in one"
        )
    head = linear[-1]
    units = [name for name in _units(model, head) if not _inside(head, name)]
    parts = np.array_split(np.array(units, dtype=object), N_STAGES)
    return StagePlan(stages=tuple(tuple(str(name) for name in part) for part in parts), head=head)


def _units(model: nn.Module, head: str) -> list[str]:
    """Open containers from the top until four groups with parameters lie before the head."""
    units = _children("", model)
    while sum(not _inside(head, unit) for unit in units) < N_STAGES:
        opened = [inner for unit in units for inner in _children(unit, model) or [unit]]
        if opened == units:
            break
        units = opened
    # A container that also holds the head must be opened, or its other layers would never be trained.
    while any(_inside(head, unit) and unit != head for unit in units):
        units = [
            inner
            for unit in units
            for inner in (_children(unit, model) if _inside(head, unit) and unit != head else [unit])
        ]
    return units


def _children(name: str, model: nn.Module) -> list[str]:
    module = model.get_submodule(name)
    prefix = f"{name}." if name else ""
    return [prefix + child for child, inner in module.named_children() if _has_parameters(inner.parameters())]


def _has_parameters(parameters: Iterable[object]) -> bool:
    return any(True for _ in parameters)
