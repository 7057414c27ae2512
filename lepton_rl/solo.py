"""The engine for one arbitrary `nn.Module`."""

import copy

import torch
from torch import Tensor, nn

from lepton_rl.auxiliary import AuxiliaryHeads
from lepton_rl.engine import CHUNK, VIEW, Engine, Side
from lepton_rl.normalisation import MOMENTUM, DomainStatistics
from lepton_rl.stages import HEAD, N_GROUPS, N_STAGES, StagePlan, find_stages
from lepton_rl.task import VisibleTask


class SoloEngine(Engine):
    """Fine-tune one network.

    Frozen stages have `requires_grad` off, no optimizer state, and the backward pass stops above them; their
    batch normalisation uses stored statistics of the domain at hand.

    Args:
        task: The first task; later ones must have the same kind of model.
        device: Where to train.
        dtype: Floating point type.
    """

    def __init__(
        self,
        task: VisibleTask,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(lanes=1, example=task, device=torch.device(device), dtype=dtype)
        self.plan: StagePlan = find_stages(task.model)
        self._prepare(task.model)
        self.heads = AuxiliaryHeads(1, self._feature_width(task), self.device, dtype)

    # ----- weights

    def _prepare(self, model: nn.Module) -> None:
        """Copy a network and sort its parameters into layer groups."""
        self.model = copy.deepcopy(model).to(self.device, self.dtype).eval()
        self.groups: list[list[nn.Parameter]] = [[] for _ in range(N_GROUPS)]
        for name, parameter in self.model.named_parameters():
            self.groups[self.plan.group_of(name)].append(parameter.requires_grad_(True))
        self.start = [[p.detach().clone() for p in group] for group in self.groups]
        self.statistics = DomainStatistics(self.model, self.plan)
        self.optimizers: list[torch.optim.Adam | None] = [None] * N_GROUPS
        self.live = [False] * N_GROUPS
        self._gradient_norms = torch.zeros(1, N_GROUPS, device=self.device, dtype=self.dtype)
        self._features: list[Tensor] = []
        head = self.model.get_submodule(self.plan.head)
        head.register_forward_pre_hook(lambda _, inputs: self._features.append(inputs[0]))

    def _feature_width(self, task: VisibleTask) -> int:
        shape = task.target_unlabelled.images.shape[1:]
        with torch.no_grad():
            features, _ = self._forward(
                torch.zeros(1, 1, *shape, device=self.device, dtype=self.dtype), "target", False, None
            )
        return features.shape[-1]

    def _load_network(self, lane: int, task: VisibleTask) -> None:
        del lane
        self.plan = find_stages(task.model)
        self._prepare(task.model)

    def snapshot(self, lane: int) -> dict[str, Tensor]:
        """Copy weights and both domains' statistics."""
        del lane
        weights = {f"weights.{name}": p.detach().clone() for name, p in self.model.named_parameters()}
        return weights | {f"statistics.{name}": value for name, value in self.statistics.snapshot().items()}

    @torch.no_grad()
    def restore(self, lane: int, weights: dict[str, Tensor]) -> None:
        """Put a snapshot back; moments start anew."""
        del lane
        for name, parameter in self.model.named_parameters():
            parameter.copy_(weights[f"weights.{name}"])
        prefix = "statistics."
        self.statistics.restore({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        for group, optimizer in enumerate(self.optimizers):
            if optimizer is not None:
                self.optimizers[group] = torch.optim.Adam(self.groups[group])

    @torch.no_grad()
    def pull_back(self, lanes: Tensor, keep: float) -> None:
        """Move the weights towards the pretrained ones."""
        if bool(lanes[0]):
            for group, start in zip(self.groups, self.start, strict=True):
                for parameter, origin in zip(group, start, strict=True):
                    parameter.copy_(origin.lerp(parameter, keep))

    # ----- forward and backward

    def _forward(self, images: Tensor, side: Side, live: bool, update: Tensor | None) -> tuple[Tensor, Tensor]:
        # With a single lane, a batch whose statistics must not be stored is one that asks for none.
        self.statistics.use(side, self.live if live else [False] * N_GROUPS, MOMENTUM if update is not None else 0.0)
        self._features.clear()
        logits = self.model(images[0])
        features = self._features[-1].flatten(1)
        return features[None], logits[None]

    def _backward(self, loss: Tensor, learning_rate: Tensor, trained: Tensor) -> None:
        del trained
        for optimizer in self.optimizers:
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:
            torch.autograd.backward(loss.sum())
        rate = float(learning_rate[0])
        for optimizer in self.optimizers:
            if optimizer is not None:
                for parameter in optimizer.param_groups[0]["params"]:
                    if parameter.grad is None:  # no term reaches it: its moments still decay, as in a fleet
                        parameter.grad = torch.zeros_like(parameter)
                optimizer.param_groups[0]["lr"] = rate
                optimizer.step()

    def set_depth(self, unfrozen_stages: Tensor) -> None:
        """Freeze and unfreeze; a stage that freezes takes target statistics from the target view."""
        depth = int(unfrozen_stages[0])
        live = [group == HEAD or group >= N_STAGES - depth for group in range(N_GROUPS)]
        freezing = [was and not now for was, now in zip(self.live, live, strict=True)]
        self.live = live
        for group, parameters in enumerate(self.groups):
            for parameter in parameters:
                parameter.requires_grad_(live[group])
            if live[group] and parameters and self.optimizers[group] is None:
                self.optimizers[group] = torch.optim.Adam(parameters)
            elif not live[group]:
                self.optimizers[group] = None
                for parameter in parameters:
                    parameter.grad = None
        if any(freezing):
            marked = torch.tensor([freezing], device=self.device)
            self.estimate_statistics("target", marked)

    @torch.no_grad()
    def estimate_statistics(self, side: Side, stages: Tensor) -> None:
        """Take the statistics of marked stages from the domain's view."""
        name = "target_unlabelled" if side == "target" else "source_val"
        rows, _ = self._view_rows(name, min(VIEW, max(1, int(self.length[name][0]))))
        images, _ = self.pool.gather(rows)
        marked = [bool(stages[0, group]) for group in range(N_GROUPS)]
        for i, chunk in enumerate(images.split(CHUNK, 1)):
            self.statistics.use(side, marked, 1 / (i + 1))
            self.model(self._normalise(self._unit(chunk))[0])

    # ----- readings

    def gradient_norms(self) -> Tensor:
        """Return the last gradient's norm per layer group."""
        return torch.stack([_norm([p.grad for p in g if p.grad is not None], self.mean) for g in self.groups])[None]

    def weight_norms(self) -> tuple[Tensor, Tensor]:
        """Return weight norm and distance from the pretrained weights per layer group."""
        with torch.no_grad():
            size = [_norm([p.detach() for p in group], self.mean) for group in self.groups]
            moved = [
                _norm([p.detach() - q for p, q in zip(group, start, strict=True)], self.mean)
                for group, start in zip(self.groups, self.start, strict=True)
            ]
        return torch.stack(size)[None], torch.stack(moved)[None]

    def finite(self) -> Tensor:
        """Return whether weights and statistics are finite."""
        weights = torch.stack([torch.isfinite(p.detach()).all() for p in self.model.parameters()]).all()
        return (weights & self.statistics.finite())[None]


def _norm(tensors: list[Tensor], like: Tensor) -> Tensor:
    if not tensors:
        return like.new_zeros(())
    return torch.nn.utils.get_total_norm(tensors)
