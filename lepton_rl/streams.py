"""Random streams that belong to a lane, not to the process.

A counter-based generator: the n-th draw is a hash of (seed, stream, counter), so there is no state to
keep, to copy or to save. A lane's draws depend on nothing but its own seed and step: not on how many
lanes run beside it, on the order of resets, on the device, or on where a killed run went on.

Source: SplitMix64 finaliser, Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
"""

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB

# One number per use, so that a new use never shifts the draws of another.
SOURCE_BATCH, SUPPORT_BATCH, TARGET_BATCH, SHIFT_X, SHIFT_Y, CONTRAST, BRIGHTNESS, ROTATION, INIT = range(9)


def _logical_right_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _logical_right_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_right_shift(x, 27)) * _MIX_2
    return x ^ _logical_right_shift(x, 31)


def uniform(seeds: Tensor, stream: int, counters: Tensor, n: int) -> Tensor:
    """Draw uniform numbers for every lane and counter.

    Args:
        seeds: Lane seeds, int64 `[lanes]`.
        stream: Which use the numbers are for (constants of this module).
        counters: Step numbers, int64 `[lanes, steps]`.
        n: Draws per lane and step.

    Returns:
        float64 `[lanes, steps, n]` in [0, 1), on the device of `seeds`.
    """
    key = _mix(seeds[:, None] * _GOLDEN + stream + 1)
    step = _mix(key + (counters + 1) * _GOLDEN)
    position = torch.arange(1, n + 1, device=seeds.device, dtype=torch.int64) * _GOLDEN
    bits = _mix(step[..., None] + position)
    return _logical_right_shift(bits, 11).to(torch.float64) * 2.0**-53


def integers(seeds: Tensor, stream: int, counters: Tensor, n: int, high: Tensor) -> Tensor:
    """Draw integers in [0, high) for every lane and counter.

    Args:
        seeds: Lane seeds, int64 `[lanes]`.
        stream: Which use the numbers are for.
        counters: int64 `[lanes, steps]`.
        n: Draws per lane and step.
        high: Exclusive upper bound per lane, int64 `[lanes]`, at least 1.

    Returns:
        int64 `[lanes, steps, n]`.
    """
    return (uniform(seeds, stream, counters, n) * high[:, None, None]).to(torch.int64)
