"""`lepton export`: the adapted model of a run as files for other programs, each compared with the model itself."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from lepton_rl.cache import write_atomically
from lepton_rl.console import print_table, say
from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.export.int8 import LEAST_IMAGES
from lepton_rl.export.made import INT8, ONNX, Made, make
from lepton_rl.loading import load_domain
from lepton_rl.manifest import check_free, whole_folder, write_manifest
from lepton_rl.saved_run import SavedRun

NOISE = 64
"""Images of noise to compare on where no others are given."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write the adapted model of a run as ONNX and torch.export, with class names and preprocessing inside."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The --out of lepton adapt."""
    out: Path | None = None
    """Folder for the files; new or empty; default export/ in RUN."""
    model: str | None = None
    """As --model of lepton adapt; needed where that was package.module:function."""
    formats: tuple[Literal["onnx", "torch"], ...] = ("onnx", "torch")
    """onnx: model.onnx; torch: model.pt2, for torch.export.load."""
    calibration: str | None = None
    """Images of the target, like --target of lepton adapt; with them model.int8.onnx is written too."""
    test: str | None = None
    """Labelled target images, to say what accuracy every file has."""
    overwrite: bool = False
    """Let the output of an earlier command in --out go."""


def run(config: Config, argv: Sequence[str]) -> None:
    """Export, compare, write, print."""
    out = config.out or config.run / "export"
    saved = SavedRun.read(config.run)
    check_free(out, overwrite=config.overwrite)
    if not config.formats or (config.calibration is not None and "onnx" not in config.formats):
        raise InputError(f"formats are {list(config.formats)}: expected onnx for int8, else onnx or torch; add it")
    model = saved.load(config.model)
    calibration = None if config.calibration is None else _domain(config.calibration, saved)
    test = None if config.test is None else _domain(config.test, saved)
    if calibration is not None and len(calibration) < LEAST_IMAGES:
        raise InputError(
            f"calibration {calibration.name!r} has {len(calibration)} images: expected at least {LEAST_IMAGES}, better "
            "100, to show the range of every layer; give more"
        )
    if test is not None:
        test = test.labelled()
        if len(test) == 0:
            raise InputError(
                f"test {config.test!r} has no labels: expected labelled images; leave it out or label them"
            )
    with whole_folder(out, overwrite=config.overwrite) as part:
        made = make(
            model,
            saved.preprocessing,
            saved.classes,
            part,
            formats=config.formats,
            calibration=None if calibration is None else calibration.images,
            images=_images(saved, test or calibration),
            labels=None if test is None else test.labels,
        )
        record = _record(made, test or calibration)
        write_atomically(part / "export.json", (json.dumps(record, indent=2) + "\n").encode())
        write_manifest(part, command="lepton export", arguments=asdict(config), argv=argv)
    _tell(made, test or calibration, out)


def _domain(text: str, saved: SavedRun) -> Domain:
    """Read images and bring them to what the model takes; labels go by class name."""
    way = saved.preprocessing
    return way.fit(load_domain(text, classes=saved.classes, size=(way.height, way.width)))


def _images(saved: SavedRun, domain: Domain | None) -> NDArray[np.uint8]:
    if domain is not None:
        return domain.images
    way = saved.preprocessing
    return np.random.default_rng(0).integers(0, 256, (NOISE, way.channels, way.height, way.width), dtype=np.uint8)


def _record(made: Made, domain: Domain | None) -> dict[str, Any]:
    return {
        "compared_on": "noise" if domain is None else domain.name,
        "numbers_kept": made.kept,
        "pruned": made.pruned,
        "files": {file.name: {k: v for k, v in asdict(file).items() if k != "name"} for file in made.files},
    }


def _tell(made: Made, domain: Domain | None, out: Path) -> None:
    lines = [
        [
            file.name,
            f"{file.bytes / 1024:,.0f}",
            f"{file.parity.largest_gap:.1e}",
            f"{file.parity.agreement:.1%}",
            "-" if file.accuracy is None else f"{file.accuracy:.3f}",
            f"{file.milliseconds:.3f}",
        ]
        for file in made.files
    ]
    print_table(["file", "KiB", "largest\ngap", "same\nclass", "test\naccuracy", "ms an\nimage"], lines)
    images = f"{made.files[0].parity.images} images of " + ("noise" if domain is None else domain.name)
    say(f"compared with the model itself on {images}; one thread")
    whole, small = (next((f.accuracy for f in made.files if f.name == name), None) for name in (ONNX, INT8))
    if whole is not None and small is not None:
        say(f"int8 costs {100 * (whole - small):.1f} points of accuracy on {made.files[0].parity.images} images")
    if made.pruned:
        count = sum(made.pruned.values())
        say(f"left out as dead: {len(made.pruned)} tensors, {count:,} numbers ({_some(made.pruned)})")
    say(f"written: {out}")


def _some(names: dict[str, int]) -> str:
    first = sorted(names, key=lambda name: -names[name])[:3]
    return ", ".join(first) + (", .." if len(names) > len(first) else "")
