"""The fine-tuning loop, once, for every engine.

`Engine` draws batches, computes the objective and the schedule for N lanes. What differs between one
arbitrary `nn.Module` and N stacked networks (the forward pass, the weights, the optimizer) is left to
`SoloEngine` and `FleetEngine`. N lanes do exactly what N single engines do.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lepton_rl import meter
from lepton_rl.auxiliary import AuxiliaryHeads
from lepton_rl.controls import Controls
from lepton_rl.domain import Domain
from lepton_rl.normalisation import Part, Side
from lepton_rl.objective import TERMS, Outputs
from lepton_rl.pool import ImagePool
from lepton_rl.stages import N_GROUPS
from lepton_rl.step import StepInputs, StepKind, take_step
from lepton_rl.task import VisibleTask
from lepton_rl.window import Lanes, TrainStats, Window

__all__ = ["ABSENT_CLASS", "CHUNK", "VIEW", "Engine", "Side", "TrainStats", "Views"]

VIEW = 128  # images of each domain that the signals look at
CHUNK = 256  # images per forward pass outside of training
ABSENT_CLASS = -1e4  # logit of classes that a lane does not have

SETS = ("source_train", "source_val", "target_support", "target_probe", "target_unlabelled")


@dataclass(frozen=True, kw_only=True)
class Views:
    """What the network says about the visible splits, in evaluation mode.

    Absent splits have labels of -1 only; their outputs mean nothing and are not to be used.
    """

    source: Outputs
    probe: Outputs
    target: Outputs


class Engine(ABC):
    """N lanes of one architecture under their own tasks, knobs, optimizer states and random streams.

    Args:
        lanes: Number of lanes.
        example: A task whose model, image shape and class count fit every lane (the largest class count).
        device: Where everything lives.
        dtype: Floating point type of weights and images.
    """

    def __init__(self, *, lanes: int, example: VisibleTask, device: torch.device, dtype: torch.dtype) -> None:
        self.lanes, self.device, self.dtype = lanes, device, dtype
        c, h, w = example.target_unlabelled.images.shape[1:]
        self.pool = ImagePool((c, h, w), device)
        self.width_of_head = example.n_classes
        self.tasks: list[VisibleTask | None] = [None] * lanes
        self.seeds = torch.zeros(lanes, dtype=torch.int64, device=device)
        self.step_count = torch.zeros(lanes, dtype=torch.int64, device=device)
        self.budget = torch.ones(lanes, dtype=torch.int64, device=device)
        self.n_classes = torch.full((lanes,), example.n_classes, device=device)
        self.has_class = torch.ones(lanes, example.n_classes, dtype=torch.bool, device=device)
        self.mean = torch.zeros(lanes, 1, c, 1, 1, dtype=dtype, device=device)
        self.std = torch.ones(lanes, 1, c, 1, 1, dtype=dtype, device=device)
        self.offset = {name: torch.zeros(lanes, dtype=torch.int64, device=device) for name in SETS}
        self.length = {name: torch.zeros(lanes, dtype=torch.int64, device=device) for name in SETS}
        self._labels = torch.empty(0)  # of the batches of the window under way, `[steps, lanes, b]`
        self.everyone = torch.ones(lanes, dtype=torch.bool, device=device)
        self._all_classes = True
        self._depth = torch.zeros(lanes, dtype=torch.int64, device=device)
        self._stats = TrainStats(
            terms=torch.zeros(lanes, len(TERMS), device=device, dtype=dtype),
            slopes=torch.zeros(lanes, len(TERMS), device=device, dtype=dtype),
            gradient_norm=torch.zeros(lanes, N_GROUPS, device=device, dtype=dtype),
        )
        self.heads: AuxiliaryHeads  # made by the subclass, which knows the length of a feature vector

    # ----- what an engine has to bring

    @abstractmethod
    def _load_network(self, lane: int, task: VisibleTask) -> None:
        """Give a lane the task's pretrained weights and an empty optimizer."""

    @abstractmethod
    def _forward(self, images: Tensor, parts: tuple[Part, ...], live: bool) -> tuple[Tensor, Tensor]:
        """Run the network on normalised images `[lanes, b, c, h, w]`.

        Args:
            images: Batch of every lane.
            parts: Of the batch, each normalised on its own. Where `update` is `self.everyone` itself, an engine
                knows without looking that it marks all lanes.
            live: Whether unfrozen layers normalise by the batch (training) or by stored statistics.

        Returns:
            Features `[lanes, b, d]` and logits `[lanes, b, k]`.
        """

    @abstractmethod
    def backward(self, loss: Tensor, learning_rate: Tensor, trained: Tensor | None) -> None:
        """Take one optimizer step on the unfrozen layers of the lanes marked in `trained`; None = of all."""

    @abstractmethod
    def set_depth(self, unfrozen_stages: Tensor) -> None:
        """Freeze and unfreeze; int64 `[lanes]`, 0 (head only) .. 4 (all)."""

    @abstractmethod
    def snapshot(self, lane: int) -> dict[str, Tensor]:
        """Copy a lane's weights and normalisation statistics."""

    @abstractmethod
    def restore(self, lane: int, weights: dict[str, Tensor]) -> None:
        """Put back what `snapshot` gave; the lane's optimizer forgets its moments."""

    @abstractmethod
    def pull_back(self, lanes: Tensor, keep: float) -> None:
        """Move weights towards the pretrained ones: theta_0 + keep (theta - theta_0), in lanes marked `[lanes]`."""

    @abstractmethod
    def gradient_norms(self) -> Tensor:
        """Return the last gradient's norm per layer group, `[lanes, 5]`."""

    @abstractmethod
    def weight_norms(self) -> tuple[Tensor, Tensor]:
        """Return weight norm and distance from the pretrained weights per layer group, both `[lanes, 5]`."""

    @abstractmethod
    def finite(self) -> Tensor:
        """Return which lanes have only finite weights and statistics, bool `[lanes]`."""

    @abstractmethod
    def estimate_statistics(self, side: Side, stages: Tensor) -> None:
        """Estimate normalisation statistics of marked stages, bool `[lanes, 5]`, on a domain's view (AdaBN)."""

    # ----- lanes

    def load(self, lane: int, task: VisibleTask, seed: int) -> None:
        """Start a lane on a task: pretrained weights, empty optimizer, its own random stream.

        Target statistics are estimated on the target view at once (AdaBN, Li et al. 2017), as every layer
        counts as frozen before the first step.
        """
        self._hold_data(lane, task)
        self.seeds[lane] = seed
        self.step_count[lane] = 0
        self.budget[lane] = task.budget
        self.n_classes[lane] = task.n_classes
        self._all_classes = all(t is None or t.n_classes == self.width_of_head for t in self.tasks)
        self._depth[lane] = 0
        self._stats = self._stats.without(torch.arange(self.lanes, device=self.device) == lane)
        self.has_class[lane] = torch.arange(self.width_of_head, device=self.device) < task.n_classes
        self.mean[lane, 0, :, 0, 0] = torch.as_tensor(task.mean, dtype=self.dtype)
        self.std[lane, 0, :, 0, 0] = torch.as_tensor(task.std, dtype=self.dtype)
        self._load_network(lane, task)
        self.heads.reset(lane, seed)
        marked = torch.zeros(self.lanes, 5, dtype=torch.bool, device=self.device)
        marked[lane] = True
        self.estimate_statistics("target", marked)

    def _hold_data(self, lane: int, task: VisibleTask) -> None:
        previous = self.tasks[lane]
        self.tasks[lane] = task
        for name in SETS:
            domain: Domain | None = getattr(task, name)
            segment = None if domain is None else self.pool.hold(domain)
            self.offset[name][lane] = 0 if segment is None else segment.offset
            self.length[name][lane] = 0 if segment is None else segment.length
        for name in SETS:  # released after holding the new ones: what both tasks share is not moved
            old: Domain | None = None if previous is None else getattr(previous, name)
            if old is not None:
                self.pool.release(old)

    # ----- a killed run

    def state(self) -> dict[str, Tensor]:
        """Return all that the next step depends on and `snapshot` does not hold."""
        adam = self.heads.optimizer
        return {
            "step_count": self.step_count,
            "depth": self._depth,
            "heads": self.heads.flat.detach(),
            "heads.first": adam.first,
            "heads.second": adam.second,
            "heads.count": adam.count,
            **{f"stats.{field.name}": getattr(self._stats, field.name) for field in fields(TrainStats)},
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; first `load` the tasks and `restore` the weights of that moment."""
        adam = self.heads.optimizer
        for name, tensor in (("", self.heads.flat), (".first", adam.first), (".second", adam.second)):
            tensor.copy_(state[f"heads{name}"])
        adam.count.copy_(state["heads.count"])
        self.step_count.copy_(state["step_count"])
        self._depth = state["depth"].to(self.device)
        self._stats = TrainStats(
            **{field.name: state[f"stats.{field.name}"].to(self.device) for field in fields(TrainStats)}
        )

    # ----- training

    def train(self, controls: Controls, steps: list[int]) -> TrainStats:
        """Take gradient steps under the given knobs.

        Args:
            controls: The knobs of every lane.
            steps: Gradient steps of every lane in this window; 0 leaves a lane as it is, its knobs included.

        Returns:
            How the window went; for a lane that took no step, how its last one went.
        """
        wanted = torch.tensor(steps, device=self.device)
        self._depth = torch.where(wanted > 0, controls.unfrozen_stages, self._depth)
        self.set_depth(self._depth)
        window = Window.plan(self._lane_facts(), controls, steps)
        stats = window.summary(*self._take_steps(window))
        self.step_count += window.wanted
        moved = (window.wanted > 0)[:, None]
        self._stats = TrainStats(
            terms=torch.where(moved, stats.terms, self._stats.terms),
            slopes=torch.where(moved, stats.slopes, self._stats.slopes),
            gradient_norm=torch.where(moved, stats.gradient_norm, self._stats.gradient_norm),
        )
        meter.count(sum(steps))
        return self._stats

    def _take_steps(self, window: Window) -> tuple[Tensor, Tensor]:
        """Return the loss terms of all steps, `[steps, lanes, 8]`, and the norms of last gradients, `[lanes, 5]`."""
        self._labels = self.pool.labels[window.rows]
        self._begin_window(window)
        gradient_norm = torch.zeros(self.lanes, N_GROUPS, device=self.device, dtype=self.dtype)
        terms: list[Tensor] = []
        for k in range(window.steps):
            terms.append(self._one_step(window, k))
            if k + 1 in window.ends:
                ended = (window.wanted == k + 1)[:, None]
                gradient_norm = torch.where(ended, self.gradient_norms(), gradient_norm)
        return torch.stack(terms), gradient_norm

    def _lane_facts(self) -> Lanes:
        return Lanes(
            seeds=self.seeds,
            step_count=self.step_count,
            budget=self.budget,
            offset=self.offset,
            length=self.length,
            dtype=self.dtype,
        )

    def _begin_window(self, window: Window) -> None:  # noqa: B027 - an engine need not
        """Prepare for a window whose rows are known."""

    def _one_step(self, window: Window, k: int) -> Tensor:
        """Take step k of a window and return its loss terms, `[lanes, 8]`."""
        kind = StepKind.of(window, k, all_classes=self._all_classes)
        return self._run_step(kind, StepInputs.of(window, k, self._labels))

    def _run_step(self, kind: StepKind, inputs: StepInputs) -> Tensor:
        return take_step(self, kind, inputs)

    def forward_rows(self, rows: Tensor, parts: tuple[Part, ...], live: bool) -> tuple[Tensor, Tensor]:
        """Run the network on images of the pool as they are, int64 `[lanes, b]`; an engine may know better."""
        return self.forward_pixels(self.pixels(rows), parts, live)

    def forward_pixels(self, pixels: Tensor, parts: tuple[Part, ...], live: bool) -> tuple[Tensor, Tensor]:
        """Run the network on images in 0..1."""
        return self._forward(self._normalise(pixels), parts, live)

    # ----- evaluation

    @torch.no_grad()
    def predict(self, images: Tensor, side: Side = "target") -> tuple[Tensor, Tensor]:
        """Run the network in evaluation mode.

        Args:
            images: uint8 `[lanes, n, c, h, w]`.
            side: Whose normalisation statistics to use.

        Returns:
            Features `[lanes, n, d]` and logits `[lanes, n, k]`.
        """
        meter.count(0, images.shape[0] * images.shape[1])
        parts = [
            self._forward(self._normalise(self._unit(chunk)), (Part(side=side, size=chunk.shape[1]),), False)
            for chunk in images.split(CHUNK, 1)
        ]
        features = torch.cat([f for f, _ in parts], dim=1)
        return features, self.mask_classes(torch.cat([z for _, z in parts], dim=1))

    def _predict_rows(self, rows: Tensor, side: Side) -> tuple[Tensor, Tensor]:
        """Run the network in evaluation mode on images of the pool."""
        meter.count(0, rows.numel())
        parts = [
            self.forward_rows(chunk, (Part(side=side, size=chunk.shape[1]),), False) for chunk in rows.split(CHUNK, 1)
        ]
        return torch.cat([f for f, _ in parts], dim=1), self.mask_classes(torch.cat([z for _, z in parts], dim=1))

    @torch.no_grad()
    def views(self, side: Side = "target") -> Views:
        """Look at the visible splits: up to 128 images of each domain, and every probe image.

        Args:
            side: Whose normalisation statistics target images are seen with; `source` is the untouched network.
        """
        target_rows, _ = self._view_rows("target_unlabelled", VIEW)
        probe_rows, probe_mask = self._view_rows("target_probe", int(self.length["target_probe"].max()))
        rows = torch.cat([target_rows, probe_rows], dim=1)
        features, logits = self._predict_rows(rows, side)
        labels = self.pool.labels[rows]
        probe_labels = torch.where(probe_mask, labels[:, VIEW:], torch.full_like(probe_mask, -1, dtype=torch.int64))
        source = self._source_view()
        return Views(
            source=source,
            target=Outputs(features=features[:, :VIEW], logits=logits[:, :VIEW], labels=labels[:, :VIEW]),
            probe=Outputs(features=features[:, VIEW:], logits=logits[:, VIEW:], labels=probe_labels),
        )

    def _source_view(self) -> Outputs:
        rows, _ = self._view_rows("source_val", VIEW)
        present = (self.length["source_val"] > 0)[:, None]
        labels = torch.where(present, self.pool.labels[rows], torch.full_like(present, -1, dtype=torch.int64))
        if not bool(present.any()):
            zeros = torch.zeros(self.lanes, VIEW, 1, device=self.device, dtype=self.dtype)
            return Outputs(
                features=zeros.expand(-1, -1, self.heads.width),
                logits=zeros.expand(-1, -1, self.width_of_head),
                labels=labels,
            )
        features, logits = self._predict_rows(rows, "source")
        return Outputs(features=features, logits=logits, labels=labels)

    def _view_rows(self, name: str, size: int) -> tuple[Tensor, Tensor]:
        """Return pool rows `[lanes, size]` of a set's first images, small sets repeated, and which are no repeats."""
        position = torch.arange(size, device=self.device).expand(self.lanes, -1)
        length = self.length[name][:, None]
        return self.offset[name][:, None] + position % length.clamp(min=1), position < length

    def pixels(self, rows: Tensor) -> Tensor:
        """Return images of the pool in 0..1, `[lanes, b, c, h, w]`."""
        return self._unit(self.pool.images[rows])

    def _unit(self, images: Tensor) -> Tensor:
        return images.to(self.dtype) / 255

    def _normalise(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std

    def mask_classes(self, logits: Tensor) -> Tensor:
        """Give classes that a lane does not have a large negative logit."""
        if self._all_classes:
            return logits
        return torch.where(self.has_class[:, None], logits, torch.full_like(logits, ABSENT_CLASS))
