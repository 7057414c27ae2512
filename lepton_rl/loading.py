"""Models and domains from what a person types: names, `package.module:function`, files and folders."""

import importlib
import inspect
import sys
import traceback
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lepton_rl.arrays import one_line
from lepton_rl.decode import Corrupt
from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.hugging_face import is_saved_dataset
from lepton_rl.models import ARCHITECTURES, build_model
from lepton_rl.named_models import build_named, find_named, is_named
from lepton_rl.stages import find_stages
from lepton_rl.task_adapter import with_head

NPZ_SPLITS = ("train", "test")
NESTED_KEYS = ("state_dict", "model_state_dict")
STEM, HEAD = "stages.0.0.weight", "head.weight"


def load_model(name: str, weights: Path | None = None) -> nn.Module:
    """Return a model by name, with the weights of a file if one is given.

    Args:
        name: `vgg`, `resnet`, `vgg-gn` or `resnet-gn`; `timm:NAME`, `torchvision:NAME` or `hf:NAME`; or
            `package.module:function`, a callable without arguments that returns an `nn.Module`; modules of the
            working folder are found too. All but the last, and `hf:FOLDER`, need `weights`.
        weights: A `.safetensors` file, or a `.pt` file that holds plain tensors. Where it has a head for another
            number of classes, the model gets a head of that size.

    Raises:
        InputError: If there is no such model, or the weights do not fit it.
    """
    tensors = None if weights is None else load_weights(weights)
    if name in ARCHITECTURES:
        if tensors is None:
            raise InputError(
                f"model {name!r} comes without weights: expected a file of trained ones; give --weights, "
                "or --source to train it there first"
            )
        model: nn.Module = _built_in(name, tensors, str(weights))
    elif is_named(name):
        found = find_named(name)
        if tensors is None and not found.trained:
            raise InputError(
                f"model {name!r} comes without weights, as none are fetched: expected a file of trained ones; give "
                "--weights, or --source to train it there first"
            )
        model = build_named(found, name)
    else:
        model = _made(name)
    if tensors is not None:
        model = _with_head_of(model, tensors)
        _fill(model, tensors, f"weights {str(weights)!r}")
    return model.eval()


def untrained_model(name: str) -> nn.Module:
    """Return a network of timm, torchvision or Hugging Face with random weights, to look at or to train."""
    return build_named(find_named(name), name).eval()


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict, without unpickling anything but tensors.

    Raises:
        InputError: If the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"weights {str(path)!r} do not exist: expected a .safetensors or .pt file; check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_nothing_is_packed(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"weights {str(path)!r} cannot be read ({reason}): expected a whole file; get it again"
        ) from error
    except Exception as error:  # the unpickler raises many kinds; each means that the file is no plain state dict
        raise InputError(
            f"weights {str(path)!r} cannot be read safely: expected .safetensors, or .pt with nothing but tensors; "
            "save model.state_dict() with safetensors.torch.save_file"
        ) from error
    for key in NESTED_KEYS:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not held or not all(isinstance(t, Tensor) for t in held.values()):
        raise InputError(
            f"weights {str(path)!r} hold {type(held).__name__}: expected a state dict, tensors by name; "
            "save model.state_dict()"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in held.items()}


def _check_nothing_is_packed(path: Path) -> None:
    """Refuse an archive that says it unpacks to more than its own size: torch.save packs nothing, bombs are packed."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
        if total > path.stat().st_size:
            raise ValueError(f"{total} bytes")


def load_domain(
    text: str,
    *,
    classes: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    corrupt: Corrupt = "refuse",
) -> Domain:
    """Return a domain by what a person typed.

    Args:
        text: `digits`, an `.npz` file (`FILE.npz:train` and `FILE.npz:test` read one part), a table `FILE.csv`
            (`FILE.csv:SPLIT`), a folder of images, or one that `datasets` saved (`FOLDER:SPLIT`).
        classes: Names of the classes, in label order.
        size: Height and width, in pixels, at which image files are read; default the first one's.
        corrupt: Whether image files that cannot be read are refused or skipped.

    Raises:
        InputError: If it cannot be read.
    """
    if text == "digits":
        return Domain.digits()
    path, _, split = text.rpartition(":")
    if path.endswith(".npz") and split in NPZ_SPLITS:
        return Domain.from_npz(path, split, classes=classes)
    if text.endswith(".npz"):
        return Domain.from_npz(text, classes=classes)
    if text.endswith(".csv"):
        return Domain.from_csv(text, classes=classes, size=size, corrupt=corrupt)
    if path.endswith(".csv"):
        return Domain.from_csv(path, split, classes=classes, size=size, corrupt=corrupt)
    if is_saved_dataset(Path(text)):
        return Domain.from_huggingface(text, classes=classes, size=size)
    if path and is_saved_dataset(Path(path)):
        return Domain.from_huggingface(path, split, classes=classes, size=size)
    if Path(text).is_file():
        raise InputError(f"{text!r} is a file: expected a folder of images, a .csv or .npz file, or 'digits'")
    return Domain.from_folder(text, classes=classes, size=size, corrupt=corrupt)


def is_domain(text: str) -> bool:
    """Return whether a text names images rather than a model: a folder, a table, an archive, or `digits`."""
    named = any(part.endswith((".npz", ".csv")) for part in (text, text.rpartition(":")[0]))
    return named or text == "digits" or Path(text).is_dir() or is_saved_dataset(Path(text.rpartition(":")[0] or "-"))


def _built_in(name: str, tensors: Mapping[str, Tensor], path: str) -> nn.Module:
    """Build a network of the family in the size that the weights have."""
    stem, head = tensors.get(STEM), tensors.get(HEAD)
    if stem is None or head is None or stem.dim() != 4 or head.dim() != 2:
        raise InputError(
            f"weights {path!r} are not of a {name!r}: expected {STEM!r} [n, c, 3, 3] and {HEAD!r} [classes, n]; "
            "name the model that they belong to"
        )
    return build_model(name, channels=stem.shape[1], n_classes=head.shape[0], width=stem.shape[0])


def _with_head_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Give a model a head for as many classes as the weights have, where all else fits."""
    own = model.state_dict()
    wrong = {key for key in own if key in tensors and own[key].shape != tensors[key].shape}
    if not wrong or not any(isinstance(module, nn.Linear) for module in model.modules()):
        return model
    name = find_stages(model).head
    weight = tensors.get(f"{name}.weight")
    if weight is None or weight.dim() != 2 or not wrong <= {f"{name}.weight", f"{name}.bias"}:
        return model
    if weight.shape[1] != own[f"{name}.weight"].shape[1]:
        return model
    bias = f"{name}.bias" in own
    return with_head(model, name, nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias))


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    own = model.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    for keys, said in ((missing, "lack"), (extra, "have the unknown"), (wrong, "have another shape of")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise InputError(
                f"{what} {said} {keys[0]!r}{more}: expected exactly the {len(own)} tensors of {type(model).__name__}; "
                "give the file that belongs to this model"
            )
    spoiled = [key for key in own if not tensors[key].isfinite().all()]
    if spoiled:
        raise InputError(
            f"{what}: {spoiled[0]!r} is not finite: expected finite weights; take a checkpoint from before it diverged"
        )
    model.load_state_dict(dict(tensors))


def _made(name: str) -> nn.Module:
    """Call `package.module:function`."""
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise InputError(
            f"model {name!r} is unknown: expected one of {', '.join(ARCHITECTURES)}, timm:NAME, torchvision:NAME, "
            "hf:NAME, or package.module:function"
        )
    with _working_folder_first():
        try:
            made = getattr(importlib.import_module(module_name), attribute)
        except ImportError as error:
            raise InputError(
                f"model {name!r} cannot be imported ({error}): expected package.module:function, importable from the "
                "working folder; check the name and what is installed"
            ) from error
        except AttributeError as error:
            raise InputError(
                f"model {name!r}: {module_name} has no {attribute!r}: expected a function that returns an nn.Module"
            ) from error
        except Exception as error:  # the user's own code, which may fail in any way
            raise _own_failure(name, error) from error
        if isinstance(made, nn.Module):
            return made
        _check_callable(made, name)
        try:
            model = made()
        except Exception as error:
            raise _own_failure(name, error) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model {name!r} returns {type(model).__name__}: expected a torch.nn.Module; return one")
    return model


def _own_failure(name: str, error: Exception) -> InputError:
    """Say where a user's own code failed, as no traceback is shown."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return InputError(
        f"model {name!r} fails in {Path(last.filename).name} line {last.lineno} ({type(error).__name__}: "
        f"{one_line(error)}): expected a function that returns an nn.Module; correct it"
    )


def _check_callable(made: object, name: str) -> None:
    if not callable(made):
        raise InputError(f"model {name!r} is {type(made).__name__}: expected a function that returns an nn.Module")
    try:
        inspect.signature(made).bind()
    except TypeError as error:
        raise InputError(
            f"model {name!r} needs arguments ({error}): expected a function without; write one that calls it"
        ) from error
    except ValueError:  # some built-in callables tell no signature
        return


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """Find the user's own modules, as `python -m` would."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
