"""The folder of a finished `lepton adapt`, for the commands that come after it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from lepton_rl.errors import InputError
from lepton_rl.loading import load_model
from lepton_rl.models import ARCHITECTURES
from lepton_rl.named_models import is_named
from lepton_rl.preprocessing import Preprocessing
from lepton_rl.stages import find_stages

WEIGHTS, HISTORY, MANIFEST = "weights.safetensors", "history.jsonl", "manifest.json"
REFERENCE = "reference.safetensors"


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What a run left behind.

    Attributes:
        folder: Its `--out`.
        classes: Names of the model's outputs.
        preprocessing: What images go through on their way into the model.
        model_name: What `--model` was; empty for a run that was started in Python.
        head: Dotted name of the model's classifier; empty if the run does not say.
    """

    folder: Path
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    model_name: str
    head: str

    @classmethod
    def read(cls, folder: Path) -> "SavedRun":
        """Read what is known of a run.

        Raises:
            InputError: If the folder is not that of a finished `lepton adapt`.
        """
        if not folder.is_dir():
            raise InputError(f"run {str(folder)!r} is no folder: expected the --out of lepton adapt; check the path")
        missing = [name for name in (WEIGHTS, HISTORY, MANIFEST) if not (folder / name).is_file()]
        if missing:
            raise InputError(f"run {str(folder)!r} has no {missing[0]}: expected the --out of a finished lepton adapt")
        path = folder / WEIGHTS
        facts = _facts(path)
        classes = facts.get("classes")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise InputError(f"{path} names no classes: expected a list of texts; run lepton adapt again")
        return cls(
            folder=folder,
            classes=tuple(classes),
            preprocessing=Preprocessing.from_json(facts.get("preprocessing"), str(path)),
            model_name=_model_name(folder / MANIFEST),
            head=str(facts.get("head", "")),
        )

    def load(self, name: str | None = None) -> nn.Module:
        """Return the adapted model.

        A file never decides which code is imported: `package.module:function` must be typed again.

        Args:
            name: As `--model` of `lepton adapt`; None = as the run was made, if that is a model of this package or
                of a library that it knows.

        Raises:
            InputError: If the model must be named, is unknown, or does not fit the weights.
        """
        return load_model(self.name_of(name), self.folder / WEIGHTS)

    def name_of(self, name: str | None) -> str:
        """Return the name of the model, given or as the run was made; as `load`."""
        if name is None and self.model_name not in ARCHITECTURES and not is_named(self.model_name):
            made = f"with {self.model_name!r}" if self.model_name else "in Python"
            raise InputError(
                f"run {str(self.folder)!r} was made {made}, which no file may import: expected the model's name; "
                f"give --model {self.model_name or 'package.module:function'}"
            )
        return name or self.model_name

    def head_of(self, model: nn.Module) -> str:
        """Return the name of the classifier of the loaded model.

        Raises:
            InputError: If the model has no such layer.
        """
        return find_stages(model, self.head or None).head


def _facts(path: Path) -> Mapping[str, object]:
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["lepton_model"])
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())[:80]
        raise InputError(
            f"{path} cannot be read ({reason}): expected the weights that lepton adapt wrote; get the file again"
        ) from None
    if not isinstance(facts, dict):
        raise InputError(f"{path} describes no model: expected a JSON object; run lepton adapt again")
    return facts


def _model_name(path: Path) -> str:
    """Return the model that a manifest names, or nothing."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        name = manifest["arguments"]["model"] if manifest["command"] == "lepton adapt" else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return name if isinstance(name, str) else ""
