"""The fine-tuning loop, once, for every engine.

`Engine` draws batches, computes the objective and the schedule for N lanes. What differs between one
arbitrary `nn.Module` and N stacked networks (the forward pass, the weights, the optimizer) is left to
`SoloEngine` and `FleetEngine`. N lanes do exactly what N single engines do.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from lepton_rl import meter
from lepton_rl.auxiliary import AuxiliaryHeads
from lepton_rl.controls import Controls
from lepton_rl.domain import Domain
from lepton_rl.normalisation import Part, Side
from lepton_rl.objective import TERMS
from lepton_rl.pool import ImagePool, Segment
from lepton_rl.stages import N_GROUPS
from lepton_rl.step import StepInputs, StepKind, take_step
from lepton_rl.task import VisibleTask
from lepton_rl.views import Views, look
from lepton_rl.window import Lanes, TrainStats, Window

__all__ = ["ABSENT_CLASS", "CHUNK", "Engine", "Side", "TrainStats"]

CHUNK = 256  # images per forward pass outside of training
LEAST_SHARE = 0.01  # of a class, in units of a balanced one: nobody can be sure that a class never occurs
ABSENT_CLASS = -1e4  # logit of classes that a lane does not have

SETS = ("source_train", "source_val", "target_support", "target_probe", "target_unlabelled")


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
        self.log_prior = torch.zeros(lanes, example.n_classes, dtype=dtype, device=device)
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
    def _load_networks(self, tasks: Mapping[int, VisibleTask]) -> None:
        """Give lanes the pretrained weights of their tasks and empty optimizers."""

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

    def snapshots(self) -> list[dict[str, Tensor]]:
        """Copy the weights and statistics of all lanes at once; not to be changed."""
        return [self.snapshot(lane) for lane in range(self.lanes)]

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
        """Start one lane, as `load_lanes`."""
        self.load_lanes({lane: (task, seed)})

    def load_lanes(self, started: Mapping[int, tuple[VisibleTask, int]]) -> None:
        """Start lanes on tasks, with seeds: pretrained weights, empty optimizers, their own random streams.

        Target statistics are estimated on the target view at once (AdaBN, Li et al. 2017), as every layer
        counts as frozen before the first step. All lanes are started together: the device is asked for as much
        however many there are.
        """
        tasks = {lane: task for lane, (task, _) in started.items()}
        lanes, seeds = self._there(list(tasks)), self._there([seed for _, seed in started.values()])
        self._hold_data(tasks, lanes)
        self.seeds[lanes], self.step_count[lanes], self._depth[lanes] = seeds, 0, 0
        self.budget[lanes] = self._there([task.budget for task in tasks.values()])
        self.n_classes[lanes] = self._there([task.n_classes for task in tasks.values()])
        self._all_classes = all(t is None or t.n_classes == self.width_of_head for t in self.tasks)
        marked = torch.zeros(self.lanes, dtype=torch.bool, device=self.device)
        marked[lanes] = True
        self._stats = self._stats.without(marked)
        self.has_class[lanes] = torch.arange(self.width_of_head, device=self.device) < self.n_classes[lanes, None]
        priors = np.stack([_log_prior(task, self.width_of_head) for task in tasks.values()])
        self.log_prior[lanes] = torch.as_tensor(priors, dtype=self.dtype).to(self.device)
        for mine, name in ((self.mean, "mean"), (self.std, "std")):
            values = np.stack([getattr(task, name) for task in tasks.values()])
            mine[lanes, 0, :, 0, 0] = torch.as_tensor(values, dtype=self.dtype).to(self.device)
        self._load_networks(tasks)
        self.heads.reset(lanes, seeds)
        self.estimate_statistics("target", marked[:, None].expand(-1, N_GROUPS))

    def _there(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, device=self.device)

    def _hold_data(self, tasks: Mapping[int, VisibleTask], lanes: Tensor) -> None:
        previous = [task for lane in tasks if (task := self.tasks[lane]) is not None]
        for lane, task in tasks.items():
            self.tasks[lane] = task
        for name in SETS:
            domains: list[Domain | None] = [getattr(task, name) for task in tasks.values()]
            segments = [Segment(0, 0) if domain is None else self.pool.hold(domain) for domain in domains]
            self.offset[name][lanes] = self._there([segment.offset for segment in segments])
            self.length[name][lanes] = self._there([segment.length for segment in segments])
        for task in previous:  # released after holding the new ones: what both tasks share is not moved
            held: list[Domain | None] = [getattr(task, name) for name in SETS]
            for domain in held:
                if domain is not None:
                    self.pool.release(domain)

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

    def predict_rows(self, rows: Tensor, side: Side) -> tuple[Tensor, Tensor]:
        """Run the network in evaluation mode on images of the pool."""
        meter.count(0, rows.numel())
        parts = [
            self.forward_rows(chunk, (Part(side=side, size=chunk.shape[1]),), False) for chunk in rows.split(CHUNK, 1)
        ]
        return torch.cat([f for f, _ in parts], dim=1), self.mask_classes(torch.cat([z for _, z in parts], dim=1))

    def views(self, side: Side = "target") -> Views:
        """Look at the visible splits (`views.py`)."""
        return look(self, side)

    def view_rows(self, name: str, size: int) -> tuple[Tensor, Tensor]:
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


def _log_prior(task: VisibleTask, width: int) -> np.ndarray:
    """Return the class prior of a task as `losses.diversity` takes it, `[width]`."""
    found = np.zeros(width)
    if task.class_prior is not None:
        found[: task.n_classes] = np.log(np.maximum(task.n_classes * task.class_prior, LEAST_SHARE))
    return found
