"""What stands inside an exported file beside the network: class names and what images must look like."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_rl import __version__
from lepton_rl.errors import InputError
from lepton_rl.extras import extra
from lepton_rl.preprocessing import Preprocessing

FORMAT = 1
KEY = "lepton"
EXTRA_FILE = "lepton.json"  # inside a .pt2 archive, which puts it into its folder extra/
MAX_CARD_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Card:
    """The facts that make an exported model usable.

    Attributes:
        classes: Names of the outputs.
        preprocessing: Channels and size that images must have; standardising them is part of the network.
        weights: `float32` or `int8`.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    weights: str = "float32"

    def to_text(self) -> str:
        """Return it as sorted JSON; the lines about input and output are for people."""
        facts = {
            "format": FORMAT,
            "classes": list(self.classes),
            "preprocessing": vars(self.preprocessing),
            "weights": self.weights,
            "input": "images: uint8 [n, channels, height, width], bilinear, antialiased, not standardised",
            "output": "logits: float32 [n, classes]",
            "lepton_rl": __version__,
        }
        return json.dumps(facts, sort_keys=True)

    @classmethod
    def from_text(cls, text: str, where: str) -> "Card":
        """Read it; `where` names the file.

        Raises:
            InputError: If it is not a card of this format.
        """
        try:
            facts = json.loads(text) if len(text) <= MAX_CARD_BYTES else None
        except (ValueError, RecursionError):
            facts = None
        if not isinstance(facts, dict):
            raise InputError(f"{where} has no card: expected JSON of at most 1 MiB; export the model again")
        if facts.get("format") != FORMAT:
            raise InputError(
                f"{where} has a card of format {str(facts.get('format'))[:20]}: expected {FORMAT}; export it again"
            )
        classes, weights = facts.get("classes"), facts.get("weights")
        if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(name, str) for name in classes):
            raise InputError(f"{where} names no classes: expected a list of at least two texts; export the model again")
        if weights not in ("float32", "int8"):
            raise InputError(f"{where} has weights {str(weights)[:20]!r}: expected float32 or int8; export it again")
        way = Preprocessing.from_json(facts.get("preprocessing"), where)
        return cls(classes=tuple(classes), preprocessing=way, weights=weights)


def card_of(metadata: Mapping[str, str], where: str) -> Card:
    """Read the card from the metadata of an ONNX file.

    Raises:
        InputError: If there is none.
    """
    if KEY not in metadata:
        raise InputError(f"{where} was not made by lepton export: expected the metadata key {KEY!r}; export it again")
    return Card.from_text(metadata[KEY], where)


def read_card(path: Path) -> Card:
    """Read the card of an exported file, `.onnx` or `.pt2`, without running or unpickling anything.

    Raises:
        InputError: If the file is missing, damaged, or none of ours.
    """
    if not path.is_file():
        raise InputError(f"{str(path)!r} does not exist: expected a file of lepton export; check the path")
    if path.suffix == ".pt2":
        return Card.from_text(_text_of_archive(path), str(path))
    onnx = extra("export", "onnx")
    try:
        held: Any = onnx.load(path, load_external_data=False)
    except Exception as error:  # the parser raises many kinds; each means that the file is damaged
        reason = " ".join(str(error).split())[:80]
        raise InputError(f"{path} cannot be read ({reason}): expected a whole ONNX file; export it again") from None
    return card_of({entry.key: entry.value for entry in held.metadata_props}, str(path))


def _text_of_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith(f"/extra/{EXTRA_FILE}"))
            with archive.open(name) as file:
                return file.read(MAX_CARD_BYTES + 1).decode()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:80]
        raise InputError(
            f"{path} cannot be read ({reason}): expected a file of lepton export; export it again"
        ) from None
