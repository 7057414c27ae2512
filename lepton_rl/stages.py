"""Map the layer groups of any network onto four stages and a head.

The knob *unfrozen stages* counts from the head downwards: 0 trains the head alone, 4 trains everything.
"""

from collections.abc import Iterable, Sequence
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


def plan_of(model: nn.Module, stages: Sequence[Sequence[str]] | None, head: str | None) -> StagePlan:
    """Return the layer groups of a model: those given, or those found.

    Raises:
        TypeError: If the groups are no sequences of names.
        InputError: As `find_stages` and `stages_by_hand`.
    """
    if stages is None:
        return find_stages(model, head)
    if isinstance(stages, str) or any(isinstance(group, str) for group in stages):
        raise TypeError(f"stages are {stages!r}: expected groups of module names, for example [['conv1'], ['layer1']]")
    return stages_by_hand(model, stages, head)


def find_stages(model: nn.Module, head: str | None = None) -> StagePlan:
    """Find the layer groups of a network.

    The head is the last `nn.Linear`. The modules before it are taken at the coarsest level that has at
    least four groups with parameters, and dealt evenly, in order, onto the four stages. A normalisation
    layer belongs to what stands before it.

    Args:
        model: Any network from images to logits.
        head: Dotted name of the classifier, where it is not the last `nn.Linear`.

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
    if head is not None and head not in linear:
        raise InputError(
            f"head {head!r} is no nn.Linear of the model: expected one of {', '.join(map(repr, linear[-4:]))}; "
            "see lepton inspect MODEL"
        )
    head = head or linear[-1]
    groups = _groups(model, head)
    parts = np.array_split(np.arange(len(groups)), N_STAGES)
    stages = tuple(tuple(name for i in part for name in groups[i]) for part in parts)
    return StagePlan(stages=stages, head=head)


def stages_by_hand(model: nn.Module, stages: Sequence[Sequence[str]], head: str | None = None) -> StagePlan:
    """Return a plan that a person wrote.

    Args:
        model: The network.
        stages: One to four groups of dotted module names, from the image to the head; fewer than four leave
            the lowest stages empty. What no group claims is never trained before the whole network is.
        head: Dotted name of the linear classifier; default the last `nn.Linear`.

    Raises:
        InputError: If a name is no module with weights, stands in two groups, or the head is not linear.
    """
    head = find_stages(model, head).head
    modules = dict(model.named_modules())
    if not 1 <= len(stages) <= N_STAGES:
        raise InputError(f"stages are {len(stages)} groups: expected 1 to {N_STAGES}, from the image to the head")
    names = [name for group in stages for name in group]
    for name in names:
        if name not in modules or not name or not _has_parameters(modules[name].parameters()):
            raise InputError(
                f"stages name {name!r}, which is no module with weights: expected names such as "
                f"{', '.join(map(repr, _children('', model)[:4]))}; see lepton inspect MODEL"
            )
        inside = [other for other in (*names, head) if other != name and _inside(other, name)]
        if inside or names.count(name) > 1 or name == head:
            raise InputError(
                f"stages name {name!r} beside {(inside or [name])[0]!r}, which is part of it: expected every module "
                "in one group, and the head in none; name its parts"
            )
    empty = ((),) * (N_STAGES - len(stages))
    return StagePlan(stages=(*empty, *(tuple(group) for group in stages)), head=head)


def _groups(model: nn.Module, head: str) -> list[list[str]]:
    """List what lies before the head at the coarsest level that gives every stage a group, if there is one."""
    units = _children("", model)
    while len(_joined(model, units, head)) < N_STAGES:
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
    return _joined(model, units, head)


def _joined(model: nn.Module, units: list[str], head: str) -> list[list[str]]:
    """Put normalisation layers, which change nothing but scales, into the group of the unit before them."""
    groups: list[list[str]] = []
    starts = True
    for unit in units:
        if _inside(head, unit):
            continue
        norm = _only_normalises(model.get_submodule(unit))
        if groups and (norm or starts):
            groups[-1].append(unit)
        else:
            groups.append([unit])
        starts = norm and len(groups) == 1 and starts  # a layer that normalises the images joins what follows
    return groups


def _only_normalises(module: nn.Module) -> bool:
    owners = [type(m).__name__ for m in module.modules() if _has_parameters(m.parameters(recurse=False))]
    return bool(owners) and all("norm" in name.lower() for name in owners)


def _children(name: str, model: nn.Module) -> list[str]:
    module = model.get_submodule(name)
    prefix = f"{name}." if name else ""
    return [prefix + child for child, inner in module.named_children() if _has_parameters(inner.parameters())]


def _has_parameters(parameters: Iterable[object]) -> bool:
    return any(True for _ in parameters)
