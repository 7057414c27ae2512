"""Adapt a network of your own: any `nn.Module` from images to logits, images in arrays, few labels.

Run it with `python examples/own_model.py`; it takes seconds and needs no download.
"""

import numpy as np
import torch
from torch import nn

from lepton_rl import Domain, Shift, adapt


def build() -> nn.Module:
    """Build a small network; yours is trained already and comes from its own file."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


def train(model: nn.Module, source: Domain, mean: float, std: float) -> nn.Module:
    """Train on the source, on standardised images."""
    x = (torch.from_numpy(source.images).float() / 255 - mean) / std
    y = torch.from_numpy(source.labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model.train()(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    """Train, shift, adapt and save."""
    torch.manual_seed(0)
    digits = Domain.digits()
    source, rest = digits.take(range(800)), Shift(kind="gaussian_noise", severity=0.5)(digits.take(range(800, 1797)))
    mean, std = float(source.images.mean() / 255), float(source.images.std() / 255)
    model = train(build(), source, mean, std)

    # Arrays of your own: uint8 images, and -1 where nobody has looked. Here 50 images have a label.
    images, labels = rest.images[:700], np.where(np.arange(700) < 50, rest.labels[:700], -1)
    target = Domain.from_arrays(images, labels, name="phone", classes=source.classes)

    result = adapt(
        model,
        source=source,
        target=target,
        test=rest.take(range(700, 997)),
        normalisation=([mean], [std]),
        callback=lambda row: print(f"step {row['step']:3d}  visible score {row['score']:.3f}"),
    )
    print(result.verdict, result.before, result.after)
    print("saved in", result.save("runs/own-model", overwrite=True))


if __name__ == "__main__":
    main()
