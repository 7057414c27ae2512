"""Which signals made a policy do what it did: integrated gradients of the policy network.

Source: Sundararajan, Taly and Yan 2017, "Axiomatic attribution for deep networks", equation 1. By its completeness
axiom the attributions of all signals add up to the difference that the observation makes against a baseline.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lepton_rl.controls import ACTION_SIZES, KEEP, KNOBS
from lepton_rl.policy import NetworkPolicy, Policy
from lepton_rl.signals import SIGNAL_NAMES
from lepton_rl.standardise import Standardiser

PANELS, NODES = 64, 8  # of the Gauss-Legendre rule along the path
SHOWN = 3
"""Signals that are told apart for each knob that moved."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What an observation did to the log-probability of the chosen sub-actions.

    Attributes:
        log_probability: Of every chosen sub-action, `[knobs]`.
        typical: The same at the baseline, the mean observation of the policy's training.
        weights: How much of the difference each signal explains, `[knobs, signals]`; rows add up to it.
    """

    log_probability: Tensor
    typical: Tensor
    weights: Tensor


def attribute(policy: NetworkPolicy, observation: Tensor, action: Tensor) -> Attribution:
    """Explain an action by the signals that it was chosen by.

    Args:
        policy: Chose it.
        observation: What it saw, `[signals]`.
        action: Number of every sub-action, int64 `[knobs]`.
    """
    actor = NetworkPolicy(
        inputs=Standardiser(**{name: value.double() for name, value in vars(policy.inputs).items()}),
        layers=tuple((weight.double(), bias.double()) for weight, bias in policy.layers),
        settings=policy.settings,
    )
    # Clipped first, as the actor does: a kink on the path would spoil the integral.
    baseline, seen = actor.inputs.mean, observation.double().clamp(actor.inputs.low, actor.inputs.high)
    nodes, shares = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(NODES))
    panel = torch.arange(PANELS)[:, None]
    along = ((panel + (nodes + 1) / 2) / PANELS).flatten()[:, None]
    share = (shares / 2 / PANELS).repeat(PANELS)
    path = (baseline + along * (seen - baseline)).requires_grad_(True)
    chosen = _log_probabilities(actor, path, action)
    slopes = torch.stack(
        [torch.autograd.grad(chosen[:, k].sum(), path, retain_graph=True)[0] for k in range(len(action))]
    )
    ends = _log_probabilities(actor, torch.stack([seen, baseline]), action)
    return Attribution(
        log_probability=ends[0],
        typical=ends[1],
        weights=(slopes * share[:, None]).sum(1) * (seen - baseline),
    )


def _log_probabilities(policy: NetworkPolicy, observations: Tensor, action: Tensor) -> Tensor:
    """Return the log-probability of every chosen sub-action, `[n, knobs]`."""
    parts = policy.logits(observations).split(ACTION_SIZES, dim=1)
    return torch.stack([part.log_softmax(1)[:, int(a)] for part, a in zip(parts, action, strict=True)], dim=1)


def explain_decisions(policy: Policy, history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Explain every decision of a run, as JSON values; None for a policy that does not look.

    Args:
        policy: Steered the run.
        history: Rows of the run: a row's action was chosen by the observation of the row before it.
    """
    if not isinstance(policy, NetworkPolicy):
        return None
    explained = []
    for before, row in itertools.pairwise(history):
        observation = torch.tensor([before["observation"][name] for name in SIGNAL_NAMES])
        action = torch.tensor([int(row["action"][knob]) for knob in KNOBS])
        found = attribute(policy, observation, action)
        moved = [k for k, (a, keep) in enumerate(zip(action.tolist(), KEEP, strict=True)) if a != keep]
        explained.append(
            {
                "decision": row["decision"],
                "probability": math.exp(float(found.log_probability.sum())),
                "typical": math.exp(float(found.typical.sum())),
                "signals": _named(found.weights.sum(0)),
                "knobs": {KNOBS[k]: _largest(_named(found.weights[k])) for k in moved},
            }
        )
    return explained


def _named(weights: Tensor) -> dict[str, float]:
    return {name: round(float(weight), 6) for name, weight in zip(SIGNAL_NAMES, weights, strict=True)}


def _largest(weights: dict[str, float]) -> dict[str, float]:
    names = sorted(weights, key=lambda name: -abs(weights[name]))[:SHOWN]
    return {name: weights[name] for name in names}
