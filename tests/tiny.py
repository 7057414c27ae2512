"""Tasks small enough that hundreds of gradient steps take a second; shared by the tests of the engines."""

import numpy as np
import torch

from lepton_rl.controls import ControlSettings
from lepton_rl.domain import Domain
from lepton_rl.models import build_model
from lepton_rl.task import VisibleTask

SIDE = 6
WEIGHTS = {
    "source": 1.0,
    "alignment": 0.1,
    "adversarial": 0.1,
    "entropy": 0.1,
    "diversity": 0.1,
    "self_training": 0.1,
    "auxiliary": 0.1,
}
EVERYTHING = ControlSettings(learning_rate=2e-3, weights=WEIGHTS, augmentation=0.25)
PLAIN = ControlSettings(learning_rate=2e-3)


def domain(seed, n, classes, *, labelled=True, side=SIDE, channels=1):
    """Bright blobs whose place tells the class, under noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    images = rng.integers(0, 120, (n, channels, side, side))
    images[np.arange(n), :, labels % side, (labels // side) % side] += 120
    names = tuple(str(k) for k in range(classes))
    labels = labels if labelled else np.full(n, -1)
    return Domain(images=images.astype(np.uint8), labels=labels, name=f"d{seed}", classes=names)


def task(
    seed=0,
    *,
    architecture="vgg",
    classes=3,
    source=True,
    labels=True,
    probe=True,
    budget=15,
    width=4,
    images=40,
    side=SIDE,
    channels=1,
    model=None,
    prior=False,
):
    """A complete visible task; `model` overrides the architecture."""
    if model is None:
        model = build_model(architecture, channels=channels, n_classes=classes, width=width, seed=seed)

    def part(number, n, present, labelled=True):
        if not present:
            return None
        return domain(10 * seed + number, n, classes, labelled=labelled, side=side, channels=channels)

    return VisibleTask(
        name=f"tiny{seed}",
        model=model.eval(),
        n_classes=classes,
        mean=np.full(channels, 0.3),
        std=np.full(channels, 0.2 + 0.01 * seed),
        budget=budget,
        source_train=part(1, 50, source),
        source_val=part(2, 20, source),
        target_support=part(3, 9, labels),
        target_probe=part(4, 7, labels and probe),
        target_unlabelled=part(5, images, True, labelled=False),
        class_prior=np.arange(1, classes + 1) / sum(range(1, classes + 1)) if prior else None,
    )


def lane_weights(engine, lane=0):
    """One lane's parameters and statistics by name, cut to its own classes, whatever the engine."""
    saved = engine.snapshot(lane)
    if hasattr(engine, "blocks"):
        named = {name: value[lane].detach().clone() for name, value in engine._parameters().items()}
        statistics = {
            f"{side}.{i}.{what}": saved[f"statistics.{i}.{side}_{what}"]
            for i in range(len(engine.norms))
            for side in ("source", "target")
            for what in ("mean", "var")
        }
    else:
        named = {k.removeprefix("weights."): v for k, v in saved.items() if k.startswith("weights.")}
        statistics = {k.removeprefix("statistics."): v for k, v in saved.items() if k.startswith("statistics.")}
    classes = engine.tasks[lane].n_classes
    head = engine.plan.head
    cut = {k: v[:classes] if k.startswith(f"{head}.") else v for k, v in named.items()}
    return cut | statistics


def largest_gap(one, other):
    """Largest difference of two dictionaries of tensors."""
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).abs().max()) for k in one)


def same(one, other):
    """Whether two dictionaries of tensors are equal bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
