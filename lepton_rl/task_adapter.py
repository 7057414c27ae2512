"""A new head for other classes, with the old one kept: the task adapter.

The head is fitted before the run on the features that the untouched network makes of labelled images, so that the
first decision does not start from a random classifier.
"""

import copy
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.preprocessing import CHUNK, Preprocessing
from lepton_rl.stages import find_stages

MAX_ITERATIONS = 500  # of the logistic regression; a hundred are usual


def with_head(model: nn.Module, name: str, head: nn.Linear) -> nn.Module:
    """Return a copy of a model in evaluation mode with another linear head, in the type and place of the old one.

    Args:
        model: The network; it is not touched.
        name: Dotted name of the head.
        head: Linear layer for the same features; it is copied.

    Raises:
        InputError: If the model has no such head, or it takes features of another length.
    """
    try:
        old = model.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"head {name!r} is no module of {type(model).__name__}: expected the name of one") from error
    if not isinstance(old, nn.Linear) or old.in_features != head.in_features:
        takes = f"takes {old.in_features} features" if isinstance(old, nn.Linear) else f"is {type(old).__name__}"
        raise InputError(
            f"head {name!r} {takes}: expected nn.Linear with {head.in_features}; give the one that belongs to it"
        )
    other = copy.deepcopy(model).eval()
    other.set_submodule(name, copy.deepcopy(head).to(old.weight.device, old.weight.dtype))
    return other


def with_classes(model: nn.Module, name: str | None, n_classes: int) -> nn.Module:
    """Return a copy of an untrained model with a head for so many classes.

    Args:
        model: With random weights.
        name: Dotted name of the head; default the last linear layer.
        n_classes: Outputs of the new head.
    """
    name = find_stages(model, name).head
    width = model.get_submodule(name).in_features
    assert isinstance(width, int)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return with_head(model, name, nn.Linear(width, n_classes))


def fitted_head(model: nn.Module, name: str, domain: Domain, way: Preprocessing) -> nn.Linear:
    """Fit a head for a domain's classes on the features of its labelled images (multinomial logistic regression).

    A class without a labelled image gets weights of 0 and the bias of a class seen in less than one image.

    Args:
        model: Network whose features to use; it is not touched.
        name: Dotted name of its present head.
        domain: Labelled images in the model's size and channels.
        way: Standardises them.

    Raises:
        InputError: If fewer than two classes have a labelled image.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labelled = domain.labelled()
    present = np.unique(labelled.labels)
    if len(present) < 2:
        raise InputError(
            f"a new head for {domain.n_classes} classes needs labelled images of at least 2 of them, and "
            f"{domain.name!r} has {len(present)}: label more images, or give a source with labels"
        )
    features = _features(model, name, labelled, way)
    scaler, fit = StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that is not quite done is a good start all the same
        make_pipeline(scaler, fit).fit(features, labelled.labels)
    rows = fit.coef_ if len(present) > 2 else np.concatenate([-fit.coef_, fit.coef_]) / 2  # two classes give one row
    shift = fit.intercept_ if len(present) > 2 else np.concatenate([-fit.intercept_, fit.intercept_]) / 2
    weight = np.zeros((domain.n_classes, features.shape[1]))
    bias = np.full(domain.n_classes, -np.log1p(len(labelled)))
    weight[present] = rows / scaler.scale_
    bias[present] = shift - weight[present] @ scaler.mean_
    head: nn.Linear = nn.utils.skip_init(nn.Linear, features.shape[1], domain.n_classes)  # draws no random numbers
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
    return head


@torch.no_grad()
def _features(model: nn.Module, name: str, domain: Domain, way: Preprocessing) -> NDArray[np.float64]:
    """Return what reaches the head, `[n, d]`."""
    trial = copy.deepcopy(model).to("cpu", torch.float32).eval()
    reached: list[Tensor] = []
    trial.get_submodule(name).register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0]))
    for start in range(0, len(domain), CHUNK):
        trial(way(domain.images[start : start + CHUNK]))
    if reached[0].dim() != 2:
        raise InputError(
            f"head {name!r} takes features {list(reached[0].shape)}: expected [n, d]; give the model as many outputs "
            "as there are classes"
        )
    return torch.cat(reached).numpy().astype(np.float64)
