"""Networks of timm, torchvision and Hugging Face by name: built on this machine, never fetched.

The libraries are extras and imported when a name asks for them. A build of torchvision that does not belong to the
installed torch fails with a RuntimeError, not an ImportError, and timm needs torchvision.
"""

import difflib
import importlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lepton_rl.arrays import one_line
from lepton_rl.errors import InputError

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True, kw_only=True)
class ExpectedInput:
    """What a library says about the images that its weights were trained with.

    Attributes:
        size: Height and width in pixels.
        mean: Per channel, in 0..1.
        std: Per channel, in 0..1.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A network that is not built yet.

    Attributes:
        build: Builds it; the weights are random unless `trained`.
        expected: Its images, where the library says so.
        trained: Whether `build` also reads weights that lie beside it.
    """

    build: Callable[[], nn.Module]
    expected: ExpectedInput | None
    trained: bool = False


def is_named(name: str) -> bool:
    """Return whether a name is one of `timm:NAME`, `torchvision:NAME` and `hf:NAME`."""
    return name.partition(":")[0] in FINDERS and ":" in name


def find_named(name: str) -> NamedModel:
    """Look a network up.

    Args:
        name: `timm:NAME`, `torchvision:NAME`, or `hf:NAME`, which is a folder with config.json, a repository in
            the local cache of Hugging Face, or a kind of model such as `resnet`.

    Raises:
        InputError: If the library is missing or broken, or does not know the name.
    """
    library, _, short = name.partition(":")
    with _quietly():
        return FINDERS[library](short, name)


def build_named(found: NamedModel, name: str) -> nn.Module:
    """Build a network with weights that do not depend on, and do not move, global random state.

    Raises:
        InputError: If the library cannot build it.
    """
    with torch.random.fork_rng(devices=[]), _quietly():
        torch.manual_seed(0)
        try:
            return found.build().eval()
        except InputError:
            raise
        except Exception as error:  # a library's own errors, each about its files or its settings
            raise InputError(
                f"model {name!r} cannot be built ({one_line(error)}): expected whole files of a network for images; "
                "get them again, or name another model"
            ) from error


def _timm(short: str, name: str) -> NamedModel:
    _library("torchvision", name)
    timm = _library("timm", name)
    if not timm.is_model(short):
        raise _unknown(name, short, timm.list_models())
    config = timm.get_pretrained_cfg(short, allow_unregistered=True)
    expected = None
    if config is not None:
        expected = ExpectedInput(size=tuple(config.input_size[1:]), mean=tuple(config.mean), std=tuple(config.std))
    return NamedModel(build=lambda: timm.create_model(short, pretrained=False), expected=expected)


def _torchvision(short: str, name: str) -> NamedModel:
    models = _library("torchvision", name).models
    if short not in models.list_models(module=models):
        raise _unknown(name, short, models.list_models(module=models))
    choice = models.get_model_weights(short)
    way = choice.DEFAULT.transforms() if len(choice) else None
    expected = None
    if way is not None:
        side = int(way.crop_size[0])
        expected = ExpectedInput(size=(side, side), mean=tuple(way.mean), std=tuple(way.std))
    return NamedModel(build=lambda: models.get_model(short, weights=None), expected=expected)


def _hugging_face(short: str, name: str) -> NamedModel:
    library = _library("transformers", name)
    if importlib.util.find_spec("torchvision") is not None:
        _library("torchvision", name)  # which transformers uses where it is installed, sound or not
    kinds = sorted(library.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
    automatic = library.AutoModelForImageClassification
    if short in kinds and not Path(short).is_dir():
        return NamedModel(build=lambda: automatic.from_config(library.AutoConfig.for_model(short)), expected=None)
    here = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = library.AutoConfig.from_pretrained(short, **here)
    except (OSError, ValueError) as error:
        close = difflib.get_close_matches(short, kinds)
        hint = f" (near: {', '.join(close)})" if close else ""
        raise InputError(
            f"model {name!r} is not on this machine{hint}: expected a folder with config.json and model.safetensors, a "
            f"repository that `hf download` has fetched, or a kind of model such as {kinds[0]}; nothing is fetched here"
        ) from error

    def build() -> nn.Module:
        bars = library.utils.logging
        shown = bars.is_progress_bar_enabled()
        bars.disable_progress_bar()
        try:
            model, loading = automatic.from_pretrained(
                short, config=config, use_safetensors=True, output_loading_info=True, **here
            )
        finally:
            if shown:
                bars.enable_progress_bar()
        absent = sorted(loading["missing_keys"])
        if absent:
            raise InputError(
                f"model {name!r} lacks weights for {absent[0]!r}: expected a network fine-tuned to tell classes apart; "
                "give the folder of one"
            )
        result: nn.Module = model
        return result

    return NamedModel(build=build, expected=_stated(short), trained=True)


def _stated(short: str) -> ExpectedInput | None:
    """Read a preprocessor's file, if there is a whole one."""
    path: object = Path(short) / PREPROCESSOR
    if not Path(short).is_dir():
        path = importlib.import_module("huggingface_hub").try_to_load_from_cache(short, PREPROCESSOR)
    if not isinstance(path, str | Path):
        return None
    try:
        facts = json.loads(Path(path).read_text(encoding="utf-8"))
        side = facts.get("crop_size") or facts["size"]
        size = side if isinstance(side, int) else side.get("height") or side["shortest_edge"]
        width = size if isinstance(side, int) else side.get("width") or size
        mean, std = (tuple(float(v) for v in facts[key]) for key in ("image_mean", "image_std"))
        return ExpectedInput(size=(int(size), int(width)), mean=mean, std=std)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _library(module: str, name: str) -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:
        raise InputError(
            f"model {name!r} needs {module}, which cannot be imported ({one_line(error)}): expected the extra models, "
            "in builds that belong to the installed torch; pip install 'lepton_rl[models]'"
        ) from error


def _unknown(name: str, short: str, known: Sequence[str]) -> InputError:
    close = difflib.get_close_matches(short, known) or list(known[:3])
    return InputError(
        f"model {name!r} is unknown to the library: expected one of its {len(known)}, near: {', '.join(close)}"
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back what the libraries say about changes to come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


FINDERS: dict[str, Callable[[str, str], NamedModel]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _hugging_face,
}
