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
from lepton_rl.outputs import as_logits, logits_of
from lepton_rl.storage import chunks

VERSION = 1  # raise when the recipe below changes, so that old cache entries are not taken for new ones
BATCH = 64
LEARNING_RATE = 3e-3
LIBRARY_RATE = 1e-3  # for networks of libraries, which are deeper
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
    _train_once(model, source, architecture, key, steps=steps, seed=seed, rate=LEARNING_RATE, cache=cache)
    return model


def trained_here(
    model: nn.Module, name: str, source: Domain, *, steps: int = 300, seed: int = 0, cache: Path | None = None
) -> nn.Module:
    """Train a network of a library in place, on labelled images, and return it in evaluation mode.

    Args:
        model: With random weights that depend on the name alone.
        name: For the cache.
        source: Labelled images.
        steps: Gradient steps, as in `pretrained`.
        seed: Seed of the batches.
        cache: As in `pretrained`.
    """
    shapes = [list(value.shape) for value in model.state_dict().values()]
    key = {
        "model": name,
        "shapes": shapes,
        "torch": torch.__version__,
        "steps": steps,
        "seed": seed,
        "version": VERSION,
    }
    _train_once(model, source, name.replace(":", "-"), key, steps=steps, seed=seed, rate=LIBRARY_RATE, cache=cache)
    return model


def _train_once(
    model: nn.Module,
    source: Domain,
    name: str,
    key: dict[str, object],
    *,
    steps: int,
    seed: int,
    rate: float,
    cache: Path | None,
) -> None:
    """Take the weights from the cache, or train and put them there."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode())
    digest.update(str(source.images.shape).encode())
    for part in chunks(source.images):
        digest.update(source.images[part].tobytes())
    digest.update(source.labels.tobytes())
    path = (cache or cache_folder()) / "pretrained" / f"{Path(name).name}-{digest.hexdigest()[:24]}.safetensors"
    if not _load(model, path):
        _train(model, source, steps, seed, rate)
        write_atomically(path, save(dict(model.state_dict())))
    model.eval()


def _load(model: nn.Module, path: Path) -> bool:
    """Load cached weights; a damaged file is as good as none, because it can be made again."""
    if not path.is_file():
        return False
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError):
        return False
    return True


def _train(model: nn.Module, source: Domain, steps: int, seed: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    mean, std = (torch.as_tensor(v, dtype=torch.float32)[:, None, None] for v in channel_statistics(source.images))
    images, labels = source.images, torch.from_numpy(source.labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seeds, strength = torch.tensor([seed]), torch.tensor([AUGMENTATION])
    model.train()
    for step in range(steps):
        rows = torch.from_numpy(rng.integers(0, len(source), BATCH))
        batch = torch.from_numpy(images[rows.numpy()])
        pixels = augment((batch.float() / 255)[None], strength, seeds, torch.tensor([step]))[0]
        loss = nn.functional.cross_entropy(_scores(model, (pixels - mean) / std), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _scores(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Return the logits of a model in training mode; the first of several, where it also has auxiliary ones."""
    output = logits_of(model(pixels))
    return as_logits(output[0] if isinstance(output, tuple) else output)
