"""The arms of the benchmark, by name. A new arm is one small file and one line here (docs/add-an-arm.md)."""

import difflib
from pathlib import Path

from lepton_rl.agents.arm import Arm, PolicyArm, SingleArm, Trial, TunerArm, best_so_far
from lepton_rl.agents.arms import (
    adabn,
    auto_rgn,
    found,
    full_finetune,
    gradual_unfreezing,
    learned,
    linear_probe,
    lp_ft,
    optuna_search,
    population_based,
    random_policy,
    replayed,
    source_only,
    tuned_default,
)
from lepton_rl.errors import InputError
from lepton_rl.policy import Policy

__all__ = [
    "Arm",
    "PolicyArm",
    "SingleArm",
    "Trial",
    "TunerArm",
    "arm_names",
    "best_so_far",
    "closest",
    "find_arm",
    "register",
    "unregister",
]

_ARMS: dict[str, Arm] = {}


def register(arm: Arm) -> Arm:
    """Make an arm known by its name.

    Worker processes import the module in which you call this, so call it at the top level of a module.

    Raises:
        InputError: If the name is taken, or the arm neither runs once nor searches.
    """
    if not isinstance(arm, SingleArm | TunerArm):
        raise InputError(f"arm {arm!r} cannot run: expected a SingleArm or a TunerArm; subclass one of them")
    if _ARMS.get(arm.name, arm) != arm:
        raise InputError(f"arm {arm.name!r} exists already: expected a new name; give the arm another one")
    _ARMS[arm.name] = arm
    return arm


def unregister(name: str) -> None:
    """Forget an arm, for tests."""
    _ARMS.pop(name, None)


def arm_names() -> list[str]:
    """Return the names of all arms in the order of registration."""
    return list(_ARMS)


def find_arm(name: str, policy: str | Path | Policy | None = None) -> Arm:
    """Return an arm by name.

    Args:
        name: For example `tpe`.
        policy: The policy under test, for arms that run it; None leaves the arm unbound.

    Raises:
        InputError: If there is no such arm or policy.
    """
    if name not in _ARMS:
        raise InputError(f"arm {name!r} is unknown: {closest(name, arm_names())}")
    arm = _ARMS[name]
    return arm if policy is None else arm.bind(policy)


def closest(name: str, known: list[str]) -> str:
    """Say which known name is nearest to a mistyped one, and all that there are."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return (f"did you mean {near[0]!r}? " if near else "") + f"expected one of {', '.join(known)}"


for _arm in (
    source_only.ARM,
    adabn.ARM,
    linear_probe.ARM,
    full_finetune.ARM,
    lp_ft.ARM,
    gradual_unfreezing.ARM,
    auto_rgn.ARM,
    tuned_default.ARM,
    *found.ARMS,
    random_policy.ARM,
    learned.ARM,
    learned.SHUFFLED,
    replayed.ARM,
    *optuna_search.ARMS,
    *population_based.ARMS,
):
    register(_arm)
