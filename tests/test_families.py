"""Every combination of label regime and architecture family; layer groups, cuts and normalisation of each family."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from families import FAMILIES, SIDE, build
from tiny import PLAIN, domain
from torch import nn

from lepton_rl import adapt
from lepton_rl.controls import Controls
from lepton_rl.normalisation import Part
from lepton_rl.prefix import SplitNetwork
from lepton_rl.solo import SoloEngine
from lepton_rl.stages import find_stages
from lepton_rl.task import VisibleTask

CLASSES = 3
REGIMES = ("few-label", "label-free", "few-label source-free", "label-free source-free")


def images(seed, n, labelled=True):
    return domain(seed, n, CLASSES, labelled=labelled, side=SIDE, channels=3)


@pytest.fixture(scope="module")
def family_model():
    made = {}
    return lambda family: made.setdefault(family, build(family, CLASSES))


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_regime_runs_on_every_family(family, regime, family_model):
    model = family_model(family).train()
    before = state_of(model)
    source = None if "source-free" in regime else images(1, 30)
    target = images(2, 24, labelled=regime.startswith("few-label"))
    result = adapt(model, source=source, target=target, test=images(3, 12), policy="tuned-default", budget=5)
    after = state_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.training
    assert result.steps == 5
    assert [row["step"] for row in result.history] == [0, 5]
    expected = {"test_accuracy"} | ({"probe_accuracy"} if regime.startswith("few-label") else set())
    assert expected <= result.before.keys()
    assert expected <= result.after.keys()
    assert set(result.predict(target).tolist()) <= set(range(CLASSES))
    assert all(value.isfinite().all() for value in result.model.state_dict().values())


GROUPS = {
    "resnet": (("conv1", "bn1", "layer1"), ("layer2",), ("layer3",), ("layer4",), "fc"),
    "vgg": (
        ("features.0", "features.1", "features.4", "features.5"),  # a convolution and its normalisation stay together
        ("features.8", "features.9", "features.12", "features.13"),
        ("features.15", "features.16"),
        ("classifier.0",),
        "classifier.3",
    ),
    "convnext": (
        ("features.0", "features.1"),
        ("features.2", "features.3"),
        ("features.4", "features.5"),
        ("features.6", "features.7", "classifier.0"),
        "classifier.2",
    ),
    "efficientnet": (
        ("features.0", "features.1"),
        ("features.2", "features.3"),
        ("features.4",),
        ("features.5",),
        "classifier.1",
    ),
    "mobilenet": (
        ("features.0", "features.1"),
        ("features.2", "features.3"),
        ("features.4", "features.5"),
        ("features.6",),
        "classifier.1",
    ),
    "vit": (
        ("conv_proj", "encoder.layers.encoder_layer_0"),
        ("encoder.layers.encoder_layer_1",),
        ("encoder.layers.encoder_layer_2",),
        ("encoder.layers.encoder_layer_3", "encoder.ln"),
        "heads.head",
    ),
    "sequential": (("0", "1"), ("4", "5"), ("8", "9"), ("12", "13"), "18"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_groups_are_those_that_a_person_would_draw(family, family_model):
    plan = find_stages(family_model(family))
    assert (*plan.stages, plan.head) == GROUPS[family]


# ----- cuts: frozen stages run once per image, whatever the network


def task_of(model, images_each=8):
    return VisibleTask(
        name="tiny",
        model=model,
        n_classes=CLASSES,
        mean=np.full(3, 0.3),
        std=np.full(3, 0.2),
        budget=4,
        source_train=images(1, images_each),
        source_val=images(2, images_each),
        target_support=images(3, images_each),
        target_probe=images(4, images_each),
        target_unlabelled=images(5, images_each, labelled=False),
    )


def controls(depth):
    return Controls.start([dataclasses.replace(PLAIN, unfrozen_stages=depth)], torch.device("cpu"))


@pytest.mark.parametrize("family", FAMILIES)
def test_training_above_a_cut_equals_training_without_one(family, family_model):
    task = task_of(copy.deepcopy(family_model(family)).eval())
    with_cache, without = (SoloEngine(task, dtype=torch.float64, cache_bytes=size) for size in (2**28, 0))
    assert with_cache.split.cuts == [1, 2, 3]
    for engine in (with_cache, without):
        engine.load(0, task, 7)
        engine.train(controls(2), [2])
    assert (with_cache.cache.cut, without.cache.cut) == (2, 0)
    one, other = with_cache.snapshot(0), without.snapshot(0)
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-9
    head = f"weights.{with_cache.plan.head}.weight"
    assert not torch.equal(one[head], task.model.state_dict()[head.removeprefix("weights.")].double())


class LongSkip(nn.Module):
    """The image reaches the end by a path that counts for nothing yet, and will once it is trained."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 4, 4, 3, 2, 1) for i in range(4)))
        self.skip = nn.Linear(3, 4)
        self.head = nn.Linear(4, CLASSES)
        nn.init.zeros_(self.skip.weight)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)) + self.skip(x.mean((2, 3))))


def test_a_network_is_not_cut_where_something_leads_round_the_cut():
    model = LongSkip().eval()
    split = SplitNetwork(model, find_stages(model), torch.rand(2, 3, SIDE, SIDE))
    assert (split.cuts, split.can_cut) == ([], True)


# ----- normalisation and dropout in every state of a stage: the table of docs/own-model.md


class Layers(nn.Module):
    """The layer under test in stage 1, and again in stage 4."""

    def __init__(self, make):
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), make())
        self.two, self.three = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.high = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), make())
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.high(self.three(self.two(self.low(x)))).mean((2, 3)))


LAYERS = {
    "batch": lambda: nn.BatchNorm2d(4),
    "group": lambda: nn.GroupNorm(2, 4),
    "layer": lambda: nn.LayerNorm([4, 16, 16]),
    "dropout": lambda: nn.Dropout(0.5),
}


def engine_with(kind):
    torch.manual_seed(0)
    model = Layers(LAYERS[kind])
    if kind == "layer":
        model.high[1] = nn.LayerNorm([4, 8, 8])
    task = task_of(model.eval())
    engine = SoloEngine(task, dtype=torch.float64)
    engine.load(0, task, 3)
    return engine


def first_logits(engine, batch, live=True):
    """Logits of the first image of a batch."""
    with torch.no_grad():
        return engine._forward(batch[None], (Part(side="target", size=len(batch)),), live)[1][0, 0]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("depth", [0, 1])
def test_what_an_image_becomes_depends_on_its_batch_only_in_a_trained_batch_norm(kind, depth):
    engine = engine_with(kind)
    engine.set_depth(torch.tensor([depth]))
    mine, others = torch.rand(2, 4, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    swapped = torch.cat([mine[:1], others[1:]])
    depends = kind == "batch" and depth == 1
    assert torch.allclose(first_logits(engine, mine), first_logits(engine, swapped)) is not depends
    assert torch.allclose(first_logits(engine, mine, live=False), first_logits(engine, swapped, live=False))
    assert torch.equal(first_logits(engine, mine), first_logits(engine, mine))  # no dropout in any state


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_scale_and_shift_train_in_unfrozen_stages_alone(kind):
    engine = engine_with(kind)
    before = engine.snapshot(0)
    engine.train(controls(1), [2])
    after = engine.snapshot(0)
    assert torch.equal(before["weights.low.1.weight"], after["weights.low.1.weight"])
    assert not torch.equal(before["weights.high.1.weight"], after["weights.high.1.weight"])


def test_stored_statistics_of_a_domain_move_with_its_own_batches_in_unfrozen_stages_alone():
    engine = engine_with("batch")
    engine.set_depth(torch.tensor([1]))
    before = engine.statistics.snapshot()
    batch = torch.rand(1, 6, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        engine._forward(batch, (Part(side="target", size=6, update=engine.everyone),), True)
    after = engine.statistics.snapshot()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"target.1.mean", "target.1.var"}
    inner = engine.model.three(engine.model.two(engine.model.low(batch[0])))
    mean = engine.model.high[0](inner).mean((0, 2, 3)).detach()
    # The lower layer read the target's stored statistics in both passes, so its output is the same.
    assert torch.allclose(after["target.1.mean"], 0.9 * before["target.1.mean"] + 0.1 * mean)


def test_target_statistics_of_frozen_batch_norms_are_estimated_on_target_images():
    engine = engine_with("batch")
    images_seen = torch.from_numpy(engine.tasks[0].target_unlabelled.images).double() / 255
    conv = engine.model.low[0]((images_seen - 0.3) / 0.2)
    assert torch.allclose(engine.statistics.snapshot()["target.0.mean"], conv.mean((0, 2, 3)))
    assert torch.equal(engine.statistics.snapshot()["source.0.mean"], torch.zeros(4, dtype=torch.float64))
