"""How much a controller can gain at all: what the best plan of each task is worth above the tuned default.

The best of many noisy results is mostly luck. So the best plan, and the best moment to stop, are chosen on one half of
target_eval and paid on the other, and the other way round; what is left is real.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from lepton_rl.agents.distill import returns
from lepton_rl.agents.experience import Experience
from lepton_rl.agents.plans import CHOICES

HALVES = ((0, 1), (1, 0))  # chosen on, paid on
COLUMNS = ("tasks", "tuned default", "source-only", "best plan", "best plan, best moment", "the same, uncorrected")


def headroom(e: Experience) -> tuple[float, ...]:
    """Return what a task has room for.

    Returns:
        Accuracy of the tuned default, 0..1; then points above it, of the untouched network, of the best plan, of the
        best plan stopped at the best moment, and of the latter chosen and paid on the same images (too good to be
        true: the winner's curse).
    """
    accuracies, last = e.accuracies.numpy(), e.accuracies[:, -1].numpy()
    best, moment, lucky = [], [], []
    for chosen, paid in HALVES:
        best.append(last[last[:, chosen].argmax(), paid] - last[0, paid])
        at = np.unravel_index(accuracies[..., chosen].argmax(), accuracies.shape[:2])
        moment.append(accuracies[(*at, paid)] - last[0, paid])
        lucky.append(accuracies[..., chosen].max() - last[0, chosen])
    default = float(last[0].mean())
    points = (float(e.original.mean()) - default, np.mean(best), np.mean(moment), np.mean(lucky))
    return (default, *(100 * float(value) for value in points))


def headroom_table(experience: Sequence[Experience]) -> str:
    """Return headroom by regime, label shift, base set and budget as a Markdown table."""
    groups: list[tuple[str, Callable[[Experience], str]]] = [
        ("", lambda e: "all"),
        ("", lambda e: str(e.facts["regime"]) + (", source-free" if e.facts["source_free"] else "")),
        ("labels of the target ", lambda e: "long-tailed" if e.facts["label_skew"] else "balanced"),
        ("", lambda e: str(e.facts["base"])),
        ("budget ", lambda e: f"{e.facts['budget']:4d}"),
        ("", lambda e: str(e.facts["architecture"])),
    ]
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for prefix, key in groups:
        for name, members in groupby(sorted(experience, key=key), key):
            rows = np.array([headroom(e) for e in members])
            default, *points = rows.mean(0)
            errors = rows.std(0)[1:] / len(rows) ** 0.5
            cells = [f"{p:+.1f} ± {s:.1f}" for p, s in zip(points, errors, strict=True)]
            lines.append(f"| {prefix}{name.strip()} | {len(rows)} | {default:.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plans_table(experience: Sequence[Experience]) -> str:
    """Return what every plan was worth, in points above the tuned default, by what is known beforehand."""
    groups = {"all": list(experience)}
    for e in experience:
        name = str(e.facts["regime"]) + (", source-free" if e.facts["source_free"] else "")
        groups.setdefault(name, []).append(e)
    groups = dict(sorted(groups.items()))
    lines = ["| plan | " + " | ".join(f"{name} ({len(members)})" for name, members in groups.items()) + " |"]
    lines.append("|---|" + "---|" * len(groups))
    worth = {name: np.array([returns(e) for e in members]) for name, members in groups.items()}
    for i, plan in enumerate(CHOICES):
        columns = [points[:, i] for points in worth.values()]
        cells = [f"{points.mean():+.2f} ± {points.std() / len(points) ** 0.5:.2f}" for points in columns]
        lines.append(f"| {plan.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
