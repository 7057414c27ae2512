"""Images that live on the device once and are shared by the lanes that use them."""

from dataclasses import dataclass

import numpy as np
import torch

from lepton_rl.domain import Domain
from lepton_rl.storage import blank_images, chunks


@dataclass(frozen=True)
class Segment:
    """Where a domain lies in the pool: its first row and its number of rows."""

    offset: int
    length: int


class ImagePool:
    """A growing device tensor of uint8 images `[rows, c, h, w]` with labels `[rows]`.

    A domain is stored once however many lanes hold it; its rows are free again when the last one lets go. On the CPU
    a pool that is too large for memory lies in a file (`storage.py`); on a GPU it has to fit.
    """

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        self.images = torch.empty((0, *shape), dtype=torch.uint8, device=device)
        self.labels = torch.empty(0, dtype=torch.int64, device=device)
        self._held: dict[int, tuple[Domain, Segment, int]] = {}
        self._free: list[Segment] = []

    def hold(self, domain: Domain) -> Segment:
        """Store a domain, or count one more holder of a stored one."""
        kept, segment, holders = self._held.get(id(domain), (domain, None, 0))
        if segment is None:
            segment = self._place(len(domain))
            rows = slice(segment.offset, segment.offset + segment.length)
            for part in chunks(domain.images):
                # A copy, as the images may be read-only, which a tensor cannot be.
                self.images[rows][part] = torch.from_numpy(np.array(domain.images[part])).to(self.images.device)
            self.labels[rows] = torch.from_numpy(domain.labels).to(self.labels.device)
        self._held[id(domain)] = (kept, segment, holders + 1)
        return segment

    def release(self, domain: Domain) -> None:
        """Count one holder less and free the rows after the last."""
        kept, segment, holders = self._held.pop(id(domain))
        if holders > 1:
            self._held[id(domain)] = (kept, segment, holders - 1)
        else:
            self._free.append(segment)
            self._merge_free()

    def _place(self, length: int) -> Segment:
        for i, gap in enumerate(self._free):
            if gap.length >= length:
                if gap.length > length:
                    self._free[i] = Segment(gap.offset + length, gap.length - length)
                else:
                    del self._free[i]
                return Segment(gap.offset, length)
        return self._grow(length)

    def _grow(self, length: int) -> Segment:
        rows = self.images.shape[0]
        extra = length if rows == 0 else max(length, rows // 2)  # amortised: a pool of many lanes grows rarely
        self.images = self._larger(rows + extra)
        self.labels = torch.cat([self.labels, self.labels.new_full((extra,), -1)])
        if extra > length:
            self._free.append(Segment(rows + length, extra - length))
        return Segment(rows, length)

    def _larger(self, rows: int) -> torch.Tensor:
        """Return the images with more rows; on the CPU they may lie on the disk, if they are too large for memory."""
        shape = (rows, *self.images.shape[1:])
        if self.images.device.type != "cpu":
            return torch.cat([self.images, self.images.new_empty((rows - len(self.images), *shape[1:]))])
        larger = torch.from_numpy(blank_images(shape))
        larger[: len(self.images)] = self.images
        return larger

    def _merge_free(self) -> None:
        merged: list[Segment] = []
        for gap in sorted(self._free, key=lambda s: s.offset):
            if merged and merged[-1].offset + merged[-1].length == gap.offset:
                merged[-1] = Segment(merged[-1].offset, merged[-1].length + gap.length)
            else:
                merged.append(gap)
        self._free = merged
