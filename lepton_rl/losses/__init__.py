"""Training losses: pure, lane-batched and differentiable functions, one loss per file.

Every function takes tensors with any number of leading lane dimensions, `[..., b, d]` or `[..., b, k]`, and
returns one number per lane, `[...]`. A lane's value does not depend on the other lanes. Gradients are finite
for every finite input. The measures for people and policies, which need no gradient, are in
`lepton_rl.discrepancy`.
"""

from lepton_rl.losses.adversarial import domain_adversarial, reverse_gradient
from lepton_rl.losses.coral import coral
from lepton_rl.losses.cross_entropy import cross_entropy
from lepton_rl.losses.entropy import conditional_entropy, diversity
from lepton_rl.losses.mmd import mmd
from lepton_rl.losses.rotation import rotate_batch
from lepton_rl.losses.self_training import pseudo_label

__all__ = [
    "conditional_entropy",
    "coral",
    "cross_entropy",
    "diversity",
    "domain_adversarial",
    "mmd",
    "pseudo_label",
    "reverse_gradient",
    "rotate_batch",
]
