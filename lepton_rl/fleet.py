"""The engine for N networks of one architecture at once."""

import copy
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lepton_rl.auxiliary import AuxiliaryHeads
from lepton_rl.engine import Engine
from lepton_rl.errors import InputError
from lepton_rl.graphs import CudaRecorder, RecordedSteps, Recorder
from lepton_rl.lanes import Implementation, LaneBatchNorm2d, LaneMode, stack_lanes
from lepton_rl.normalisation import MOMENTUM, Part, Side
from lepton_rl.objective import TERMS
from lepton_rl.optim import LaneAdam, rate_factor
from lepton_rl.stages import HEAD, N_GROUPS, N_STAGES, find_stages
from lepton_rl.step import StepInputs, StepKind, take_step
from lepton_rl.task import VisibleTask
from lepton_rl.views import VIEW
from lepton_rl.window import Window

_NONE = [False] * N_GROUPS


class FleetEngine(Engine):
    """Fine-tune N lanes of one architecture as one computation.

    All weights of a layer group lie in one tensor `[lanes, p]`, so that the optimizer, norms, snapshots and the
    transfer coefficient are a few element-wise operations for all lanes, and there is no Python per lane in
    the inner loop. A lane whose window is shorter than the others' is not computed once it is done.

    Args:
        example: A task whose model every lane shares the architecture of, with the largest class count.
        lanes: Number of lanes.
        device: Where to train.
        dtype: Floating point type.
        implementation: Of the convolutions (`LaneConv2d`).
        record: Whether steps of a kind are recorded and played again (`graphs.py`); None = on CUDA.

    Raises:
        InputError: If `record` is asked for without CUDA.
    """

    def __init__(
        self,
        example: VisibleTask,
        lanes: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        implementation: Implementation = "auto",
        record: bool | None = None,
    ) -> None:
        super().__init__(lanes=lanes, example=example, device=torch.device(device), dtype=dtype)
        self.plan = find_stages(example.model)
        self.network = stack_lanes(example.model, lanes, implementation).to(self.device, dtype)
        self.mode = LaneMode()
        self.norms: list[LaneBatchNorm2d] = []
        for name, layer in self.network.named_modules():
            if isinstance(layer, LaneBatchNorm2d):
                layer.group, layer.mode = self.plan.group_of(name), self.mode
                self.norms.append(layer)
        self.statistics = dict(self.network.named_buffers())
        self._collect_parameters()
        self.live = torch.zeros(lanes, N_GROUPS, dtype=torch.bool, device=self.device)
        self._any_live = self._all_live = _NONE
        self._features: list[Tensor] = []
        head = self.network.get_submodule(self.plan.head)
        head.register_forward_pre_hook(lambda _, inputs: self._features.append(inputs[0]))
        linear = example.model.get_submodule(self.plan.head)
        assert isinstance(linear, nn.Linear)
        self.heads = AuxiliaryHeads(lanes, linear.in_features, self.device, dtype)
        if record and self.device.type != "cuda":
            raise InputError(
                f"record on device {self.device}: expected a CUDA device; pass record=None or device='cuda'"
            )
        self.recorded: RecordedSteps | None = None
        self._narrower: dict[int, FleetEngine] = {}
        if self.device.type == "cuda" and record is not False:
            self.record_with(CudaRecorder(self.device))

    # ----- recorded steps

    def record_with(self, recorder: Recorder) -> None:
        """Record steps from now on."""
        self.recorded = RecordedSteps(
            recorder,
            lambda kind, inputs: take_step(self, kind, inputs),
            state=self._changing,
            leaves=self.blocks,
            place=self._place,
        )

    def _run_step(self, kind: StepKind, inputs: StepInputs) -> Tensor:
        if self.recorded is None:
            return super()._run_step(kind, inputs)
        return self.recorded.run(kind, inputs)

    def _changing(self) -> list[Tensor]:
        """List every tensor that a step changes; all are changed in place."""
        optimizers = [*self.optimizers, self.heads.optimizer]
        moments = [x for optimizer in optimizers for x in (optimizer.first, optimizer.second, optimizer.count)]
        return [*self.blocks, self.heads.flat, *moments, *self.statistics.values()]

    def _place(self) -> tuple[object, ...]:
        """Tell which lanes and stages the host knows to be live, and where the images lie: the pool may grow."""
        return (*self._any_live, *self._all_live, self.pool.images.data_ptr(), tuple(self.pool.images.shape))

    # ----- lanes that are done

    def _take_steps(self, window: Window) -> tuple[Tensor, Tensor]:
        if window.shortest == window.steps:
            return super()._take_steps(window)
        terms = torch.zeros(window.steps, self.lanes, len(TERMS), device=self.device, dtype=self.dtype)
        norms = torch.zeros(self.lanes, N_GROUPS, device=self.device, dtype=self.dtype)
        for first, last in pairwise([0, *sorted(window.ends)]):
            lanes = self._with_company(window.lanes_at(first))
            part, index = window.part(first, last, lanes), self._there(lanes)
            few = self._some(index)
            terms[first:last, index], last_norms = super(FleetEngine, few)._take_steps(part)
            norms[index] = torch.where((part.wanted > 0)[:, None], last_norms, norms[index])
            if few is not self:
                with torch.no_grad():
                    for mine, theirs in zip(self._changing(), few._changing(), strict=True):
                        mine[index] = theirs
        return terms, norms

    def _with_company(self, lanes: list[int]) -> list[int]:
        """Add lanes that are done, up to half, a quarter, .. of all, where steps are recorded: for few recordings."""
        size = self.lanes
        while size // 2 >= len(lanes):
            size //= 2
        done = set(range(self.lanes)).difference(lanes) if self.recorded is not None else ()
        return sorted([*lanes, *sorted(done)[: size - len(lanes)]])

    def _some(self, lanes: Tensor) -> "FleetEngine":
        """Return a fleet of some lanes, int64 `[n]`, for taking steps: this one, or one that has copies of theirs."""
        if len(lanes) == self.lanes:
            return self
        few = self._narrower.get(len(lanes)) or self._narrow(len(lanes))
        with torch.no_grad():
            for mine, theirs in zip(few._rows(), self._rows(), strict=True):
                mine.copy_(theirs[lanes])
        for mine, theirs in zip(few.blocks, self.blocks, strict=True):
            mine.requires_grad_(theirs.requires_grad)
        few._any_live, few._all_live, few._all_classes = self._any_live, self._all_live, self._all_classes
        return few

    def _rows(self) -> list[Tensor]:
        """List all tensors with a row per lane that a step reads."""
        constant = [self.live, self.seeds, self.n_classes, self.has_class, self.log_prior, self.mean, self.std]
        return [*self._changing(), *constant]

    def _narrow(self, lanes: int) -> "FleetEngine":
        """Make a fleet of fewer lanes that shares network and images; kept if it records, as it then has to stay."""
        few = copy.copy(self)
        few.lanes, few.everyone = lanes, self.everyone[:lanes]
        few.blocks = [block.detach()[:lanes].clone().requires_grad_(True) for block in self.blocks]
        few.optimizers = [
            LaneAdam(block, whole.factors) for block, whole in zip(few.blocks, self.optimizers, strict=True)
        ]
        few.heads = AuxiliaryHeads(lanes, self.heads.width, self.device, self.dtype)
        few.statistics = {name: value[:lanes].clone() for name, value in self.statistics.items()}
        for name in ("live", "seeds", "n_classes", "has_class", "log_prior", "mean", "std"):
            setattr(few, name, getattr(self, name)[:lanes].clone())
        if self.recorded is not None:
            few.record_with(self.recorded.recorder)
            self._narrower[lanes] = few
        return few

    # ----- parameters

    def _collect_parameters(self) -> None:
        """Move all parameters into one block per layer group; the network's own are placeholders from then on."""
        self.names: list[list[str]] = [[] for _ in range(N_GROUPS)]
        self.shapes: dict[str, torch.Size] = {}
        for name, parameter in self.network.named_parameters():
            self.names[self.plan.group_of(name)].append(name)
            self.shapes[name] = parameter.shape[1:]
        parameters = dict(self.network.named_parameters())
        self.blocks: list[Tensor] = []
        for names in self.names:
            rows = [parameters[name].detach().reshape(self.lanes, -1) for name in names]
            empty = torch.zeros(self.lanes, 0, device=self.device, dtype=self.dtype)
            self.blocks.append(torch.cat(rows or [empty], dim=1).requires_grad_(True))
        self.start = [block.detach().clone() for block in self.blocks]
        self.optimizers = [
            LaneAdam(block, self._factors(names)) for block, names in zip(self.blocks, self.names, strict=True)
        ]

    def _factors(self, names: list[str]) -> Tensor | None:
        """Return the share of the learning rate for each weight of a block, `[p]`; None where all have all of it."""
        factors = [rate_factor(name, self.shapes[name]) for name in names]
        if all(factor == 1 for factor in factors):
            return None
        rows = [torch.full((self.shapes[name].numel(),), factor) for name, factor in zip(names, factors, strict=True)]
        return torch.cat(rows).to(self.device, self.dtype)

    def _parameters(self) -> dict[str, Tensor]:
        """Cut the blocks into the network's parameters."""
        cut: dict[str, Tensor] = {}
        for names, block in zip(self.names, self.blocks, strict=True):
            sizes = [self.shapes[name].numel() for name in names]
            for name, part in zip(names, block.split(sizes, dim=1) if names else (), strict=True):
                cut[name] = part.reshape(self.lanes, *self.shapes[name])
        return cut

    # ----- weights

    @torch.no_grad()
    def _load_networks(self, tasks: Mapping[int, VisibleTask]) -> None:
        lanes = self._there(list(tasks))
        parameters = [dict(task.model.named_parameters()) for task in tasks.values()]
        for names, block, start in zip(self.names, self.blocks, self.start, strict=True):
            if names:
                rows = [
                    torch.cat([self._fit(mine[name].detach(), self.shapes[name]).flatten() for name in names])
                    for mine in parameters
                ]
                block[lanes] = start[lanes] = torch.stack(rows).to(self.device, self.dtype)
        buffers = [dict(task.model.named_buffers()) for task in tasks.values()]
        for name, mine in self.statistics.items():
            layer, _, kept = name.rpartition(".")
            theirs = torch.stack([of[f"{layer}.running_{kept.rpartition('_')[2]}"] for of in buffers])
            mine[lanes] = theirs.to(self.device, self.dtype)
        self.live[lanes] = False
        self._all_live = _NONE
        self._forget(lanes)

    def _fit(self, value: Tensor, shape: torch.Size) -> Tensor:
        """Pad the head of a task with fewer classes; the padded classes are masked and get no gradient."""
        if value.shape == shape:
            return value
        padded = value.new_zeros(shape)
        padded[: value.shape[0]] = value
        return padded

    def _forget(self, lanes: Tensor | int) -> None:
        mask = torch.zeros(self.lanes, dtype=torch.bool, device=self.device)
        mask[lanes] = True
        for optimizer in self.optimizers:
            optimizer.forget(mask)

    @torch.no_grad()
    def snapshot(self, lane: int) -> dict[str, Tensor]:
        """Copy a lane's weights and both domains' statistics."""
        weights = {f"weights.{i}": block[lane].clone() for i, block in enumerate(self.blocks)}
        for i, layer in enumerate(self.norms):
            for name, buffer in layer.named_buffers():
                weights[f"statistics.{i}.{name}"] = buffer[lane].clone()
        return weights

    @torch.no_grad()
    def snapshots(self) -> list[dict[str, Tensor]]:
        """Copy the weights and statistics of all lanes: rows of one copy, however many lanes there are."""
        whole = {f"weights.{i}": block for i, block in enumerate(self.blocks)}
        for i, layer in enumerate(self.norms):
            whole |= {f"statistics.{i}.{name}": buffer for name, buffer in layer.named_buffers()}
        rows = {name: value.detach().clone().unbind() for name, value in whole.items()}
        return [{name: row[lane] for name, row in rows.items()} for lane in range(self.lanes)]

    @torch.no_grad()
    def restore(self, lane: int, weights: dict[str, Tensor]) -> None:
        """Put a snapshot back; moments start anew."""
        for i, block in enumerate(self.blocks):
            block[lane] = weights[f"weights.{i}"]
        for i, layer in enumerate(self.norms):
            for name, buffer in layer.named_buffers():
                buffer[lane] = weights[f"statistics.{i}.{name}"]
        self._forget(lane)

    @torch.no_grad()
    def pull_back(self, lanes: Tensor, keep: float) -> None:
        """Move the weights of marked lanes towards the pretrained ones."""
        for block, start in zip(self.blocks, self.start, strict=True):
            block.copy_(torch.where(lanes[:, None], start.lerp(block, keep), block))

    # ----- forward and backward

    def _forward(self, images: Tensor, parts: tuple[Part, ...], live: bool) -> tuple[Tensor, Tensor]:
        self.mode.parts, self.mode.momentum = parts, MOMENTUM
        self.mode.everyone = [part.update is self.everyone for part in parts]
        self.mode.live = self.live if live else None
        self.mode.all_live, self.mode.any_live = (self._all_live, self._any_live) if live else (_NONE, _NONE)
        return self._run(images)

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        wide = images.transpose(0, 1).flatten(1, 2)
        self._features.clear()
        logits = functional_call(self.network, self._parameters() | self.statistics, (wide,))
        features = self._features[-1]
        return tuple(x.unflatten(1, (self.lanes, -1)).transpose(0, 1) for x in (features, logits))

    def backward(self, loss: Tensor, learning_rate: Tensor, trained: Tensor | None) -> None:
        """Take one optimizer step on what is unfrozen."""
        for block in self.blocks:
            block.grad = None
        if loss.requires_grad:
            torch.autograd.backward(loss.sum())
        for group, (block, optimizer) in enumerate(zip(self.blocks, self.optimizers, strict=True)):
            if block.requires_grad:
                gradient = torch.zeros_like(block) if block.grad is None else block.grad
                if self._all_live[group]:
                    optimizer.step(gradient, learning_rate, trained)
                else:
                    live = self.live[:, group]
                    optimizer.step(gradient, learning_rate, live if trained is None else trained & live)

    def set_depth(self, unfrozen_stages: Tensor) -> None:
        """Freeze and unfreeze per lane; where no lane trains a stage, the backward pass stops above it."""
        group = torch.arange(N_GROUPS, device=self.device)
        live = (group == HEAD) | (group >= N_STAGES - unfrozen_stages[:, None])
        freezing = self.live & ~live
        self.live.copy_(live)  # in place, as recorded steps read it
        known = torch.cat([live.any(0), live.all(0), freezing.any()[None]]).tolist()
        self._any_live, self._all_live = known[:N_GROUPS], known[N_GROUPS : 2 * N_GROUPS]
        for i, (block, optimizer) in enumerate(zip(self.blocks, self.optimizers, strict=True)):
            block.requires_grad_(self._any_live[i])
            if not self._all_live[i]:
                optimizer.forget(~live[:, i])
        if known[-1]:
            self.estimate_statistics("target", freezing)

    @torch.no_grad()
    def estimate_statistics(self, side: Side, stages: Tensor) -> None:
        """Take the statistics of marked lanes and stages from the domain's view."""
        rows, _ = self.view_rows("target_unlabelled" if side == "target" else "source_val", VIEW)
        self.mode.parts, self.mode.momentum = (Part(side=side, size=VIEW, update=self.everyone),), 1.0
        self.mode.live, self.mode.everyone = stages, [False]
        self.mode.all_live, self.mode.any_live = _NONE, [True] * N_GROUPS
        self._run(self._normalise(self.pixels(rows)))

    # ----- readings

    def gradient_norms(self) -> Tensor:
        """Return the last gradient's norm per layer group."""
        norms = [
            torch.zeros(self.lanes, device=self.device, dtype=self.dtype) if b.grad is None else b.grad.norm(dim=1)
            for b in self.blocks
        ]
        return torch.stack(norms, dim=1) * self.live

    def weight_norms(self) -> tuple[Tensor, Tensor]:
        """Return weight norm and distance from the pretrained weights per layer group."""
        with torch.no_grad():
            size = torch.stack([block.norm(dim=1) for block in self.blocks], dim=1)
            pairs = zip(self.blocks, self.start, strict=True)
            moved = torch.stack([(block - start).norm(dim=1) for block, start in pairs], dim=1)
        return size, moved

    @torch.no_grad()
    def finite(self) -> Tensor:
        """Return which lanes have only finite weights and statistics."""
        checks = [torch.isfinite(block).all(1) for block in self.blocks]
        checks += [torch.isfinite(buffer).all(1) for layer in self.norms for _, buffer in layer.named_buffers()]
        return torch.stack(checks).all(0)
