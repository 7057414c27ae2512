"""The observation and action spaces, made from the core's tables."""

import numpy as np
from gymnasium.spaces import Box, MultiDiscrete

from lepton_rl.controls import ACTION_SIZES
from lepton_rl.signals import SIGNALS


def observation_space() -> Box:
    """Return the Box that every observation lies in, float32 `[signals]`."""
    low = np.array([signal.low for signal in SIGNALS], dtype=np.float32)
    high = np.array([signal.high for signal in SIGNALS], dtype=np.float32)
    return Box(low, high, dtype=np.float32)


def action_space() -> MultiDiscrete:
    """Return the sub-action sizes in the order of `controls.KNOBS`."""
    return MultiDiscrete(list(ACTION_SIZES))
