"""Rotation as auxiliary task: turn the images, then `cross_entropy` on four logits and the quarter turns."""

import torch
from torch import Tensor

from lepton_rl.errors import InputError


def rotate_batch(images: Tensor, quarter_turns: Tensor) -> Tensor:
    """Turn every image counter-clockwise by its number of quarter turns.

    The loss of the task is `cross_entropy(rotation_logits, quarter_turns)` with logits `[..., b, 4]`.

    Args:
        images: square images `[..., b, c, h, w]`, any dtype.
        quarter_turns: integers `[..., b]`, counted modulo 4.

    Returns:
        The turned images, in the shape and dtype of `images`.

    Raises:
        InputError: the images are not square.

    Source: Gidaris et al. 2018, "Unsupervised representation learning by predicting image rotations"; Sun et
    al. 2019, "Unsupervised domain adaptation through self-supervision" (as auxiliary task on both domains).
    """
    height, width = images.shape[-2:]
    if height != width:
        raise InputError(f"images are {height}x{width}, rotation needs square ones: resize them or switch rotation off")
    turns = quarter_turns.remainder(4)[..., None, None, None]
    turned = images
    for count in (1, 2, 3):
        turned = torch.where(turns == count, torch.rot90(images, count, (-2, -1)), turned)
    return turned
