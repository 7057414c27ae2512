"""Labels worth a look: labelled images whose label a network that has not been trained on it contradicts.

The network is confident of a class from the probability on that it gives it, on average, on images labelled so.
Source: Northcutt, Jiang, Chuang 2021, "Confident learning: estimating uncertainty in dataset labels", equation 2.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_rl.domain import Domain
from lepton_rl.thumbnail import png_of

LEAST_SURE = 0.5  # few labels make the means of the classes unsure: a label is doubted against more than half
SHOWN = 12


def doubtful(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return which labels are worth a look, the most contradicted first.

    Args:
        labels: `[n]`, all known.
        probabilities: Of every class, by a network that was not trained on the label, `[n, k]`.
    """
    rows, likely = np.arange(len(labels)), probabilities.argmax(1)
    given, best = probabilities[rows, labels], probabilities[rows, likely]
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    confident = np.bincount(labels, weights=given, minlength=probabilities.shape[1]) / np.maximum(counts, 1)
    wrong = (likely != labels) & (best >= np.maximum(confident[likely], LEAST_SURE))
    order = np.argsort(given - best, kind="stable")
    found: NDArray[np.int64] = order[wrong[order]]
    return found


def labels_worth_a_look(domain: Domain, probabilities: NDArray[np.float64]) -> dict[str, Any]:
    """Return the doubtful labels as JSON values: how many of how many, and the first of them with their images.

    Args:
        domain: Labelled images.
        probabilities: Of every class, by a network that was not trained on the label, `[n, k]`.
    """
    rows, names = doubtful(domain.labels, probabilities), domain.classes
    return {
        "images": len(domain),
        "doubtful": len(rows),
        "shown": [
            {
                "before": names[domain.labels[i]],
                "after": names[probabilities[i].argmax()],
                "sure": [round(float(probabilities[i, domain.labels[i]]), 3), round(float(probabilities[i].max()), 3)],
                "png": png_of(domain.images[i]),
            }
            for i in rows[:SHOWN]
        ],
    }
