"""Outputs of a frozen prefix of a network, kept per image, so that they are computed once.

While the lower stages are frozen they are a fixed function of the image and of the domain's statistics.
Head-only training then costs as much as a linear layer.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lepton_rl.gates import Gates
from lepton_rl.outputs import as_logits
from lepton_rl.stages import HEAD, N_STAGES, StagePlan

CACHE_BYTES = 256 * 2**20
CHUNK = 256  # images per pass through the prefix

Side = Literal["source", "target"]


class SplitNetwork:
    """A network cut in two at a stage: `upper(lower(x, cut), cut)` equals `model(x)`.

    A network with `stages`, `pool`, `flatten` and `head` that runs them in this order (the package's own family)
    can be cut below any stage. Any other one is cut by gates, wherever the halves give what the whole gives; its
    head can be cut off if its output is the network's output.

    Args:
        model: In evaluation mode.
        plan: Its layer groups.
        example: Normalised images `[n, c, h, w]` that tell whether the parts give what the whole gives.
    """

    def __init__(self, model: nn.Module, plan: StagePlan, example: Tensor) -> None:
        self.model = model
        self.head = model.get_submodule(plan.head)
        named = tuple((f"stages.{i}",) for i in range(N_STAGES))
        parts = [getattr(model, name, None) for name in ("stages", "pool", "flatten")]
        self.staged = plan.stages == named and all(isinstance(part, nn.Module) for part in parts)
        self.gates: Gates | None = None
        self.cuts: list[int] = []
        self.features: list[Tensor] = []
        self.head.register_forward_pre_hook(lambda _, inputs: self.features.append(inputs[0]))
        self.can_cut = self._verify(example)
        if not self.staged:
            self.gates = Gates(model, plan, example)
            self.cuts = [cut for cut in range(1, HEAD) if self._can_cut_at(cut, example)]

    @torch.no_grad()
    def _verify(self, example: Tensor) -> bool:
        self.features.clear()
        whole = as_logits(self.model(example))
        inner = self.features[-1]
        if self.staged:
            self.staged = self._agree(self.upper(self.lower(example, 2), 2), whole)
        return inner.dim() == 2 and self._agree(self.head(inner), whole)

    @torch.no_grad()
    def _can_cut_at(self, cut: int, example: Tensor) -> bool:
        assert self.gates is not None
        if not self.gates.can_enter(cut):
            return False
        whole = as_logits(self.model(example))
        try:
            parts = (example, example[:1])
            halves = [as_logits(self.gates.upper(self.lower(part, cut), cut, math.nan)) for part in parts]
        except Exception:  # what lies between the units may fail in any way on blanks: no cut there
            return False
        return self._agree(halves[0], whole) and self._agree(halves[1], whole[:1])

    def _agree(self, one: Tensor, other: Tensor) -> bool:
        return one.shape == other.shape and bool(torch.allclose(one, other, rtol=1e-4, atol=1e-5))

    def cut_for(self, live: Sequence[bool]) -> int:
        """Return how many groups from below may be cut off when only the marked ones train; 0 = none."""
        frozen = next(i for i in range(HEAD + 1) if live[i] or i == HEAD)
        if frozen == HEAD and self.can_cut:
            return HEAD
        if self.staged:
            return frozen if frozen < HEAD else 0
        return max((cut for cut in self.cuts if cut <= frozen), default=0)

    def lower(self, x: Tensor, cut: int) -> Tensor:
        """Run what lies below the cut; at `HEAD` that gives features `[n, d]`."""
        if cut == HEAD and not self.staged:
            self.features.clear()
            self.model(x)
            return self.features[-1]
        if self.gates is not None:
            return self.gates.lower(x, cut)
        for stage in self._parts("stages")[:cut]:
            x = stage(x)
        return self._flat(x) if cut == HEAD else x

    def upper(self, x: Tensor, cut: int) -> Tensor:
        """Run what lies above the cut, from what `lower` gave to logits `[n, k]`."""
        if cut < HEAD and self.gates is not None:
            return as_logits(self.gates.upper(x, cut))
        if cut < HEAD:
            for stage in self._parts("stages")[cut:]:
                x = stage(x)
            x = self._flat(x)
        logits: Tensor = self.head(x)
        return logits

    def _parts(self, name: str) -> list[nn.Module]:
        return list(self.model.get_submodule(name).children())

    def _flat(self, x: Tensor) -> Tensor:
        flat: Tensor = self.model.get_submodule("flatten")(self.model.get_submodule("pool")(x))
        return flat


class PrefixCache:
    """What lies below the cut has put out, for rows of the image pool and either domain's statistics.

    Args:
        limit: Most bytes to keep. Where one window needs more, it is not cached.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.cut = 0
        self.filled: list[tuple[Side, Tensor]] = []  # what was computed together: only so computed again to the bit
        self._store: Tensor | None = None
        self._used = 0
        self._slots: dict[Side, Tensor] = {}

    def clear(self) -> None:
        """Forget everything, because the prefix or the images have changed."""
        self._store, self._used, self._slots, self.filled = None, 0, {}, []

    def get(self, rows: Tensor, side: Side) -> Tensor:
        """Return the outputs of rows `[n]` that are there."""
        assert self._store is not None
        return self._store.index_select(0, self._slots[side].index_select(0, rows))

    def fill(self, rows: Tensor, side: Side, pool_rows: int, compute: Callable[[Tensor], Tensor]) -> bool:
        """Compute what is missing of some rows.

        Args:
            rows: Pool rows, int64, any shape.
            side: Whose statistics `compute` uses.
            pool_rows: Rows that the pool has.
            compute: Maps rows `[n]` to outputs `[n, ...]`.

        Returns:
            Whether all rows are there now; false if they do not fit.
        """
        if side not in self._slots:
            self._slots[side] = torch.full((pool_rows,), -1, dtype=torch.int64, device=rows.device)
        slots = self._slots[side]
        missing = rows[slots[rows] < 0].unique()
        for chunk in missing.split(CHUNK) if len(missing) else ():
            values = compute(chunk)
            if not self._reserve(len(chunk), values, 2 * pool_rows):
                return False
            assert self._store is not None
            self._store[self._used : self._used + len(chunk)] = values
            slots[chunk] = torch.arange(self._used, self._used + len(chunk), device=rows.device)
            self._used += len(chunk)
            self.filled.append((side, chunk.clone()))
        return True

    def _reserve(self, more: int, like: Tensor, most: int) -> bool:
        """Make room, by half at a time; at most `most` rows and `limit` bytes."""
        capacity = min(most, self.limit // max(1, like[0].numel() * like.element_size()))
        have = 0 if self._store is None else len(self._store)
        if self._used + more > capacity:
            return False
        if self._used + more > have:
            grown = like.new_empty((min(capacity, max(self._used + more, have * 3 // 2)), *like.shape[1:]))
            if self._store is not None:
                grown[: self._used] = self._store[: self._used]
            self._store = grown
        return True
