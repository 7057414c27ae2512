"""What a person wants to see of a finished run: why each decision, which images changed class, where features went."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lepton_rl.arrays import UNLABELLED
from lepton_rl.attribution import explain_decisions
from lepton_rl.domain import Domain
from lepton_rl.features import features_and_logits
from lepton_rl.label_check import labels_worth_a_look
from lepton_rl.metrics import Floats
from lepton_rl.policy import Policy
from lepton_rl.preprocessing import Preprocessing, probabilities
from lepton_rl.rollout import RunResult
from lepton_rl.selection import ORIGINAL
from lepton_rl.stages import find_stages
from lepton_rl.task import VisibleTask
from lepton_rl.thumbnail import png_of

TARGET_IMAGES, SOURCE_IMAGES = 256, 200
EXAMPLES = 18
REFERENCE_NUMBERS = 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """The content of `explanation.json`, and what `lepton drift` compares new images with.

    Attributes:
        facts: JSON values: `decisions`, `examples`, `labels`, `maps`.
        reference: Features of up to 256 target images under the chosen weights, `[n, d]`.
        head: Dotted name of the classifier whose input they are.
    """

    facts: dict[str, Any]
    reference: Tensor
    head: str


def explain(
    task: VisibleTask,
    way: Preprocessing,
    run: RunResult,
    policy: Policy,
    *,
    original: nn.Module,
    adapted: nn.Module,
    judged: tuple[Domain, Floats, Floats] | None,
) -> Explanation:
    """Look back on a run.

    Args:
        task: What the run saw.
        way: The way into the model.
        run: With its engine, which holds the statistics of both domains.
        policy: Steered it.
        original: The network before, in evaluation mode.
        adapted: The network that comes out.
        judged: Test images with probabilities before and after; without them examples are target images.
    """
    head = (task.plan or find_stages(task.model)).head
    target = task.target_unlabelled.take(range(min(TARGET_IMAGES, len(task.target_unlabelled))))
    before, was = features_and_logits(original, head, target, way)
    after, now = features_and_logits(adapted, head, target, way)
    if judged is None:
        shown = (target, was.double().softmax(1).numpy(), now.double().softmax(1).numpy())
    rows = max(1, REFERENCE_NUMBERS // after.shape[1])
    return Explanation(
        facts={
            "decisions": explain_decisions(policy, run.history),
            "examples": {"of": "target" if judged is None else "test", **changed_images(*(judged or shown))},
            "labels": _labels(task, way, original, adapted),
            "maps": _maps(task, way, run, original, head, (before, after)),
        },
        reference=after[:rows].contiguous(),
        head=head,
    )


def _labels(task: VisibleTask, way: Preprocessing, original: nn.Module, adapted: nn.Module) -> dict[str, Any] | None:
    """Doubt the labels that the run was given, each by a network that was not trained on it; None without any."""
    judges = [(part, model) for part, model in ((task.target_support, original), (task.target_probe, adapted)) if part]
    if not judges:
        return None
    parts = [part for part, _ in judges]
    whole = replace(
        parts[0],
        images=np.concatenate([part.images for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
    )
    return labels_worth_a_look(whole, np.concatenate([probabilities(model, part, way) for part, model in judges]))


def _maps(
    task: VisibleTask,
    way: Preprocessing,
    run: RunResult,
    original: nn.Module,
    head: str,
    target: tuple[Tensor, Tensor],
) -> dict[str, Any] | None:
    """Project features of both domains, before and after, onto the same plane."""
    groups = {"target before": target[0], "target after": target[1]}
    if task.source_val is not None:
        source = task.source_val.take(range(min(SOURCE_IMAGES, len(task.source_val))))
        groups["source before"] = features_and_logits(original, head, source, way)[0]
        # The returned model normalises for the target; the engine still knows the source's statistics.
        pixels = torch.from_numpy(np.ascontiguousarray(source.images))[None].to(run.engine.device)
        groups["source after"] = run.engine.predict(pixels, "source")[0][0].float().cpu()
        if run.chosen == ORIGINAL:
            groups["source after"] = groups["source before"]
    return plane(groups)


def plane(groups: dict[str, Tensor]) -> dict[str, Any] | None:
    """Project groups of features `[n, d]` by one principal component analysis over all of them.

    Returns:
        `explained`, the shares of the variance on the two axes, and for every group its points; None where there
        is no plane to speak of.
    """
    from sklearn.decomposition import PCA

    everything = torch.cat(list(groups.values())).double().numpy()
    if min(everything.shape) < 2 or not np.isfinite(everything).all() or not everything.var(0).sum() > 0:
        return None
    fitted = PCA(n_components=2, svd_solver="full" if max(everything.shape) <= 2048 else "randomized", random_state=0)
    points = fitted.fit_transform(everything)
    points /= max(np.abs(points).max(), 1e-12)
    cuts = np.cumsum([len(rows) for rows in groups.values()])[:-1]
    return {
        "explained": np.nan_to_num(fitted.explained_variance_ratio_).round(4).tolist(),
        "points": dict(zip(groups, (part.round(3).tolist() for part in np.split(points, cuts)), strict=True)),
    }


def changed_images(domain: Domain, before: Floats, after: Floats) -> dict[str, Any]:
    """Pick example images that changed class, different ones first, those with labels in fair shares.

    Args:
        domain: Images, with labels or none.
        before: Probabilities `[n, k]`.
        after: Probabilities `[n, k]`.
    """
    was, now = before.argmax(1), after.argmax(1)
    known = domain.labels != UNLABELLED
    changed = was != now
    kinds = {
        "became right": changed & known & (now == domain.labels),
        "became wrong": changed & known & (was == domain.labels),
        "stayed wrong": changed & known & (now != domain.labels) & (was != domain.labels),
        "label unknown": changed & ~known,
    }
    picked = _picked([np.flatnonzero(mask) for mask in kinds.values()], was * before.shape[1] + now, after.max(1))
    names = domain.classes
    return {
        "images": len(domain),
        "changed": int(changed.sum()),
        "counts": {kind: int(mask.sum()) for kind, mask in kinds.items() if mask.any()},
        "shown": [
            {
                "kind": next(kind for kind, mask in kinds.items() if mask[i]),
                "before": names[was[i]],
                "after": names[now[i]],
                "sure": [round(float(before[i].max()), 3), round(float(after[i].max()), 3)],
                "label": names[domain.labels[i]] if known[i] else None,
                "png": png_of(domain.images[i]),
            }
            for i in picked
        ],
    }


def _picked(groups: Sequence[NDArray[np.int64]], move: NDArray[np.int64], sure: Floats) -> list[int]:
    """Take from the groups in turn until there are enough: each group's different moves first, the surest of each."""
    queues = []
    for group in groups:
        ordered = group[np.argsort(-sure[group], kind="stable")]
        rank = [int((move[ordered[:i]] == move[row]).sum()) for i, row in enumerate(ordered)]
        queues.append(ordered[np.argsort(rank, kind="stable")].tolist())
    turns = [queue[turn] for turn in range(EXAMPLES) for queue in queues if turn < len(queue)][:EXAMPLES]
    return [i for queue in queues for i in queue if i in turns]
