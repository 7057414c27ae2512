"""Integrated gradients: by hand, by their axioms, and over a run."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from lepton_rl.artifact import SHIPPED, load_policy
from lepton_rl.attribution import attribute, explain_decisions
from lepton_rl.controls import ACTION_SIZES, KEEP, KNOBS
from lepton_rl.policy import KeepPolicy, NetworkPolicy
from lepton_rl.signals import SIGNAL_NAMES
from lepton_rl.standardise import Standardiser

N, K = len(SIGNAL_NAMES), sum(ACTION_SIZES)


def network(seed, scale=1.0, hidden=16):
    g = torch.Generator().manual_seed(seed)
    sizes = (N, hidden, hidden, K)
    layers = tuple(
        (scale * torch.randn(b, a, generator=g) / a**0.5, 0.1 * torch.randn(b, generator=g))
        for a, b in itertools.pairwise(sizes)
    )
    mean, std = torch.rand(N, generator=g), 0.1 + torch.rand(N, generator=g)
    return NetworkPolicy(inputs=replace(Standardiser.unchanged(N), mean=mean, std=std), layers=layers)


def test_a_single_layer_by_hand():
    """With one layer and two logits a slope is (1 - p) w / std; its mean along the path has a closed form."""
    weight = torch.zeros(K, N)
    weight[-1, 3] = 2.0  # the last knob is stop: logits 0 and 2 (x - 0.5) / 0.25
    scale = replace(Standardiser.unchanged(N), mean=torch.full((N,), 0.5), std=torch.full((N,), 0.25))
    policy = NetworkPolicy(inputs=scale, layers=((weight, torch.zeros(K)),))
    observation = torch.full((N,), 0.5)
    observation[3], observation[4] = 0.75, 0.9
    action = torch.tensor([*KEEP[:-1], 1])
    found = attribute(policy, observation, action)
    expected = -math.log(1 + math.exp(-2)) + math.log(2)  # of a logit of 2 against one of 0
    assert float(found.weights[-1, 3]) == pytest.approx(expected, abs=1e-9)
    rest = found.weights.clone()
    rest[-1, 3] = 0
    assert float(rest.abs().max()) == 0.0  # signal 4 moved, but no weight goes out from it
    assert float(found.typical.exp().prod()) == pytest.approx(math.prod(1 / size for size in ACTION_SIZES))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_completeness(seed, scale):
    policy = network(seed, scale)
    g = torch.Generator().manual_seed(100 + seed)
    observation = 2 * torch.rand(N, generator=g) - 0.5
    action = policy.act(observation[None], torch.tensor([0]), torch.tensor([0]))[0]
    found = attribute(policy, observation, action)
    assert found.weights.shape == (len(KNOBS), N)
    gap = found.weights.sum(1) - (found.log_probability - found.typical)
    assert float(gap.abs().max()) < (1e-8 if scale == 0.5 else 1e-3)


def test_nothing_is_explained_where_nothing_differs():
    policy = network(1)
    found = attribute(policy, policy.inputs.mean, torch.tensor(KEEP))
    assert float(found.weights.abs().max()) == 0.0
    assert torch.equal(found.log_probability, found.typical)


def test_the_shipped_policy_is_explained_completely():
    policy = load_policy(SHIPPED)
    observation = (policy.inputs.mean + policy.inputs.std * torch.linspace(-2, 2, N)).clamp(-1, 2)
    found = attribute(policy, observation, torch.tensor(KEEP))
    assert float(found.weights.sum()) == pytest.approx(float((found.log_probability - found.typical).sum()), abs=1e-6)


def rows(policy):
    first = dict.fromkeys(SIGNAL_NAMES, 0.25)
    second = {name: 0.01 * i for i, name in enumerate(SIGNAL_NAMES)}
    actions = [
        policy.act(torch.tensor([list(seen.values())]), torch.tensor([0]), torch.tensor([0]))[0].tolist()
        for seen in (first, second)
    ]
    named = [dict(zip(KNOBS, action, strict=True)) for action in actions]
    return [
        {"decision": 0, "observation": first, "action": None},
        {"decision": 1, "observation": second, "action": named[0]},
        {"decision": 2, "observation": first, "action": named[1]},
    ]


def test_a_decision_is_explained_by_what_was_seen_before_it():
    policy = network(2)
    history = rows(policy)
    first, second = explain_decisions(policy, history)
    observation = torch.tensor(list(history[1]["observation"].values()))
    found = attribute(policy, observation, torch.tensor(list(history[2]["action"].values())))
    assert (first["decision"], second["decision"]) == (1, 2)
    assert second["probability"] == pytest.approx(float(found.log_probability.sum().exp()))
    assert sum(second["signals"].values()) == pytest.approx(
        math.log(second["probability"] / second["typical"]), abs=1e-3
    )
    moved = {knob for knob, keep in zip(KNOBS, KEEP, strict=True) if history[2]["action"][knob] != keep}
    assert set(second["knobs"]) == moved != set()
    for knob, weights in second["knobs"].items():
        row = found.weights[KNOBS.index(knob)]
        assert list(weights) == [SIGNAL_NAMES[i] for i in row.abs().argsort(descending=True)[:3]]


def test_a_policy_that_does_not_look_has_nothing_to_explain():
    assert explain_decisions(KeepPolicy(), rows(network(3))) is None
