"""Full fine-tuning in which every layer has a learning rate of its own: Auto-RGN.

The learning rate of a layer is weighed by its relative gradient norm |g| / |w|, averaged over the last batches and
divided by the largest of all layers; normalisation layers keep their scale and shift, as in the authors' code. A layer
is a module here, weight and bias together, where that code weighs every tensor by itself.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lepton_rl.agents.arm import PolicyArm
from lepton_rl.agents.arms.full_finetune import ARM as FULL_FINETUNE
from lepton_rl.rollout import RunResult, rollout
from lepton_rl.solo import SoloEngine
from lepton_rl.task import VisibleTask

BATCHES = 5  # over which norms are averaged
NORMALISATION = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class SurgicalEngine(SoloEngine):
    """Weighs the learning rate of every layer anew at every step."""

    def _parameter_groups(self) -> list[dict[str, Any]]:
        self._layers: list[list[nn.Parameter]] = []
        groups: list[dict[str, Any]] = []
        left = {p for p in self.model.parameters() if p.requires_grad}
        for module in self.model.modules():
            layer = [p for p in module.parameters(recurse=False) if p in left]
            left.difference_update(layer)  # what two modules share belongs to the first
            if isinstance(module, NORMALISATION):
                groups += [{"params": [p], "factor": 0.0, "layer": None} for p in layer]
            elif layer:
                groups += [{"params": [p], "factor": self.factors[p], "layer": len(self._layers)} for p in layer]
                self._layers.append(layer)
        return groups

    def _new_optimizer(self, state: Mapping[Any, Any]) -> torch.optim.Adam:
        optimizer = super()._new_optimizer(state)
        self._norms: deque[Tensor] = deque(maxlen=BATCHES)
        optimizer.register_step_pre_hook(self._weigh)
        return optimizer

    @torch.no_grad()
    def _weigh(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:  # noqa: ANN401
        self._norms.append(torch.stack([_relative_gradient_norm(layer) for layer in self._layers]))
        norms = torch.stack(list(self._norms)).mean(0)
        shares = norms / norms.max().clamp(min=1e-12)
        for group in (group for group in optimizer.param_groups if group["layer"] is not None):
            share = shares[group["layer"]]
            group["lr"] = group["lr"] * (share if isinstance(group["lr"], Tensor) else float(share))


def _relative_gradient_norm(layer: list[nn.Parameter]) -> Tensor:
    gradients = [p.grad for p in layer if p.grad is not None]
    return _norm(gradients) / _norm(layer).clamp(min=1e-12)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.cat([x.flatten() for x in tensors]))
    return norm


class AutoRGN(PolicyArm):
    """Full fine-tuning on that engine."""

    def single(self, task: VisibleTask, seed: int) -> RunResult:
        """Run once."""
        return rollout(task, self.policy_for(task), seed=seed, engine=SurgicalEngine(task))


ARM = AutoRGN(
    name="auto-rgn",
    source="Lee et al. 2023, Surgical fine-tuning improves adaptation to distribution shifts",
    policy_for=FULL_FINETUNE.policy_for,
)
