"""What a user's model must be: images in, one row of finite logits out, weights that can be trained."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from lepton_rl.arrays import one_line
from lepton_rl.errors import InputError
from lepton_rl.outputs import logits_of
from lepton_rl.stages import StagePlan, find_stages


def input_channels(model: nn.Module, default: int) -> int:
    """Return the channels that the model's first convolution takes, or `default` if that is not 1 or 3."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels if module.in_channels in (1, 3) else default
    return default


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a trial of a model has shown.

    Attributes:
        n_classes: Length of a row of logits.
        notes: What will be put right on the way, in words.
    """

    n_classes: int
    notes: tuple[str, ...]


def check_model(model: nn.Module, channels: int, height: int, width: int, plan: StagePlan | None = None) -> ModelFacts:
    """Try a model on two blank images; the model itself is not touched.

    Args:
        model: From images to logits.
        channels: Of the images.
        height: In pixels.
        width: In pixels.
        plan: Its layer groups; default those that are found.

    Raises:
        TypeError: If it is no `nn.Module`.
        InputError: If it has no parameters or no linear head, weights that are not finite, or puts out
            anything but finite `[n, k]` with k >= 2.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}: expected a torch.nn.Module from images to logits")
    name = type(model).__name__
    _check_weights(model, name)
    head = (plan or find_stages(model)).head
    trial = _copied(model, name)
    reached: list[bool] = []
    trial.get_submodule(head).register_forward_pre_hook(lambda *_: reached.append(True))
    outputs = _forward(trial, name, [2, channels, height, width])
    if not reached:
        raise InputError(
            f"model {name}: its last linear layer {head!r} takes no part in the forward pass: expected the "
            "classifier to be the last nn.Linear; remove the unused layer, or give head, the name of the classifier"
        )
    logits = logits_of(outputs)
    notes = [] if logits is outputs else [f"model {name} returns {type(outputs).__name__}: its logits are used"]
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters()} - {"float32"}
    if kinds:
        notes.append(
            f"model {name} is in {', '.join(sorted(kinds))}: a copy is trained in float32 and given back as it was"
        )
    return ModelFacts(n_classes=_class_count(logits, name), notes=tuple(notes))


def _check_weights(model: nn.Module, name: str) -> None:
    for key, value in model.state_dict().items():
        if isinstance(value, UninitializedBuffer | UninitializedParameter):
            raise InputError(f"model {name}: {key!r} has no shape yet: expected trained weights; run the model once")
        if value.is_meta:
            raise InputError(f"model {name}: {key!r} is on the meta device: expected trained weights; load them first")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"model {name}: {key!r} is not finite: expected trained weights; load them again")


def _copied(model: nn.Module, name: str) -> nn.Module:
    """Return a copy in float32, which is what engines train: a trial must not move the model or count its batches."""
    try:
        return copy.deepcopy(model).to("cpu", torch.float32).eval()
    except Exception as error:  # a module may hold anything; what cannot be copied cannot be adapted either
        raise InputError(
            f"model {name} cannot be copied ({one_line(error)}): expected a module that copy.deepcopy can copy, as "
            "the original is never changed; detach the tensors that it keeps besides its weights"
        ) from error


def _forward(model: nn.Module, name: str, shape: list[int]) -> object:
    try:
        with torch.no_grad():
            return model(torch.zeros(shape))
    except Exception as error:  # layers raise many kinds on a wrong shape; each means the same to the user
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(
            f"model {name} fails on images {shape} ({reason}): expected a network for images of this size; "
            "give image_size, the side in pixels that it was trained with"
        ) from error


def _class_count(outputs: object, name: str) -> int:
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"model {name} returns {type(outputs).__name__}: expected one tensor of logits [n, classes]; "
            "wrap it in a module that returns only these"
        )
    if outputs.dim() != 2 or outputs.shape[0] != 2 or outputs.shape[1] < 2:
        raise InputError(
            f"model {name} returns shape {list(outputs.shape)} for 2 images: expected logits [2, classes] with at "
            "least 2 classes; wrap it in a module that returns these"
        )
    if not bool(torch.isfinite(outputs).all()):
        raise InputError(f"model {name} returns logits that are not finite: expected numbers; check its weights")
    return int(outputs.shape[1])
