"""What is known of a window of gradient steps before it starts: draws, rates, and which terms count for whom.

All of it is made once per window, so that the inner loop holds nothing but the training itself and needs no
synchronisation with the host.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lepton_rl import streams
from lepton_rl.controls import Controls, cosine
from lepton_rl.objective import NEEDS_SOURCE, TERMS

SOURCE_BATCH = 32
SUPPORT_BATCH = 16
TARGET_BATCH = 32

SIZES = (SUPPORT_BATCH, TARGET_BATCH, SOURCE_BATCH)  # the order of a step's batch; the last is missing without source

SOURCE_TERMS = [TERMS.index(term) for term in NEEDS_SOURCE]
ADVERSARIAL, ALIGNMENT, AUXILIARY, TARGET = (
    TERMS.index(term) for term in ("adversarial", "alignment", "auxiliary", "target")
)


@dataclass(frozen=True, kw_only=True)
class TrainStats:
    """What one window of gradient steps looked like from inside.

    Attributes:
        terms: Mean of every loss term, `[lanes, 8]` in the order of `TERMS`. A term that trains nothing is
            looked at only at the last step of either half of the window.
        slopes: Mean of the second half minus mean of the first half, `[lanes, 8]`.
        gradient_norm: Of a lane's last step per layer group, `[lanes, 5]`; 0 where frozen.
    """

    terms: Tensor
    slopes: Tensor
    gradient_norm: Tensor

    def without(self, lanes: Tensor) -> "TrainStats":
        """Return a copy with zeros in marked lanes, bool `[lanes]`."""
        fields = (self.terms, self.slopes, self.gradient_norm)
        terms, slopes, gradient_norm = (value.masked_fill(lanes[:, None], 0.0) for value in fields)
        return TrainStats(terms=terms, slopes=slopes, gradient_norm=gradient_norm)


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """What a window needs to know of the lanes.

    Attributes:
        seeds: int64 `[lanes]`.
        step_count: Gradient steps done, int64 `[lanes]`.
        budget: int64 `[lanes]`.
        offset: First pool row of each set by name, int64 `[lanes]`.
        length: Rows of each set by name, int64 `[lanes]`.
        dtype: Of the loss.
    """

    seeds: Tensor
    step_count: Tensor
    budget: Tensor
    offset: dict[str, Tensor]
    length: dict[str, Tensor]
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window of every lane.

    Attributes:
        lengths: Steps of each lane, as the host knows them.
        steps: Of the longest lane.
        shortest: Of the shortest; up to it all lanes train.
        ends: Numbers of steps after which some lane is done.
        looks: Steps at which the terms that train nothing are looked at.
        counters: Number of each step in its run, int64 `[steps, lanes]`.
        trained: Which lanes train at each step, bool `[steps, lanes]`.
        wanted: Steps of each lane, int64 `[lanes]`; `lengths` on the device.
        rates: Learning rate with its schedule, `[steps, lanes]`.
        rows: Pool rows of the batches, int64 `[steps, lanes, b]`: support, unlabelled target, source.
        sizes: Numbers of images of these two or three.
        weights: Of every term, `[lanes, 8]`, 0 where it is off, absent or idle.
        available: Which terms a lane has, bool `[lanes, 8]`.
        active: Terms that some lane trains on.
        present: Terms that some lane has.
        strength: Of the augmentation `[lanes]`, or None when off everywhere.
        uses_source: Lanes with a source batch, bool `[lanes]`, or None when none has one.
        uses_heads: Lanes whose auxiliary heads train, bool `[lanes]`, or None when none does.
        all_use_source: Whether every lane has a source batch.
    """

    lengths: tuple[int, ...]
    steps: int
    shortest: int
    ends: frozenset[int]
    looks: frozenset[int]
    counters: Tensor
    trained: Tensor
    wanted: Tensor
    rates: Tensor
    rows: Tensor
    sizes: tuple[int, ...]
    weights: Tensor
    available: Tensor
    active: frozenset[str]
    present: frozenset[str]
    strength: Tensor | None
    uses_source: Tensor | None
    uses_heads: Tensor | None
    all_use_source: bool

    @classmethod
    def plan(cls, lanes: Lanes, controls: Controls, steps: list[int]) -> "Window":
        """Lay out a window; `steps` is each lane's number of gradient steps, 0 leaves a lane as it is."""
        device = lanes.seeds.device
        longest = max(steps)
        wanted = torch.tensor(steps, device=device)
        trained = torch.arange(longest, device=device)[:, None] < wanted
        counters = lanes.step_count[:, None] + torch.arange(longest, device=device)
        on = torch.cat([controls.weights > 0, lanes.length["target_support"][:, None] > 0], dim=1)
        uses_source = on[:, SOURCE_TERMS].any(1) & (lanes.length["source_train"] > 0)
        available = _available(on, uses_source)
        active = on & available & ~_idle(controls)
        weights = torch.cat([controls.weights, torch.ones_like(controls.weights[:, :1])], dim=1)
        uses_heads = active[:, ADVERSARIAL] | active[:, AUXILIARY]
        # The one synchronisation of a window: everything that decides what the loop does comes over at once.
        moving = (wanted > 0)[:, None]
        augmented = (controls.augmentation > 0) & moving[:, 0]
        facts = [(active & moving).any(0), (available & moving).any(0), uses_source.all()[None], augmented.any()[None]]
        known = torch.cat(facts).tolist()
        names = [frozenset(t for t, yes in zip(TERMS, part, strict=True) if yes) for part in (known[:8], known[8:16])]
        with_source = bool(names[1] & set(NEEDS_SOURCE))
        return cls(
            lengths=tuple(steps),
            steps=longest,
            shortest=min(steps),
            ends=frozenset(n for n in steps if n),
            looks=frozenset(k for n in steps if n for k in (_half(n) - 1, n - 1)),
            counters=counters.T.contiguous(),
            trained=trained,
            wanted=wanted,
            rates=(controls.learning_rate[:, None] * cosine(counters, lanes.budget[:, None])).T.contiguous(),
            rows=_draw_rows(lanes, counters, with_source),
            sizes=SIZES if with_source else SIZES[:2],
            weights=torch.where(active, weights, torch.zeros_like(weights)).to(lanes.dtype),
            available=available,
            active=names[0],
            present=names[1],
            strength=controls.augmentation if known[-1] else None,
            uses_source=uses_source if with_source else None,
            uses_heads=uses_heads if names[0] & {"adversarial", "auxiliary"} else None,
            all_use_source=known[-2],
        )

    def lanes_at(self, step: int) -> list[int]:
        """Return the lanes that take a step."""
        return [lane for lane, length in enumerate(self.lengths) if length > step]

    def part(self, first: int, last: int, lanes: list[int]) -> "Window":
        """Cut out steps `first` to `last` (not included) of some lanes; nobody's window ends in between."""
        steps, index = last - first, torch.tensor(lanes, device=self.wanted.device)
        lengths = tuple(steps * (self.lengths[lane] > first) for lane in lanes)

        def mine(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index]

        return replace(
            self,
            lengths=lengths,
            steps=steps,
            shortest=min(lengths),
            ends=frozenset((steps,)),
            looks=frozenset(k - first for k in self.looks if first <= k < last),
            counters=self.counters[first:last, index],
            trained=self.trained[first:last, index],
            wanted=torch.tensor(lengths, device=index.device),
            rates=self.rates[first:last, index],
            rows=self.rows[first:last, index],
            weights=self.weights[index],
            available=self.available[index],
            strength=mine(self.strength),
            uses_source=mine(self.uses_source),
            uses_heads=mine(self.uses_heads),
        )

    def summary(self, terms: Tensor, gradient_norm: Tensor) -> TrainStats:
        """Reduce the loss terms of all steps, `[steps, lanes, 8]`, to what is reported."""
        k = torch.arange(self.steps, device=terms.device)[:, None]
        half = (self.wanted + 1) // 2
        looked = ((k == half - 1) | (k == self.wanted - 1))[..., None]
        counted = self.trained[..., None] & self.available & ((self.weights > 0) | looked)
        first = counted & (k < half)[..., None]
        sums, sizes = [], []
        for mask in (first, counted & ~first):
            sums.append(torch.where(mask, terms, torch.zeros_like(terms)).sum(0))
            sizes.append(mask.sum(0))
        means = [total / size.clamp(min=1) for total, size in zip(sums, sizes, strict=True)]
        both = (sizes[0] > 0) & (sizes[1] > 0)
        return TrainStats(
            terms=(sums[0] + sums[1]) / (sizes[0] + sizes[1]).clamp(min=1),
            slopes=torch.where(both, means[1] - means[0], torch.zeros_like(means[0])),
            gradient_norm=gradient_norm,
        )


def _half(steps: int) -> int:
    """Return how many steps the first half of a window has; the middle step of an odd number belongs to it."""
    return math.ceil(steps / 2)


def _available(on: Tensor, uses_source: Tensor) -> Tensor:
    """Return which loss terms a lane has, bool `[lanes, 8]`.

    A term that costs a pass of its own counts only where its lane asks for it, not where a neighbour does.
    """
    mask = torch.ones_like(on)
    mask[:, SOURCE_TERMS] = uses_source[:, None]
    for term in (ADVERSARIAL, AUXILIARY):
        mask[:, term] &= on[:, term]
    mask[:, TARGET] = on[:, TARGET]
    return mask


def _idle(controls: Controls) -> Tensor:
    """Return which terms reach nothing that is trained: alignment of features that are frozen, bool `[lanes, 8]`."""
    idle = torch.zeros(len(controls.unfrozen_stages), len(TERMS), dtype=torch.bool, device=controls.weights.device)
    idle[:, ALIGNMENT] = controls.unfrozen_stages == 0
    return idle


def _draw_rows(lanes: Lanes, counters: Tensor, with_source: bool) -> Tensor:
    """Draw the pool rows of every batch of the window.

    A target batch is 16 support and 32 unlabelled images; a lane without labels takes unlabelled ones for
    all 48, so that a lane's batch does not depend on what the lanes beside it have.
    """

    def draw(name: str, stream: int, size: int) -> Tensor:
        drawn = streams.integers(lanes.seeds, stream, counters, size, lanes.length[name].clamp(min=1))
        return lanes.offset[name][:, None, None] + drawn

    has_support = (lanes.length["target_support"] > 0)[:, None, None]
    support = draw("target_support", streams.SUPPORT_BATCH, SUPPORT_BATCH)
    filler = draw("target_unlabelled", streams.SUPPORT_BATCH, SUPPORT_BATCH)
    unlabelled = draw("target_unlabelled", streams.TARGET_BATCH, TARGET_BATCH)
    rows = [torch.where(has_support, support, filler), unlabelled]
    if with_source:
        rows.append(draw("source_train", streams.SOURCE_BATCH, SOURCE_BATCH))
    return torch.cat(rows, dim=-1).transpose(0, 1).contiguous()
