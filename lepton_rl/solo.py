"""The engine for one arbitrary `nn.Module`."""

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lepton_rl.auxiliary import AuxiliaryHeads
from lepton_rl.engine import Engine
from lepton_rl.errors import InputError
from lepton_rl.normalisation import DomainStatistics, Part, Side
from lepton_rl.optim import rate_factor
from lepton_rl.outputs import as_logits
from lepton_rl.prefix import CACHE_BYTES, PrefixCache, SplitNetwork
from lepton_rl.stages import HEAD, N_GROUPS, N_STAGES, StagePlan, find_stages
from lepton_rl.task import VisibleTask
from lepton_rl.views import VIEW
from lepton_rl.window import Window

CHANNELS_LAST_SIDE = 16  # from this image side on it was measured to be faster on the CPU, with batch normalisation


class SoloEngine(Engine):
    """Fine-tune one network.

    Frozen stages have `requires_grad` off, no optimizer state, and the backward pass stops above them; their
    batch normalisation uses stored statistics of the domain at hand. What the frozen lower stages put out is
    computed once per image and kept (`prefix.py`), as long as it fits.

    Args:
        task: The first task; later ones must have the same kind of model.
        device: Where to train.
        dtype: Floating point type.
        channels_last: Memory layout of weights and images: true, false, or None = as measured on the CPU
            (`docs/engines.md`), off elsewhere.
        amp: Run the network in bfloat16 where that is safe; on CUDA only.
        cache_bytes: Most memory for outputs of frozen stages; 0 = keep none.

    Raises:
        InputError: If `amp` is asked for without CUDA.
    """

    def __init__(
        self,
        task: VisibleTask,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool | None = None,
        amp: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        super().__init__(lanes=1, example=task, device=torch.device(device), dtype=dtype)
        if amp and self.device.type != "cuda":
            raise InputError(f"amp on device {self.device}: expected a CUDA device; pass amp=False or device='cuda'")
        self.amp = amp
        self.channels_last = self._prefers_channels_last(task) if channels_last is None else channels_last
        self.cache = PrefixCache(cache_bytes)
        self._ready = False  # whether the cache holds all that the window under way will draw
        self.plan: StagePlan = task.plan or find_stages(task.model)
        self._prepare(task)
        self.heads = AuxiliaryHeads(1, self._feature_width(), self.device, dtype)

    def _prefers_channels_last(self, task: VisibleTask) -> bool:
        kinds = {type(layer) for layer in task.model.modules()}
        large = min(task.target_unlabelled.images.shape[2:]) >= CHANNELS_LAST_SIDE
        faster = self.device.type == "cpu" and large and nn.BatchNorm2d in kinds and nn.GroupNorm not in kinds
        return faster and not any(_unsafe_channels_last(layer) for layer in task.model.modules())

    # ----- weights

    def _prepare(self, task: VisibleTask) -> None:
        """Copy a network and sort its parameters into layer groups."""
        self.model = copy.deepcopy(task.model).to(self.device, self.dtype).eval()
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.groups: list[list[nn.Parameter]] = [[] for _ in range(N_GROUPS)]
        self.factors: dict[nn.Parameter, float] = {}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(True)
            self.groups[self.plan.group_of(name)].append(parameter)
            self.factors[parameter] = rate_factor(name, parameter.shape)
        self.start = [[p.detach().clone() for p in group] for group in self.groups]
        self.statistics = DomainStatistics(self.model, self.plan)
        self.optimizer: torch.optim.Adam | None = None
        self.live = [False] * N_GROUPS
        self.cache.clear()
        self.cache.cut = 0
        images = task.target_unlabelled.images
        example = torch.from_numpy(images[[0, len(images) - 1]]).to(self.device, self.dtype) / 64 - 2
        self.split = SplitNetwork(self.model, self.plan, example)
        self.joint = self._parts_agree(example)

    @torch.no_grad()
    def _parts_agree(self, images: Tensor) -> bool:
        """Return whether a batch of two parts gives what its parts give alone, each normalised by itself."""

        def run(batch: Tensor, *sides: Side) -> Tensor:
            parts = tuple(Part(side=side, size=len(images)) for side in sides)
            self.statistics.use_parts(parts, [True] * N_GROUPS)
            return as_logits(self.model(batch))

        others = images.flip(-1) + 1
        together = run(torch.cat([images, others]), "source", "target")
        apart = torch.cat([run(images, "source"), run(others, "target")])
        return bool(torch.allclose(together, apart, rtol=1e-3, atol=1e-3))

    def _feature_width(self) -> int:
        return self.split.features[-1].flatten(1).shape[-1]

    def _load_networks(self, tasks: Mapping[int, VisibleTask]) -> None:
        (task,) = tasks.values()
        self.plan = task.plan or find_stages(task.model)
        self._prepare(task)

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
        if self.optimizer is not None:
            self.optimizer = self._new_optimizer({})
        self.cache.clear()

    @torch.no_grad()
    def pull_back(self, lanes: Tensor, keep: float) -> None:
        """Move the weights towards the pretrained ones."""
        if bool(lanes[0]):
            for group, start in zip(self.groups, self.start, strict=True):
                for parameter, origin in zip(group, start, strict=True):
                    parameter.copy_(origin.lerp(parameter, keep))
            self.cache.clear()

    # ----- a killed run

    def state(self) -> dict[str, Tensor]:
        """Return all that the next step depends on and `snapshot` does not hold."""
        state = super().state() | {"live": torch.tensor(self.live)}
        if self.optimizer is not None:
            state["trained"] = torch.tensor(True)
            for name, parameter in self.model.named_parameters():
                for what, value in self.optimizer.state.get(parameter, {}).items():
                    state[f"moments.{what}.{name}"] = value
        for number, (side, rows) in enumerate(self.cache.filled):
            state[f"cached.{side}.{number:06}"] = rows
        return state

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; first `load` the task and `restore` the weights of that moment."""
        super().load_state(state)
        if "trained" not in state:
            return
        self._set_live(state["live"].tolist(), {})
        assert self.optimizer is not None
        for name, parameter in self.model.named_parameters():
            for what in _MOMENTS:
                if (value := state.get(f"moments.{what}.{name}")) is not None:
                    like = torch.zeros((), device=self.device) if what == "step" else parameter
                    self.optimizer.state[parameter][what] = torch.empty_like(like).copy_(value)
        cached = (key.split(".") for key in state if key.startswith("cached."))
        for number, side in sorted((number, side) for _, side, number in cached):
            rows = state[f"cached.{side}.{number}"].to(self.device)
            self._fill(rows, "source" if side == "source" else "target")

    # ----- forward and backward

    def _forward(self, images: Tensor, parts: tuple[Part, ...], live: bool) -> tuple[Tensor, Tensor]:
        if len(parts) > 1 and not self.joint:
            pieces = zip(images.split([part.size for part in parts], dim=1), parts, strict=True)
            apart = [self._forward(piece, (part,), live) for piece, part in pieces]
            return torch.cat([f for f, _ in apart], dim=1), torch.cat([z for _, z in apart], dim=1)
        self.statistics.use_parts(parts, self.live if live else _FROZEN)
        self.split.features.clear()
        pixels = images[0]
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with self._precision():
            logits = as_logits(self.model(pixels))
        return self._both(logits)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast("cuda", torch.bfloat16) if self.amp else nullcontext()

    def _both(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        features = self.split.features[-1].flatten(1)
        return features[None].to(self.dtype), logits[None].to(self.dtype)

    def forward_rows(self, rows: Tensor, parts: tuple[Part, ...], live: bool) -> tuple[Tensor, Tensor]:
        """Run the network on images of the pool, above the frozen stages only where their outputs are kept."""
        if not self._cached(rows, parts, filled=live):
            return super().forward_rows(rows, parts, live)
        self.statistics.use_parts(parts, self.live if live else _FROZEN)
        self.split.features.clear()
        pieces = zip(rows[0].split([part.size for part in parts]), parts, strict=True)
        kept = torch.cat([self.cache.get(piece, part.side) for piece, part in pieces])
        with self._precision():
            logits = self.split.upper(kept, self.cache.cut)
        return self._both(logits)

    def _cached(self, rows: Tensor, parts: tuple[Part, ...], filled: bool) -> bool:
        """Return whether the prefix need not be run for these rows; `filled` = the window has seen to it."""
        if not self.cache.cut or (len(parts) > 1 and not self.joint):
            return False
        return self._ready if filled else self._fill(rows, parts[0].side)

    def _begin_window(self, window: Window) -> None:
        """Run the frozen prefix once for every image that the window will draw."""
        # Augmented images never come back as they were.
        self._ready = False
        if self.cache.cut and window.strength is None:
            mine, *source = window.rows.split((sum(window.sizes[:2]), *window.sizes[2:]), dim=-1)
            self._ready = all([self._fill(mine, "target"), *(self._fill(rows, "source") for rows in source)])

    @torch.no_grad()
    def _fill(self, rows: Tensor, side: Side) -> bool:
        def compute(missing: Tensor) -> Tensor:
            self.statistics.use(side, _FROZEN, 0.0)
            pixels = self._normalise(self.pixels(missing))[0]
            if self.channels_last:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            with self._precision():
                return self.split.lower(pixels, self.cache.cut)

        return self.cache.fill(rows, side, len(self.pool.images), compute)

    def backward(self, loss: Tensor, learning_rate: Tensor, trained: Tensor | None) -> None:
        """Take one optimizer step on what is unfrozen."""
        del trained
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        if loss.requires_grad:
            torch.autograd.backward(loss.sum())
        # A tensor on CUDA, so that the device is not waited for.
        rate = learning_rate[0] if self.device.type == "cuda" else float(learning_rate[0])
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
            for parameter in group["params"]:
                if parameter.grad is None:  # no term reaches it: its moments still decay, as in a fleet
                    parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()

    def set_depth(self, unfrozen_stages: Tensor) -> None:
        """Freeze and unfreeze; a stage that freezes takes target statistics from the target view."""
        depth = int(unfrozen_stages[0])
        live = [group == HEAD or group >= N_STAGES - depth for group in range(N_GROUPS)]
        if live == self.live and self.optimizer is not None:
            return
        freezing = [was and not now for was, now in zip(self.live, live, strict=True)]
        self._set_live(live, {} if self.optimizer is None else self.optimizer.state)
        if any(freezing):
            self.estimate_statistics("target", torch.tensor([freezing], device=self.device))

    def _set_live(self, live: list[bool], moments: Mapping[Any, Any]) -> None:
        self.live = live
        for group, parameters in enumerate(self.groups):
            for parameter in parameters:
                parameter.requires_grad_(live[group])
                if not live[group]:
                    parameter.grad = None
        self.optimizer = self._new_optimizer(moments)
        self.cache.clear()
        self.cache.cut = self.split.cut_for(live) if self.cache.limit else 0

    def _new_optimizer(self, state: Mapping[Any, Any]) -> torch.optim.Adam:
        """Make an optimizer of what trains now; what trained before keeps its moments."""
        optimizer = torch.optim.Adam(self._parameter_groups(), fused=True)
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if parameter in state:
                optimizer.state[parameter] = state[parameter]
        return optimizer

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Return what trains now, by its `factor` of the learning rate."""
        alike: dict[float, list[nn.Parameter]] = {}
        for group, live in zip(self.groups, self.live, strict=True):
            for parameter in group if live else ():
                alike.setdefault(self.factors[parameter], []).append(parameter)
        return [{"params": ps, "factor": factor} for factor, ps in alike.items()]

    @torch.no_grad()
    def estimate_statistics(self, side: Side, stages: Tensor) -> None:
        """Take the statistics of marked stages from the domain's view."""
        rows, _ = self.view_rows("target_unlabelled" if side == "target" else "source_val", VIEW)
        self.statistics.use(side, stages[0].tolist(), 1.0)
        self.model(self._normalise(self.pixels(rows))[0])
        self.cache.clear()

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
        tensors = [p.detach() for p in self.model.parameters()] + self.statistics.tensors()
        return torch.isfinite(torch.stack(torch._foreach_norm(tensors, float("inf")))).all()[None]


_FROZEN = [False] * N_GROUPS
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def _norm(tensors: list[Tensor], like: Tensor) -> Tensor:
    if not tensors:
        return like.new_zeros(())
    return torch.nn.utils.get_total_norm(tensors)


def _unsafe_channels_last(layer: nn.Module) -> bool:
    """Return whether the backward pass of a layer may write beyond its memory in this layout.

    oneDNN 3.12, which torch 2.13 brings, does so on processors without AVX-512 (heap corruption, the process dies) for
    strided 1x1 convolutions of fewer than eight channels.
    """
    if not isinstance(layer, nn.Conv2d):
        return False
    return layer.kernel_size == (1, 1) and max(layer.stride) > 1 and layer.in_channels // layer.groups < 8
