"""Fetch the data sets of the suite `data` from Hugging Face and write them as `.npz` files.

`python scripts/get_data.py --out DIR` needs the network and the extra `datasets`. Nothing is fetched without this
command. Licences are the data sets' own; read their pages.
"""

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from lepton_rl import Domain
from lepton_rl.cache import write_atomically
from lepton_rl.cli import exit_code
from lepton_rl.errors import InputError
from lepton_rl.extras import extra

HUB = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "emnist_letters": "tanganke/emnist_letters",
    "usps": "flwrlabs/usps",
    "mnist_m": "Mike0307/MNIST-M",
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write data sets of Hugging Face as the files that `--suite data` reads."""

    out: Path
    """Folder for the .npz files; sets that are there already are left alone."""
    sets: tuple[str, ...] = tuple(HUB)
    """Which sets; notMNIST is not on the hub under a licence of its own."""
    most: int = 20000
    """Most images of each part that are kept."""


def fetch(arguments: Arguments) -> list[Path]:
    """Fetch and write what is missing, and return its paths.

    Raises:
        InputError: If a set is unknown or cannot be fetched.
    """
    written = []
    for name in arguments.sets:
        if name not in HUB:
            raise InputError(f"data set {name!r} is unknown: expected one of {', '.join(HUB)}")
        path = arguments.out / f"{name}.npz"
        if not path.is_file():
            write_atomically(path, _packed({part: _part(name, part, arguments.most) for part in ("train", "test")}))
            written.append(path)
    return written


def _part(name: str, part: str, most: int) -> Domain:
    try:
        found = extra("datasets", "datasets").load_dataset(HUB[name], split=part)
    except (OSError, ValueError, ConnectionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{HUB[name]!r} cannot be fetched ({reason}): expected the network; try again later") from None
    order = np.random.default_rng(0).permutation(len(found))[:most]
    return Domain.from_huggingface(found.select(np.sort(order)), name=name)


def _packed(parts: dict[str, Domain]) -> bytes:
    arrays: dict[str, Any] = {}
    for part, domain in parts.items():
        images = domain.images.transpose(0, 2, 3, 1)
        arrays[f"x_{part}"] = images[..., 0] if images.shape[-1] == 1 else images
        arrays[f"y_{part}"] = domain.labels.astype(np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _main() -> int:
    for path in fetch(tyro.cli(Arguments)):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(_main))
