"""A learned guard: what the weights at the end of a run are worth against the untouched network, told from signals.

Scores without labels rise whenever a network becomes surer, rightly or not, and a handful of labels tells little. A
guard has seen many training tasks to their true end, and says in points of accuracy what to expect from signals like
these. It is learned by `lepton_rl.agents.guarding` and lies in the policy file.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lepton_rl.perceptron import Layers, feed_forward
from lepton_rl.signals import MEASURED_NAMES, SIGNALS
from lepton_rl.standardise import Standardiser

EVIDENCE = 2 * len(SIGNALS) + len(MEASURED_NAMES) + 2


def evidence(*, now: Tensor, start: Tensor, original: Tensor, score: Tensor, original_score: Tensor) -> Tensor:
    """Return what a guard looks at.

    Args:
        now: Observation of the weights in question, `[..., signals]`.
        start: First observation of the run, `[..., signals]`. It is of the network under the target's normalisation
            statistics, which is not what a user had before.
        original: Measured signals of the untouched network under the source's statistics, which is, `[..., 18]`.
        score: Visible score of the weights in question, `[...]`.
        original_score: Of the untouched network, `[...]`.

    Returns:
        `[..., EVIDENCE]`.
    """
    return torch.cat([now, start, original, score[..., None], original_score[..., None]], dim=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Guard:
    """A network from evidence to expected points.

    Attributes:
        inputs: From the evidence of the training.
        layers: Weights `[out, in]` and biases `[out]`, hidden ones followed by tanh; the last has one output.
        margin: Points that have to be expected, or the original is kept. Up to 0 a gain that a probe shows counts as
            well, and below 0 the run is trusted until so much of a loss is expected; above 0 the guard alone decides.
    """

    inputs: Standardiser
    layers: Layers
    margin: float

    def gain(self, seen: Tensor) -> Tensor:
        """Return the points of accuracy expected above the untouched network, `[..., EVIDENCE]` -> `[...]`."""
        return feed_forward(self.inputs(seen), self.layers)[..., 0]
