"""The fine-tuning loop, once, for every engine.

`Engine` draws batches, computes the objective and the schedule for N lanes. What differs between one
arbitrary `nn.Module` and N stacked networks (the forward pass, the weights, the optimizer) is left to
`SoloEngine` and `FleetEngine`. N lanes do exactly what N single engines do.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lepton_rl import streams
from lepton_rl.augment import augment
from lepton_rl.auxiliary import AuxiliaryHeads
from lepton_rl.controls import LOSS_TERMS, Controls, cosine
from lepton_rl.domain import Domain
from lepton_rl.losses import rotate_batch
from lepton_rl.objective import NEEDS_SOURCE, TERMS, Outputs, loss_terms, weighted_sum
from lepton_rl.pool import ImagePool
from lepton_rl.task import VisibleTask

SOURCE_BATCH = 32
SUPPORT_BATCH = 16
TARGET_BATCH = 32
VIEW = 128  # images of each domain that the signals look at
CHUNK = 256  # images per forward pass outside of training
ABSENT_CLASS = -1e4  # logit of classes that a lane does not have

Side = Literal["source", "target"]
SETS = ("source_train", "source_val", "target_support", "target_probe", "target_unlabelled")


@dataclass(frozen=True, kw_only=True)
class TrainStats:
    """What one window of gradient steps looked like from inside.

    Attributes:
        terms: Mean of every loss term, `[lanes, 8]` in the order of `TERMS`.
        slopes: Mean of the second half minus mean of the first half, `[lanes, 8]`.
        gradient_norm: Of the last step per layer group, `[lanes, 5]`; 0 where frozen.
    """

    terms: Tensor
    slopes: Tensor
    gradient_norm: Tensor


@dataclass(frozen=True, kw_only=True)
class Views:
    """What the network says about the visible splits, in evaluation mode.

    Absent splits have labels of -1 only; their outputs mean nothing and are not to be used.
    """

    source: Outputs
    probe: Outputs
    target: Outputs


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What the host knows about a window before it starts, so that the loop needs no synchronisation."""

    steps: int
    uses_source: bool
    uses_augmentation: bool
    uses_adversarial: bool
    uses_auxiliary: bool


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
        self.heads: AuxiliaryHeads  # made by the subclass, which knows the length of a feature vector

    # ----- what an engine has to bring

    @abstractmethod
    def _load_network(self, lane: int, task: VisibleTask) -> None:
        """Give a lane the task's pretrained weights and an empty optimizer."""

    @abstractmethod
    def _forward(self, images: Tensor, side: Side, live: bool, update: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the network on normalised images `[lanes, b, c, h, w]`.

        Args:
            images: Batch of every lane.
            side: Whose normalisation statistics to use.
            live: Whether unfrozen layers normalise by the batch (training) or by stored statistics.
            update: bool `[lanes]`, whose stored statistics the batch may change; None = nobody's.

        Returns:
            Features `[lanes, b, d]` and logits `[lanes, b, k]`.
        """

    @abstractmethod
    def _backward(self, loss: Tensor, learning_rate: Tensor, trained: Tensor) -> None:
        """Take one optimizer step on the unfrozen layers of the lanes marked in `trained`."""

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

    # ----- training

    def train(self, controls: Controls, steps: list[int]) -> TrainStats:
        """Take gradient steps under the given knobs.

        Args:
            controls: The knobs of every lane.
            steps: Gradient steps of every lane in this window; 0 leaves a lane as it is.
        """
        self.set_depth(controls.unfrozen_stages)
        plan = self._plan(controls, max(steps))
        wanted = torch.tensor(steps, device=self.device)
        counters = self.step_count[:, None] + torch.arange(plan.steps, device=self.device)
        drawn = self._draw_rows(plan, counters)
        sums = torch.zeros(2, self.lanes, len(TERMS), device=self.device, dtype=self.dtype)
        sizes = torch.zeros(2, self.lanes, 1, device=self.device, dtype=self.dtype)
        for k in range(plan.steps):
            trained = k < wanted
            terms = self._one_step(plan, controls, {name: rows[:, k] for name, rows in drawn.items()}, trained)
            for half, mine in enumerate((2 * k < wanted, 2 * k >= wanted)):
                mask = (mine & trained)[:, None]
                sums[half] += torch.where(mask, terms, torch.zeros_like(terms))
                sizes[half] += mask
        means = sums / sizes.clamp(min=1)
        slopes = torch.where(sizes.min(0).values > 0, means[1] - means[0], torch.zeros_like(means[0]))
        return TrainStats(
            terms=sums.sum(0) / sizes.sum(0).clamp(min=1), slopes=slopes, gradient_norm=self.gradient_norms()
        )

    def _plan(self, controls: Controls, steps: int) -> _Plan:
        on = (controls.weights > 0).any(0).tolist()
        term_on = dict(zip(LOSS_TERMS, on, strict=True))
        has_source = bool((self.length["source_train"] > 0).any())
        uses_source = has_source and any(term_on[term] for term in NEEDS_SOURCE)
        return _Plan(
            steps=steps,
            uses_source=uses_source,
            uses_augmentation=bool((controls.augmentation > 0).any()),
            uses_adversarial=uses_source and term_on["adversarial"],
            uses_auxiliary=term_on["auxiliary"],
        )

    def _draw_rows(self, plan: _Plan, counters: Tensor) -> dict[str, Tensor]:
        """Draw the pool rows of every batch of the window, `[lanes, steps, b]`.

        A target batch is 16 support and 32 unlabelled images; a lane without labels takes unlabelled ones for
        all 48, so that a lane's batch does not depend on what the lanes beside it have.
        """
        has_support = (self.length["target_support"] > 0)[:, None, None]
        support = self._draw("target_support", streams.SUPPORT_BATCH, counters, SUPPORT_BATCH)
        filler = self._draw("target_unlabelled", streams.SUPPORT_BATCH, counters, SUPPORT_BATCH)
        unlabelled = self._draw("target_unlabelled", streams.TARGET_BATCH, counters, TARGET_BATCH)
        rows = {"target": torch.cat([torch.where(has_support, support, filler), unlabelled], dim=-1)}
        if plan.uses_source:
            rows["source"] = self._draw("source_train", streams.SOURCE_BATCH, counters, SOURCE_BATCH)
        return rows

    def _draw(self, name: str, stream: int, counters: Tensor, size: int) -> Tensor:
        drawn = streams.integers(self.seeds, stream, counters, size, self.length[name].clamp(min=1))
        return self.offset[name][:, None, None] + drawn

    def _one_step(self, plan: _Plan, controls: Controls, rows: dict[str, Tensor], trained: Tensor) -> Tensor:
        strength = controls.augmentation if plan.uses_augmentation else None
        source = adversarial = auxiliary = None
        if plan.uses_source:
            wants = (controls.weights[:, : len(NEEDS_SOURCE)] > 0).any(1) & (self.length["source_train"] > 0)
            source = self._source_outputs(rows["source"], trained & wants, strength)
        target, support = self._target_outputs(rows["target"], trained, strength)
        if plan.uses_adversarial and source is not None:
            adversarial = self.heads.adversarial(source.features, target.features)
        if plan.uses_auxiliary:
            auxiliary = self._rotation_loss(rows["target"][:, SUPPORT_BATCH:])
        terms = loss_terms(
            source=source,
            support=support,
            target=target,
            adversarial=adversarial,
            auxiliary=auxiliary,
            n_classes=self.n_classes,
        )
        terms = torch.where(self._available(controls), terms, torch.zeros_like(terms))
        loss = weighted_sum(terms, controls.weights)
        rate = controls.learning_rate * cosine(self.step_count, self.budget)
        self.heads.flat.grad = None
        self._backward(torch.where(trained, loss, torch.zeros_like(loss)), rate, trained)
        if self.heads.flat.grad is not None:
            self.heads.optimizer.step(self.heads.flat.grad, rate, trained & self._uses_heads(controls))
        self.step_count += trained
        return terms.detach()

    def _uses_heads(self, controls: Controls) -> Tensor:
        on = dict(zip(LOSS_TERMS, (controls.weights > 0).unbind(1), strict=True))
        return on["auxiliary"] | (on["adversarial"] & (self.length["source_train"] > 0))

    def _available(self, controls: Controls) -> Tensor:
        """Return which loss terms a lane has, bool `[lanes, 8]`.

        A term that costs a pass of its own counts only where its lane asks for it, not where a neighbour does.
        """
        on = controls.weights > 0
        mask = torch.ones(self.lanes, len(TERMS), dtype=torch.bool, device=self.device)
        uses_source = on[:, : len(NEEDS_SOURCE)].any(1) & (self.length["source_train"] > 0)
        mask[:, : len(NEEDS_SOURCE)] = uses_source[:, None]
        for term in ("adversarial", "auxiliary"):
            index = TERMS.index(term)
            mask[:, index] &= on[:, index]
        mask[:, -1] = self.length["target_support"] > 0
        return mask

    def _target_outputs(self, rows: Tensor, trained: Tensor, strength: Tensor | None) -> tuple[Outputs, Outputs]:
        """Run support and unlabelled images as one batch, so that both are normalised by the same statistics."""
        images, labels = self.pool.gather(rows)
        pixels = self._unit(images)
        if strength is not None:
            moved = augment(pixels[:, :SUPPORT_BATCH], strength, self.seeds, self.step_count)
            pixels = torch.cat([moved, pixels[:, SUPPORT_BATCH:]], dim=1)
        features, logits = self._forward(self._normalise(pixels), "target", True, trained)
        logits = self._mask(logits)
        target, support = (
            Outputs(features=features[:, part], logits=logits[:, part], labels=labels[:, part])
            for part in (slice(SUPPORT_BATCH, None), slice(SUPPORT_BATCH))
        )
        return target, support

    def _source_outputs(self, rows: Tensor, update: Tensor, strength: Tensor | None) -> Outputs:
        images, labels = self.pool.gather(rows)
        pixels = self._unit(images)
        if strength is not None:
            pixels = augment(pixels, strength, self.seeds, self.step_count)
        features, logits = self._forward(self._normalise(pixels), "source", True, update)
        return Outputs(features=features, logits=self._mask(logits), labels=labels)

    def _rotation_loss(self, rows: Tensor) -> Tensor:
        images, _ = self.pool.gather(rows)
        four = torch.full_like(self.seeds, 4)
        turns = streams.integers(self.seeds, streams.ROTATION, self.step_count[:, None], rows.shape[1], four)[:, 0]
        pixels = rotate_batch(self._unit(images), turns)
        # Rotated images are not the target's: they normalise by their batch and leave the statistics alone.
        features, _ = self._forward(self._normalise(pixels), "target", True, None)
        return self.heads.rotation(features, turns)

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
        parts = [
            self._forward(self._normalise(self._unit(chunk)), side, False, None) for chunk in images.split(CHUNK, 1)
        ]
        features = torch.cat([f for f, _ in parts], dim=1)
        return features, self._mask(torch.cat([z for _, z in parts], dim=1))

    @torch.no_grad()
    def views(self, side: Side = "target") -> Views:
        """Look at the visible splits: up to 128 images of each domain, and every probe image.

        Args:
            side: Whose normalisation statistics target images are seen with; `source` is the untouched network.
        """
        target_rows, _ = self._view_rows("target_unlabelled", VIEW)
        probe_rows, probe_mask = self._view_rows("target_probe", int(self.length["target_probe"].max()))
        images, labels = self.pool.gather(torch.cat([target_rows, probe_rows], dim=1))
        features, logits = self.predict(images, side)
        probe_labels = torch.where(probe_mask, labels[:, VIEW:], torch.full_like(probe_mask, -1, dtype=torch.int64))
        source = self._source_view()
        return Views(
            source=source,
            target=Outputs(features=features[:, :VIEW], logits=logits[:, :VIEW], labels=labels[:, :VIEW]),
            probe=Outputs(features=features[:, VIEW:], logits=logits[:, VIEW:], labels=probe_labels),
        )

    def _source_view(self) -> Outputs:
        rows, mask = self._view_rows("source_val", VIEW)
        images, labels = self.pool.gather(rows)
        present = (self.length["source_val"] > 0)[:, None]
        labels = torch.where(present, labels, torch.full_like(labels, -1))
        if not bool(present.any()):
            zeros = torch.zeros(self.lanes, VIEW, 1, device=self.device, dtype=self.dtype)
            return Outputs(
                features=zeros.expand(-1, -1, self.heads.width),
                logits=zeros.expand(-1, -1, self.width_of_head),
                labels=labels,
            )
        features, logits = self.predict(images, "source")
        return Outputs(features=features, logits=logits, labels=labels)

    def _view_rows(self, name: str, size: int) -> tuple[Tensor, Tensor]:
        """Return pool rows `[lanes, size]` of a set's first images, small sets repeated, and which are no repeats."""
        position = torch.arange(size, device=self.device).expand(self.lanes, -1)
        length = self.length[name][:, None]
        return self.offset[name][:, None] + position % length.clamp(min=1), position < length

    def _unit(self, images: Tensor) -> Tensor:
        return images.to(self.dtype) / 255

    def _normalise(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std

    def _mask(self, logits: Tensor) -> Tensor:
        return torch.where(self.has_class[:, None], logits, torch.full_like(logits, ABSENT_CLASS))

