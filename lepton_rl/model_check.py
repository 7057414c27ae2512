"""What a user's model must be: images in, one row of finite logits out, weights that can be trained."""

import copy

import torch
from torch import Tensor, nn

from lepton_rl.errors import InputError
from lepton_rl.stages import find_stages


def input_channels(model: nn.Module, default: int) -> int:
    """Return the channels that the model's first convolution takes, or `default` if that is not 1 or 3."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels if module.in_channels in (1, 3) else default
    return default


def check_model(model: nn.Module, channels: int, height: int, width: int) -> int:
    """Try a model on two blank images and return its number of classes; the model itself is not touched.

    Args:
        model: From images to logits.
        channels: Of the images.
        height: In pixels.
        width: In pixels.

    Raises:
        TypeError: If it is no `nn.Module`.
        InputError: If it has no parameters or no linear head, weights that are not finite, or puts out
            anything but finite `[n, k]` with k >= 2.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}: expected a torch.nn.Module from images to logits")
    name = type(model).__name__
    head = find_stages(model).head
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"model {name}: {key!r} is not finite: expected trained weights; load them again")
    # A copy in float32, which is what engines train: trying a model must not move it or count its batches.
    trial = copy.deepcopy(model).to("cpu", torch.float32).eval()
    reached: list[bool] = []
    trial.get_submodule(head).register_forward_pre_hook(lambda *_: reached.append(True))
    outputs = _forward(trial, name, [2, channels, height, width])
    if not reached:
        raise InputError(
            f"model {name}: its last linear layer {head!r} takes no part in the forward pass: expected the "
            "classifier to be the last nn.Linear; remove the unused layer"
        )
    return _class_count(outputs, name)


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
