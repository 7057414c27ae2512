"""How images become what a model was trained on: channels, size, and the standardisation of its training images."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.outputs import as_logits

CHUNK = 256  # images per forward pass
MAX_SIDE = 8192
MAX_VALUE = 1e30  # of a mean or standard deviation: what float32 holds; JSON also writes integers that no float does


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The way from a domain's images to a model's input.

    Attributes:
        channels: 1 or 3.
        height: In pixels.
        width: In pixels.
        mean: Per channel mean of the model's training images, in units of 0..1.
        std: Per channel standard deviation, in units of 0..1.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_json(cls, facts: object, where: str) -> "Preprocessing":
        """Read what `vars` of one looks like in a file; `where` names the file.

        Raises:
            InputError: If it is anything else.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(facts, dict) or set(facts) != set(names):
            raise InputError(f"{where}: preprocessing is {_some(facts)}: expected the keys {names}; get the file again")
        sizes = [facts["channels"], facts["height"], facts["width"]]
        good = all(type(size) is int and 1 <= size <= MAX_SIDE for size in sizes) and sizes[0] in (1, 3)
        for key in ("mean", "std"):
            row = facts[key]
            good = good and isinstance(row, list) and len(row) == sizes[0]
            good = good and all(type(x) in (int, float) and abs(x) <= MAX_VALUE for x in row)
        if not good or min(facts["std"]) <= 0:
            raise InputError(
                f"{where}: preprocessing is {_some(facts)}: expected 1 or 3 channels, a size, and a finite mean and "
                "std above 0 per channel; get the file again"
            )
        return cls(**facts | {key: tuple(map(float, facts[key])) for key in ("mean", "std")})

    def fit(self, domain: Domain) -> Domain:
        """Return the domain with the model's channels and image size."""
        return domain.with_channels(self.channels).resized(self.height, self.width)

    def __call__(self, images: NDArray[np.uint8]) -> Tensor:
        """Standardise uint8 images `[n, c, h, w]` of the right shape; float32."""
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std))
        return (torch.from_numpy(np.array(images)).to(torch.float32) / 255 - mean) / std


@torch.no_grad()
def logits(model: nn.Module, domain: Domain, preprocessing: Preprocessing) -> Tensor:
    """Return what a model in evaluation mode puts out for every image, float32 `[n, k]` on the CPU."""
    images = preprocessing.fit(domain).images
    like = next(model.parameters())
    parts = [
        as_logits(model(preprocessing(images[i : i + CHUNK]).to(like.device, like.dtype))).float().cpu()
        for i in range(0, len(images), CHUNK)
    ]
    return torch.cat(parts)


def probabilities(model: nn.Module, domain: Domain, preprocessing: Preprocessing) -> NDArray[np.float64]:
    """Return the probability of every class for every image, `[n, k]`."""
    return logits(model, domain, preprocessing).double().softmax(1).numpy()


def predict(model: nn.Module, domain: Domain, preprocessing: Preprocessing) -> NDArray[np.int64]:
    """Return the most likely class of every image, int64 `[n]`, from a model in evaluation mode."""
    return logits(model, domain, preprocessing).argmax(1).numpy()


def accuracy(model: nn.Module, domain: Domain, preprocessing: Preprocessing) -> float:
    """Return the share of a labelled domain's images that the model puts into the right class."""
    return float((predict(model, domain, preprocessing) == domain.labels).mean())


def _some(facts: object) -> str:
    shown = repr(facts)
    return shown if len(shown) <= 80 else shown[:77] + "..."
