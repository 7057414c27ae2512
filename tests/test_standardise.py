"""Inputs of small networks: one scale, and nothing that training has not seen."""

import torch

from lepton_rl.standardise import MIN_STD, Standardiser


def test_inside_the_range_it_is_the_usual_standardisation():
    rows = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    out = Standardiser.of(rows)(rows)
    assert torch.allclose(out.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(out.std(0), torch.ones(4), atol=1e-5)


def test_what_training_never_saw_counts_as_the_nearest_that_it_saw():
    rows = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    scale = Standardiser.of(rows)
    assert torch.equal(scale(torch.tensor([99.0, 1.5])), scale(torch.tensor([2.0, 1.0])))
    assert torch.equal(scale(torch.tensor([-99.0, -1.0])), scale(torch.tensor([0.0, 1.0])))
    assert scale.std[1] == MIN_STD  # a signal that never moved


def test_unchanged_changes_nothing():
    x = torch.tensor([[-1e30, 0.5, 7.0]])
    assert torch.equal(Standardiser.unchanged(3)(x), x)
