"""Gymnasium environments around the fine-tuning loop; importing this registers `lepton_rl/FineTune-v0`."""

from gymnasium.envs.registration import register, registry

from lepton_rl.envs.finetune import FineTuneEnv
from lepton_rl.envs.vector import FineTuneVectorEnv

ENV_ID = "lepton_rl/FineTune-v0"

if ENV_ID not in registry:
    register(
        id=ENV_ID,
        entry_point="lepton_rl.envs.finetune:FineTuneEnv",
        vector_entry_point="lepton_rl.envs.vector:FineTuneVectorEnv",
    )

__all__ = ["ENV_ID", "FineTuneEnv", "FineTuneVectorEnv"]
