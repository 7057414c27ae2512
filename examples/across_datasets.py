"""From one data set to another without labels there: USPS to MNIST, MNIST to USPS, MNIST to MNIST-M.

`python examples/across_datasets.py --data DIR --source usps --target mnist` trains a small CNN on the source, adapts it
in one run to images of the target without their labels, and reads the labels of other target images once, at the end.
DIR holds `.npz` files as `lepton benchmark --suite data` takes them. A minute or two on one core.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from lepton_rl import Domain, adapt
from lepton_rl.pretrain import pretrained


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Adapt a small CNN from one data set to another, label-free."""

    data: Path
    """Folder of the .npz files."""
    source: str = "usps"
    """Data set that the network is trained on, with labels."""
    target: str = "mnist"
    """Data set that it is adapted to, without."""
    size: int = 16
    """Side in pixels to which both are brought."""
    channels: Literal[1, 3] = 1
    """Grey or colour; MNIST-M needs colour."""
    images: int = 6000
    """Most target images to adapt on; at least a quarter of the target is left for the test."""
    width: int = 16
    """Channels of the CNN's first stage."""
    pretrain_steps: int = 1000
    """Gradient steps on the source."""
    budget: int = 800
    """Gradient steps on the target."""
    policy: str = "lepton-v1"
    """lepton-v1, tuned-default or a policy file."""
    seed: int = 0
    """Of the batches."""


def main(arguments: Arguments) -> None:
    """Train, adapt, report."""
    source, target = (
        Domain.from_npz(arguments.data / f"{name}.npz")
        .labelled()
        .resized(arguments.size, arguments.size)
        .with_channels(arguments.channels)
        .renamed(name)
        for name in (arguments.source, arguments.target)
    )
    model = pretrained("resnet", source, width=arguments.width, steps=arguments.pretrain_steps)
    order = np.random.default_rng(0).permutation(len(target))
    cut = min(arguments.images, len(order) * 3 // 4)
    result = adapt(
        model,
        source=source,
        target=target.take(order[:cut]).without_labels(),
        test=target.take(order[cut:]),
        budget=arguments.budget,
        policy=arguments.policy,
        seed=arguments.seed,
    )
    before, after = result.before["test_accuracy"], result.after["test_accuracy"]
    print(f"{source.name} to {target.name}, {len(order) - cut} test images: {before:.4f} before, {after:.4f} after")
    print(f"{result.verdict} ({result.chosen}), {result.steps} gradient steps, {result.seconds:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
