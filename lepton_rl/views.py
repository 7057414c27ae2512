"""What a network says about the visible splits, in evaluation mode: all that signals and scores are made of."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lepton_rl.normalisation import Side
from lepton_rl.objective import Outputs

if TYPE_CHECKING:
    from lepton_rl.engine import Engine

VIEW = 128  # images of each domain that are looked at


@dataclass(frozen=True, kw_only=True)
class Views:
    """Features and predictions by split.

    Absent splits have labels of -1 only; their outputs mean nothing and are not to be used.
    """

    source: Outputs
    probe: Outputs
    target: Outputs


@torch.no_grad()
def look(engine: "Engine", side: Side = "target") -> Views:
    """Look at up to 128 images of each domain, and at every probe image.

    Args:
        engine: Whose networks.
        side: Whose normalisation statistics target images are seen with; `source` is the untouched network.
    """
    target_rows, _ = engine.view_rows("target_unlabelled", VIEW)
    probe_rows, probe_mask = engine.view_rows("target_probe", int(engine.length["target_probe"].max()))
    rows = torch.cat([target_rows, probe_rows], dim=1)
    features, logits = engine.predict_rows(rows, side)
    labels = engine.pool.labels[rows]
    probe_labels = torch.where(probe_mask, labels[:, VIEW:], torch.full_like(probe_mask, -1, dtype=torch.int64))
    return Views(
        source=_look_at_source(engine),
        target=Outputs(features=features[:, :VIEW], logits=logits[:, :VIEW], labels=labels[:, :VIEW]),
        probe=Outputs(features=features[:, VIEW:], logits=logits[:, VIEW:], labels=probe_labels),
    )


def _look_at_source(engine: "Engine") -> Outputs:
    rows, _ = engine.view_rows("source_val", VIEW)
    present = (engine.length["source_val"] > 0)[:, None]
    labels = torch.where(present, engine.pool.labels[rows], torch.full_like(present, -1, dtype=torch.int64))
    if not bool(present.any()):
        zeros = torch.zeros(engine.lanes, VIEW, 1, device=engine.device, dtype=engine.dtype)
        return Outputs(
            features=zeros.expand(-1, -1, engine.heads.width),
            logits=zeros.expand(-1, -1, engine.width_of_head),
            labels=labels,
        )
    features, logits = engine.predict_rows(rows, "source")
    return Outputs(features=features, logits=logits, labels=labels)
