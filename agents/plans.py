"""A small portfolio of plans: what a careful person would do instead of the tuned default, and when.

Each plan is a change of a few knobs at the first decision, some with one at the last, within what one action can do.
Playing every plan on a training task tells how good each is there, not only the one that was tried: full information,
where exploring at random would need a hundred times the runs to see an effect of a point.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lepton_rl.controls import ACTION_SIZES, KEEP, KNOBS

FAR_DOWN, DOWN, UP, FAR_UP = 0, 1, 3, 4  # of the knobs that are scaled: /6, /2.5, x2.5, x6
LESS, MORE = 0, 2  # of unfreeze and augmentation


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sub-actions other than keep, by knob.

    Attributes:
        name: For people.
        first: At the first decision.
        last: At the last decision.
        stop: Share of the decisions after which the run is stopped; None = it goes on to the end.
    """

    name: str
    first: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    stop: float | None = None

    def end(self, decisions: int) -> int:
        """Return after how many decisions with gradient steps the run is over."""
        return decisions if self.stop is None else int(self.stop * decisions)

    def actions(self, decisions: int) -> Tensor:
        """Return the plan's actions, int64 `[decisions, 12]`."""
        found = torch.tensor(KEEP).repeat(decisions, 1)
        for at, moves in ((0, self.first), (decisions - 1, self.last)):
            for knob, action in moves.items():
                number = KNOBS.index(knob)
                assert 0 <= action < ACTION_SIZES[number], (self.name, knob, action)
                found[at, number] = action
        if self.stop is not None:
            found = found[: self.end(decisions) + 1]
            found[-1, KNOBS.index("stop")] = 1
        return found


_PLAIN = {"entropy": FAR_DOWN, "diversity": FAR_DOWN, "self_training": FAR_DOWN, "alignment": FAR_DOWN}
_CERTAIN = {"entropy": FAR_UP, "source": FAR_UP, "adversarial": FAR_UP, "self_training": FAR_DOWN}
_SURE_AND_DIVERSE = {"self_training": FAR_UP, "entropy": UP, "diversity": UP}
_SURE = {"self_training": FAR_UP, "entropy": UP, "diversity": FAR_DOWN}
_SURER = {"self_training": FAR_UP, "entropy": FAR_UP, "diversity": DOWN}

PLANS = (
    Plan(name="tuned default"),
    Plan(name="rate up", first={"learning_rate": UP}),
    Plan(name="rate down", first={"learning_rate": DOWN}),
    Plan(name="rate far down", first={"learning_rate": FAR_DOWN}),
    Plan(name="no diversity", first={"diversity": FAR_DOWN}),
    Plan(name="entropy for diversity", first={"diversity": FAR_DOWN, "entropy": UP}),
    Plan(name="entropy far up, diversity down", first={"diversity": DOWN, "entropy": FAR_UP}),
    Plan(name="entropy and diversity", first={"entropy": UP, "diversity": FAR_UP}),
    Plan(name="certain", first=_CERTAIN),
    Plan(name="certain and slow", first=_CERTAIN | {"learning_rate": DOWN, "unfreeze": LESS}),
    Plan(name="certain, no diversity", first=_CERTAIN | {"diversity": FAR_DOWN}),
    Plan(name="self-training", first={"self_training": FAR_UP}),
    Plan(name="self-training, no diversity", first={"self_training": FAR_UP, "diversity": FAR_DOWN}),
    Plan(name="labels only", first=_PLAIN),
    Plan(name="labels only, slow", first=_PLAIN | {"learning_rate": DOWN}),
    Plan(name="labels only, rate up", first=_PLAIN | {"learning_rate": UP}),
    Plan(name="adversary", first={"adversarial": FAR_UP, "source": UP}),
    Plan(name="alignment", first={"alignment": FAR_UP}),
    Plan(name="little source", first={"source": FAR_DOWN}),
    Plan(name="augmented source", first={"augmentation": MORE, "source": UP}),
    Plan(name="lowest stage frozen", first={"unfreeze": LESS}),
    Plan(name="half-way back at the end", last={"transfer": 1}),
    Plan(name="self-training, slow", first={"self_training": FAR_UP, "learning_rate": DOWN}),
    Plan(name="self-training, certain", first=_CERTAIN | {"self_training": UP}),
    Plan(name="self-training, diversity down", first={"self_training": FAR_UP, "diversity": DOWN}),
    Plan(name="self-training, little source", first={"self_training": FAR_UP, "source": DOWN}),
    Plan(name="self-training, entropy and diversity", first=_SURE_AND_DIVERSE),
    Plan(name="certain and very slow", first=_CERTAIN | {"learning_rate": FAR_DOWN}),
    Plan(
        name="certain and slow, half-way back at the end",
        first=_CERTAIN | {"learning_rate": DOWN, "unfreeze": LESS},
        last={"transfer": 1},
    ),
    Plan(name="slow, half-way back at the end", first={"learning_rate": DOWN}, last={"transfer": 1}),
    Plan(name="diversity far up, slow", first={"diversity": FAR_UP, "learning_rate": DOWN}),
    # What was good by itself, together.
    Plan(name="self-training, entropy and diversity, little source", first=_SURE_AND_DIVERSE | {"source": DOWN}),
    Plan(name="self-training, entropy and diversity, slow", first=_SURE_AND_DIVERSE | {"learning_rate": DOWN}),
    Plan(name="self-training, entropy and diversity, rate up", first=_SURE_AND_DIVERSE | {"learning_rate": UP}),
    Plan(
        name="self-training, entropy and diversity far up",
        first={"self_training": FAR_UP, "entropy": FAR_UP, "diversity": FAR_UP},
    ),
    Plan(
        name="self-training, entropy and diversity far up, little source",
        first={"self_training": FAR_UP, "entropy": FAR_UP, "diversity": FAR_UP, "source": FAR_DOWN},
    ),
    Plan(name="entropy and diversity, little source", first={"entropy": UP, "diversity": FAR_UP, "source": DOWN}),
    Plan(name="self-training, rate up", first={"self_training": FAR_UP, "learning_rate": UP}),
    Plan(name="self-training, entropy for diversity", first=_SURE),
    Plan(name="self-training, entropy for diversity, slow", first=_SURE | {"learning_rate": DOWN}),
    Plan(name="self-training, entropy far up, diversity down", first=_SURER),
    Plan(name="self-training, entropy far up, diversity down, little source", first=_SURER | {"source": DOWN}),
    Plan(
        name="self-training, diversity down, slow",
        first={"self_training": FAR_UP, "diversity": DOWN, "learning_rate": DOWN},
    ),
    Plan(
        name="self-training, diversity down, little source",
        first={"self_training": FAR_UP, "diversity": DOWN, "source": DOWN},
    ),
)

STOPPED = (Plan(name="stop at once", stop=0.0), Plan(name="stop half-way", stop=0.5))
"""The tuned default, ended early; what that gives can be read off the tuned default's own run."""
CHOICES = (*PLANS, *STOPPED)
