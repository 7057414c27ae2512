"""Print what there is to gain over the tuned default on collected tasks; see `lepton_rl.agents.headroom`."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from lepton_rl.agents.ablation import ablation_table, cloning_table, control_variate, strangers_table
from lepton_rl.agents.distill import choose_plans
from lepton_rl.agents.experience import read_experience, read_glances
from lepton_rl.agents.guarding import expected_gains, guard_table
from lepton_rl.agents.headroom import headroom_table, plans_table
from lepton_rl.agents.plans import PLANS
from lepton_rl.cli import exit_code
from lepton_rl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Headroom of tasks, what each plan is worth, and how much of it can be told from the first signals."""

    experience: Path = Path("runs/experience")
    """Folder of scripts/collect_experience.py."""
    seeds: int = 5
    """Seeds of the ablation, each with its own trees and folds."""


def _headroom() -> int:
    arguments = tyro.cli(Arguments)
    experience = read_experience(arguments.experience)
    if not experience:
        raise InputError(f"experience {str(arguments.experience)!r} holds no task: expected .safetensors files")
    choice = choose_plans(experience)
    print(headroom_table(experience), plans_table(experience), sep="\n\n", end="\n\n")
    print(f"one plan for all tasks, chosen on other tasks: {choice.single:+.2f} points above the tuned default")
    print(f"a plan by the first signals, chosen on other tasks: {choice.gain:+.2f} ± {choice.standard_error:.2f}")
    print("\n" + ablation_table(experience, arguments.seeds), end="\n\n")
    print(strangers_table(experience, arguments.seeds), end="\n\n")
    print(cloning_table(experience, read_glances(arguments.experience), arguments.seeds), end="\n\n")
    expected = [expected_gains(experience, seed) for seed in range(arguments.seeds)]
    chosen = np.where(choice.plans < len(PLANS), choice.plans, 0)  # a run that is stopped is not played on
    for runs, plans in (("the tuned default's runs", np.zeros_like(chosen)), ("the chosen plans' runs", chosen)):
        print(f"points above the untouched network, {runs}:\n\n{guard_table(experience, plans, expected)}\n")
    raw, paid = control_variate(experience)
    print(f"standard deviation of a run's return: {raw:.2f} points; less the tuned default's run: {paid:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(_headroom))
