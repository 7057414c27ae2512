"""What meta-training cost, beside what it saves on every new domain: the second ledger of a benchmark.

A policy pays when the runs that it saves on new domains outweigh the runs that it was trained on. The numbers are
read from the cards of the policies under test and from the file of the tuned default, which policies start from.
"""

import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

from lepton_rl.run import DECISIONS

GOAL = "policy"
Card = Mapping[str, Any]


def ledger(summary: Mapping[str, Any], cards: Mapping[str, Card], default: Card | None = None) -> dict[str, Any]:
    """Return both ledgers.

    Args:
        summary: Of the benchmark: runs to match, steps and seconds per arm.
        cards: Cards of the policies under test by their marks.
        default: Content of the tuned default's file; None reads the package's.

    Returns:
        `training` (per policy `runs`, `steps`, `seconds`; None where the card does not say), `default` (the search
        of the tuned default), and `pays_off`: per tuner the number of new domains at which the steps that one run
        saves are more than those of meta-training, None = never.
    """
    arms = summary["arms"]
    mine = arms.get(GOAL)
    if mine is None:
        return {}
    one = next(iter(mine["by_runs"].values()))
    pace = one["seconds"] / one["steps"] if one["steps"] else None
    training = {mark: training_cost(card, one["steps"], pace) for mark, card in sorted(cards.items())}
    search = search_cost(tuned_default_file() if default is None else default, one["steps"], pace)
    known = [cost["steps"] for cost in training.values() if cost["steps"] is not None]
    if not known:
        return {"training": training, "default": search, "pays_off": {}}
    spent = max(known) + (search["steps"] or 0)
    pays = {}
    for arm, match in summary["runs_to_match"].items():
        runs = match["median"] or match["largest"]
        if runs is None:
            continue
        reached = arms[arm]["by_runs"][str(runs)]["steps"]
        pays[arm] = {
            "runs": match["median"],
            "at_least": match["median"] is None,  # it never matched: more runs than the most that were tried
            "saved_steps": reached - one["steps"],
            "domains": _domains(spent, reached - one["steps"]),
        }
    return {"training": training, "default": search, "pays_off": pays}


def training_cost(card: Card, steps: float, pace: float | None) -> dict[str, float | None]:
    """Return what training a policy took, by its card.

    A card may say so itself (`cost`: `runs`, `steps`, `seconds`). Otherwise it follows from the arguments of `lepton
    train`: a run has at most eight decisions, every training task and every validation task is played once by the
    tuned default too, and a run takes as many steps as the policy's here. The experience that it was distilled from is
    counted as the card says (`experience`: `runs`, `steps`).

    Args:
        card: Of the policy.
        steps: Gradient steps of one run of the policy.
        pace: Seconds per gradient step.
    """
    said = card.get("cost")
    if isinstance(said, dict):
        return {key: said.get(key) for key in ("runs", "steps", "seconds")}
    try:
        told = card["arguments"]
        played = told["rollouts"] * told["n_envs"] * told["n_steps"] / DECISIONS
        validations = math.ceil(told["rollouts"] / told["validate_every"]) + 1
        runs = math.ceil(played + min(told["tasks"], played) + validations * told["validation_tasks"])
        before = card.get("experience", {"runs": 0, "steps": 0})
        return _cost(runs + before["runs"], runs * steps + before["steps"], pace)
    except (KeyError, TypeError, ZeroDivisionError):
        return {"runs": None, "steps": None, "seconds": None}


def search_cost(found: Card, steps: float, pace: float | None) -> dict[str, float | None]:
    """Return what the search of the tuned default took, by its file."""
    told = found.get("search", {})
    runs = told.get("games", told.get("runs"))
    if runs is None:
        return {"runs": None, "steps": None, "seconds": told.get("seconds")}
    cost = _cost(runs, told.get("steps", runs * steps), pace)
    return cost | ({"seconds": told["seconds"]} if "seconds" in told else {})


def tuned_default_file() -> Card:
    """Return the content of the package's tuned default."""
    text = resources.files("lepton_rl").joinpath("defaults/tuned-default.json").read_text(encoding="utf-8")
    found: Card = json.loads(text)
    return found


def _cost(runs: float, steps: float, pace: float | None) -> dict[str, float | None]:
    return {"runs": float(runs), "steps": float(steps), "seconds": None if pace is None else steps * pace}


def _domains(spent: float, saved: float) -> int | None:
    return math.ceil(spent / saved) if saved > 0 else None
