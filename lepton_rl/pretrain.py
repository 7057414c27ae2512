"""Train a network on source data, once: the weights are kept in a disk cache."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from lepton_rl.augment import augment
from lepton_rl.cache import cache_folder, write_atomically
from lepton_rl.domain import Domain
from lepton_rl.models import StagedNet, build_model
from lepton_rl.storage import chunks

VERSION = 1  # raise when the recipe below changes, so that old cache entries are not taken for new ones
BATCH = 64
LEARNING_RATE = 3e-3
AUGMENTATION = 0.3
AT_ONCE = 2**26  # values that are turned into floating-point numbers at once


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation per channel of uint8 images, in units of 0..1, both `[c]`."""
    if images.size > AT_ONCE:
        return _statistics_in_parts(images)
    pixels = images.astype(np.float64) / 255
    return pixels.mean(axis=(0, 2, 3)), np.maximum(pixels.std(axis=(0, 2, 3)), 1e-3)


def _statistics_in_parts(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the 256 values of every channel: exact, and without a floating-point copy of all pixels."""
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for part in chunks(images):
        for channel, histogram in enumerate(counts):
            histogram += np.bincount(images[part, channel].ravel(), minlength=256)
    values, share = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
    return mean, np.maximum(std, 1e-3)


def pretrained(
    architecture: str, source: Domain, *, width: int = 16, steps: int = 300, seed: int = 0, cache: Path | None = None
) -> StagedNet:
    """Return a network of the family trained on a labelled domain, in evaluation mode.

    Args:
        architecture: A name of `models.ARCHITECTURES`.
        source: Labelled images.
        width: Channels of the first stage.
        steps: Gradient steps of 64 images (Adam, cosine schedule, mild augmentation).
        seed: Seed of weights and batches.
        cache: Folder for trained weights; None = `LEPTON_CACHE` or the user's cache folder.
    """
    channels = source.images.shape[1]
    model = build_model(architecture, channels=channels, n_classes=source.n_classes, width=width, seed=seed)
    key = {"architecture": architecture, "width": width, "steps": steps, "seed": seed, "version": VERSION}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode())
    digest.update(str(source.images.shape).encode() + source.images.tobytes() + source.labels.tobytes())
    path = (cache or cache_folder()) / "pretrained" / f"{architecture}-{digest.hexdigest()[:24]}.safetensors"
    if not _load(model, path):
        _train(model, source, steps, seed)
        write_atomically(path, save(model.state_dict()))
    return model.eval()


def _load(model: nn.Module, path: Path) -> bool:
    """Load cached weights; a damaged file is as good as none, because it can be made again."""
    if not path.is_file():
        return False
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError):
        return False
    return True


def _train(model: nn.Module, source: Domain, steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mean, std = (torch.as_tensor(v, dtype=torch.float32)[:, None, None] for v in channel_statistics(source.images))
    images, labels = torch.from_numpy(source.images), torch.from_numpy(source.labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seeds, strength = torch.tensor([seed]), torch.tensor([AUGMENTATION])
    model.train()
    for step in range(steps):
        rows = torch.from_numpy(rng.integers(0, len(source), BATCH))
        pixels = augment((images[rows].float() / 255)[None], strength, seeds, torch.tensor([step]))[0]
        loss = nn.functional.cross_entropy(model((pixels - mean) / std), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
