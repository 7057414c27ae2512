"""The guard: which weights a run ends with."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lepton_rl.selection import Candidate, average, choose


def candidates(*scores):
    names = ["original", *(f"decision {i}" for i in range(len(scores) - 1))]
    return [
        Candidate(name=name, weights={"w": torch.tensor([float(i)])}, score=score)
        for i, (name, score) in enumerate(zip(names, scores, strict=True))
    ]


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ((0.5, 0.6, 0.7), "decision 1"),  # the last improves
        ((0.5, 0.72, 0.7), "decision 0"),  # an earlier one is better by the margin
        ((0.5, 0.705, 0.7), "decision 1"),  # better by less than the margin: noise
        ((0.8, 0.6, 0.7), "original"),  # nothing shows an improvement
        ((0.5,), "original"),  # stopped at once
    ],
)
def test_choices_by_hand(scores, chosen):
    choice, reason = choose(candidates(*scores), margin=0.01)
    assert choice.name == chosen
    assert reason


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0, 0.2))
def test_the_choice_is_never_visibly_worse_than_the_original(scores, margin):
    choice, _ = choose(candidates(*scores), margin)
    assert choice.score >= scores[0]


def test_the_average_is_the_mean_of_every_tensor():
    assert average(candidates(0, 0, 0)[1:])["w"].item() == 1.5
