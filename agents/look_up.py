"""The tuned default per regime, from experience: for what is known of a task beforehand, the plan that was best there.

No feedback, and nothing but labels or none, source data or none is looked at. A policy has to beat it to show that it
looks at more.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from lepton_rl.agents.arms.found import CASES
from lepton_rl.agents.distill import clipped_returns
from lepton_rl.agents.experience import Experience
from lepton_rl.agents.plans import PLANS, Plan
from lepton_rl.controls import LOSS_TERMS, Controls, ControlSettings
from lepton_rl.errors import InputError


def look_up(experience: Sequence[Experience]) -> dict[str, Any]:
    """Return the content of `defaults/tuned-default-per-regime.json`.

    Plans that change something later than at the first decision are left out: the look-up is static.

    Raises:
        InputError: If a case has no task in the experience.
    """
    static = [number for number, plan in enumerate(PLANS) if not plan.last]
    settings, told = {}, {}
    for case in CASES:
        mine = [e for e in experience if _case(e) == case]
        if not mine:
            raise InputError(f"the experience holds no task that is {case}: expected some; collect more tasks")
        worth = clipped_returns(mine)
        best = max(static, key=lambda number: float(worth[:, number].mean()))
        start = ControlSettings(**mine[0].facts["settings"])
        settings[case] = asdict(moved(start, PLANS[best]))
        told[case] = {
            "plan": PLANS[best].name,
            "tasks": len(mine),
            "points_above_the_tuned_default": round(float(worth[:, best].mean()), 3),
        }
    return {
        "settings": settings,
        "search": {
            "what": "the best static plan of the experience",
            "cases": told,
            "plans": len(static),
            "tasks": len(experience),
            "runs": len(experience) * len(static),
            "steps": sum(len(static) * int(e.facts["budget"]) for e in experience),
        },
    }


def moved(start: ControlSettings, plan: Plan) -> ControlSettings:
    """Return the knobs after a plan's first decision."""
    row = Controls.start([start], torch.device("cpu")).apply(plan.actions(2)[:1]).row(0)
    return ControlSettings(
        learning_rate=row["learning_rate"],
        unfrozen_stages=int(row["unfrozen_stages"]),
        weights={term: row[term] for term in LOSS_TERMS},
        augmentation=row["augmentation"],
    )


def _case(e: Experience) -> str:
    return str(e.facts["regime"]) + (", source-free" if e.facts["source_free"] else "")
