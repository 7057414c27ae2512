"""The objective of a step: its value and its derivative against a plain sum of losses; batches of several parts."""

from dataclasses import replace

import pytest
import torch
from tiny import EVERYTHING, PLAIN, lane_weights, largest_gap, task
from torch import nn

from lepton_rl.controls import Controls
from lepton_rl.losses import conditional_entropy, coral, cross_entropy, diversity, mmd, pseudo_label
from lepton_rl.normalisation import Part
from lepton_rl.objective import TERMS, Outputs, objective
from lepton_rl.solo import SoloEngine

SIZES, LANES, CLASSES, WIDTH = (4, 6, 5), 2, 3, 4


def batch(seed=0, sizes=SIZES):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(LANES, sum(sizes), WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(WIDTH, CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, CLASSES, (LANES, sum(sizes)), generator=generator)
    return features, features @ weight * 3, labels


def plain_loss(features, logits, labels, weights, log_prior=0.0):
    """The weighted sum as autograd sees it."""
    _, f_t, f_s = features.split(SIZES, 1)
    z_support, z_t, z_s = logits.split(SIZES, 1)
    y_support, _, y_s = labels.split(SIZES, 1)
    terms = {
        "source": cross_entropy(z_s, y_s),
        "alignment": mmd(f_s, f_t) + coral(f_s, f_t),
        "entropy": conditional_entropy(z_t),
        "diversity": diversity(z_t, None, log_prior),
        "self_training": pseudo_label(z_t, 0.9),
        "target": cross_entropy(z_support, y_support),
    }
    return sum(weights[:, TERMS.index(term)] * value for term, value in terms.items()), terms


@pytest.mark.parametrize("log_prior", [None, torch.tensor([[0.1, -0.2, 0.0], [0.5, -3.0, -0.1]]).double()])
def test_loss_and_derivative_equal_the_plain_weighted_sum(log_prior):
    features, logits, labels = batch()
    weights = torch.tensor([[1.0, 0.5, 0, 0.3, 0.0, 2.0, 0, 1.0], [0.2, 0.0, 0, 0.1, 0.7, 0.0, 0, 1.0]]).double()
    expected, terms = plain_loss(features, logits, labels, weights, 0.0 if log_prior is None else log_prior[:, None])
    (wanted,) = torch.autograd.grad(expected.sum(), features, retain_graph=True)
    outputs = Outputs(features=features, logits=logits, labels=labels)
    loss, found = objective(
        outputs, SIZES, weights, adversarial=None, auxiliary=None, n_classes=None, log_prior=log_prior
    )
    (gradient,) = torch.autograd.grad(loss.sum(), features)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)
    for term, value in terms.items():
        torch.testing.assert_close(found[:, TERMS.index(term)], value, rtol=1e-12, atol=0)


def test_terms_with_a_graph_of_their_own_keep_it():
    features, logits, labels = batch()
    extra = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    weights = torch.zeros(LANES, len(TERMS), dtype=torch.float64)
    weights[:, TERMS.index("adversarial")] = 0.5
    outputs = Outputs(features=features, logits=logits, labels=labels)
    loss, _ = objective(outputs, SIZES, weights, adversarial=extra**2, auxiliary=None, n_classes=None)
    assert loss.tolist() == [2.0, 4.5]
    assert torch.autograd.grad(loss.sum(), extra)[0].tolist() == [2.0, 3.0]  # 0.5 times 2 x


def test_a_term_that_is_off_adds_nothing_even_when_it_is_not_finite():
    features, logits, labels = batch()
    huge = (features.detach() * 1e200).requires_grad_()  # its covariance overflows
    weights = torch.ones(LANES, len(TERMS), dtype=torch.float64)
    weights[:, TERMS.index("alignment")] = 0.0
    outputs = Outputs(features=huge, logits=logits, labels=labels)
    loss, terms = objective(outputs, SIZES, weights, adversarial=None, auxiliary=None, n_classes=None)
    assert not terms[:, TERMS.index("alignment")].isfinite().any()
    assert loss.isfinite().all()
    gradients = torch.autograd.grad(loss.sum(), (features, huge), allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


# ----- batches of several parts


class BatchMean(nn.Module):
    """Takes the mean of the whole batch away: no part of it can be treated apart."""

    def forward(self, x):
        return x - x.mean(0, keepdim=True)


def network(*first):
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 4, 3, padding=1), *first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*body).eval()


@pytest.mark.parametrize("architecture", ["vgg", "resnet", "vgg-gn"])
@pytest.mark.parametrize("depth", [0, 2, 4])
@pytest.mark.parametrize("cache_bytes", [0, 2**24])
def test_one_pass_over_both_domains_equals_a_pass_for_each(architecture, depth, cache_bytes):
    settings = replace(EVERYTHING if depth == 2 else PLAIN, unfrozen_stages=depth)
    visible = task(architecture=architecture)
    together, apart = (SoloEngine(visible, dtype=torch.float64, cache_bytes=cache_bytes) for _ in range(2))
    for engine, joint in ((together, True), (apart, False)):
        engine.load(0, visible, 1)
        assert engine.joint
        engine.joint = joint
    for _ in range(2):
        stats = [engine.train(Controls.start([settings], engine.device), [4]) for engine in (together, apart)]
        assert torch.allclose(stats[0].terms, stats[1].terms, atol=1e-10)
    assert largest_gap(lane_weights(together), lane_weights(apart)) < 1e-9


def test_layers_without_statistics_are_normalised_part_by_part_too():
    engine = SoloEngine(task(model=network(nn.BatchNorm2d(4, track_running_stats=False))), dtype=torch.float64)
    assert engine.joint
    images = torch.randn(1, 6, 1, 6, 6, dtype=torch.float64)
    parts = (Part(side="target", size=4), Part(side="source", size=2))
    _, whole = engine._forward(images, parts, True)
    pieces = [engine._forward(x, (part,), True)[1] for x, part in zip(images.split([4, 2], 1), parts, strict=True)]
    assert torch.allclose(whole, torch.cat(pieces, 1), atol=1e-12)


def test_a_network_that_mixes_its_batch_is_run_part_by_part():
    visible = task(model=network(BatchMean()))
    engine = SoloEngine(visible)
    engine.load(0, visible, 1)
    assert not engine.joint
    sizes = []
    engine.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    engine.train(Controls.start([PLAIN], engine.device), [2])
    assert sizes == [48, 32, 48, 32]
