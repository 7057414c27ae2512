"""Small heads that only training uses: the domain discriminator and the rotation classifier.

Both are stacked over lanes, take features of any network, and never leave with the adapted model.
"""

import math

import torch
from torch import Tensor

from lepton_rl import streams
from lepton_rl.losses import cross_entropy, domain_adversarial, reverse_gradient
from lepton_rl.optim import LaneAdam

HIDDEN = 32
N_ROTATIONS = 4


class AuxiliaryHeads:
    """A two-layer domain discriminator (Ganin and Lempitsky 2015) and a linear rotation head (Gidaris 2018).

    Args:
        lanes: Number of lanes.
        width: Length of a feature vector.
        device: Where the parameters live.
        dtype: Of the parameters.
    """

    def __init__(self, lanes: int, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self.width = width
        n = (width + 1) * HIDDEN + HIDDEN + 1 + (width + 1) * N_ROTATIONS
        self.flat = torch.zeros(lanes, n, device=device, dtype=dtype, requires_grad=True)
        self.optimizer = LaneAdam(self.flat)

    @torch.no_grad()
    def reset(self, lanes: Tensor, seeds: Tensor) -> None:
        """Draw the discriminators of lanes from their seeds, both int64 `[n]`; the rotation heads start at zero."""
        counters = torch.zeros(len(seeds), 1, dtype=torch.int64, device=self.flat.device)
        draws = streams.uniform(seeds, streams.INIT, counters, self.flat.shape[1])[:, 0]
        first, second = (self.width + 1) * HIDDEN, (self.width + 1) * HIDDEN + HIDDEN
        bound = torch.zeros_like(draws[0])
        bound[: self.width * HIDDEN] = 1 / math.sqrt(self.width)
        bound[first:second] = 1 / math.sqrt(HIDDEN)
        self.flat[lanes] = ((2 * draws - 1) * bound).to(self.flat.dtype)
        mask = torch.zeros(self.flat.shape[0], dtype=torch.bool, device=self.flat.device)
        mask[lanes] = True
        self.optimizer.forget(mask)

    def _parts(self) -> tuple[Tensor, ...]:
        lanes, d = self.flat.shape[0], self.width
        sizes = (d * HIDDEN, HIDDEN, HIDDEN, 1, d * N_ROTATIONS, N_ROTATIONS)
        shapes = ((d, HIDDEN), (1, HIDDEN), (HIDDEN, 1), (1, 1), (d, N_ROTATIONS), (1, N_ROTATIONS))
        return tuple(part.reshape(lanes, *shape) for part, shape in zip(self.flat.split(sizes, 1), shapes, strict=True))

    def adversarial(self, features_s: Tensor, features_t: Tensor) -> Tensor:
        """Return the discriminator's loss `[lanes]`; its gradient reaches the features reversed.

        Features are scaled by their own pooled size first, so that one discriminator fits any network.
        """
        w1, b1, w2, b2, _, _ = self._parts()
        both = torch.cat([features_s, features_t], dim=1)
        scale = both.detach().square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-6)
        logits = (torch.relu(reverse_gradient(both / scale) @ w1 + b1) @ w2 + b2)[..., 0]
        return domain_adversarial(logits[:, : features_s.shape[1]], logits[:, features_s.shape[1] :])

    def rotation(self, features: Tensor, quarter_turns: Tensor) -> Tensor:
        """Return the cross-entropy of the guessed rotation `[lanes]`."""
        w, b = self._parts()[4:]
        scale = features.detach().square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-6)
        return cross_entropy(features / scale @ w + b, quarter_turns)
