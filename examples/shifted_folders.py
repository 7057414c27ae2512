"""Write a data set as two folders of PNG files, the second one shifted: something to try `lepton` on before your own.

`python examples/shifted_folders.py --data cifar10.npz --out photos --shifts tint:0.7 blur:0.4` writes

    photos/source/CLASS/*.png      all labelled
    photos/target/CLASS/*.png      a few per class; the others in photos/target/unlabelled
    photos/test/CLASS/*.png        all labelled, shifted like the target

No image is in two of them.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from lepton_rl import Domain, Shift
from lepton_rl.arrays import UNLABELLED
from lepton_rl.cli import exit_code
from lepton_rl.errors import InputError
from lepton_rl.shifts import compose


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write a labelled data set as folders of source, shifted target and shifted test images."""

    data: Path
    """An .npz file, as --source of lepton adapt."""
    out: Path
    """New folder."""
    shifts: tuple[str, ...] = ("tint:0.7", "blur:0.4")
    """Shifts of target and test, KIND:SEVERITY each, applied in order."""
    images: int = 2000
    """Images of source and of target, each."""
    test_images: int = 1000
    """Images of the test."""
    labels_per_class: int = 10
    """Target images that keep their label."""
    size: int = 64
    """Side in pixels."""
    seed: int = 0
    """Of the choice of images and of the shifts."""


def write(arguments: Arguments) -> None:
    """Deal the images and write them.

    Raises:
        InputError: If there are too few images, or the folder is there already.
    """
    if arguments.out.exists():
        raise InputError(f"out {str(arguments.out)!r} is there already: expected a new folder; choose another")
    found = Domain.from_npz(arguments.data).labelled()
    wanted = 2 * arguments.images + arguments.test_images
    if len(found) < wanted:
        raise InputError(f"{str(arguments.data)!r} has {len(found)} images: expected {wanted}; lower --images")
    shifts = [Shift(kind=kind, severity=float(severity), seed=arguments.seed) for kind, _, severity in split(arguments)]
    order = np.random.default_rng(arguments.seed).permutation(len(found))[:wanted]
    parts = np.split(order, [arguments.images, 2 * arguments.images])
    source, target, test = (found.take(part).resized(arguments.size, arguments.size) for part in parts)
    save(source, arguments.out / "source")
    save(few_labels(compose(target, shifts), arguments.labels_per_class), arguments.out / "target")
    save(compose(test, shifts), arguments.out / "test")


def split(arguments: Arguments) -> list[tuple[str, str, str]]:
    """Take KIND:SEVERITY apart."""
    parts = [text.partition(":") for text in arguments.shifts]
    for kind, _, severity in parts:
        if not severity.replace(".", "", 1).isdecimal():
            raise InputError(f"shift {kind!r} has severity {severity!r}: expected KIND:SEVERITY, for example blur:0.4")
    return parts


def few_labels(domain: Domain, count: int) -> Domain:
    """Keep the labels of the first `count` images of every class."""
    kept = np.concatenate([np.flatnonzero(domain.labels == k)[:count] for k in range(domain.n_classes)])
    labels = np.full(len(domain), UNLABELLED)
    labels[kept] = domain.labels[kept]
    return Domain(images=domain.images, labels=labels, name=domain.name, classes=domain.classes)


def save(domain: Domain, folder: Path) -> None:
    """Write every image as a PNG file in the folder of its class."""
    names = [*domain.classes, "unlabelled"]  # the last entry serves -1
    for number, (image, label) in enumerate(zip(domain.images, domain.labels, strict=True)):
        path = folder / names[label] / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze(0) if len(image) == 1 else image.transpose(1, 2, 0)).save(path)


def main(arguments: Arguments) -> int:
    """Write the folders."""
    write(arguments)
    print(
        f"lepton adapt --source {arguments.out}/source --target {arguments.out}/target --test {arguments.out}/test .."
    )
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(tyro.cli(Arguments))))
