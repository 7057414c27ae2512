"""One source-to-target problem, and who may see which part of it.

`VisibleTask` is all that a policy, a tuner, an engine or a validator is ever given. `HiddenTask` holds the
privileged splits: `target_eval` for the reward in training, `target_test` for the final report. The wall
between them is the type: nothing that takes a `VisibleTask` can read a hidden label.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import nn

from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.stages import StagePlan

Regime = Literal["few-label", "label-free"]
REGIMES: tuple[Regime, ...] = ("few-label", "label-free")


@dataclass(frozen=True, kw_only=True, eq=False)
class VisibleTask:
    """What a run may see.

    Attributes:
        name: For people and rows; never an input of a policy.
        model: The pretrained network; engines copy it and never change it.
        n_classes: Outputs of the head.
        mean: Per channel mean of the model's training images in 0..1, `[c]`.
        std: Per channel standard deviation, `[c]`.
        source_train: Labelled source images, or None when source-free.
        source_val: Labelled source images kept out of training, or None when source-free.
        target_support: The few labelled target images to train on, or None.
        target_probe: The few labelled target images to validate on, or None.
        target_unlabelled: Target images; their labels are all -1.
        budget: Gradient steps of one run.
        plan: The model's layer groups, or None to find them.
        class_prior: Shares of the classes among the target images, `[n_classes]`, summing up to 1; None = unknown.
    """

    name: str
    model: nn.Module = field(repr=False)
    n_classes: int
    mean: np.ndarray
    std: np.ndarray
    target_unlabelled: Domain
    budget: int
    source_train: Domain | None = None
    source_val: Domain | None = None
    target_support: Domain | None = None
    target_probe: Domain | None = None
    plan: StagePlan | None = None
    class_prior: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Refuse a task that could leak or cannot run."""
        if len(self.target_unlabelled) == 0:
            raise InputError(f"task {self.name!r} has 0 target images: expected at least 1; add images to the target")
        if self.target_unlabelled.has_labels:
            raise InputError(
                f"task {self.name!r}: target_unlabelled carries labels: expected all -1; hide them before building it"
            )
        prior = self.class_prior
        if prior is not None and (
            prior.shape != (self.n_classes,) or (prior < 0).any() or not abs(prior.sum() - 1) < 1e-6
        ):
            raise InputError(
                f"task {self.name!r} has a class_prior of {prior.tolist()}: expected {self.n_classes} shares that sum "
                "up to 1; divide numbers of images by their sum"
            )
        if (self.source_train is None) != (self.source_val is None):
            raise InputError(f"task {self.name!r}: give source_train and source_val both, or neither for source-free")

    @property
    def source_free(self) -> bool:
        """Whether no source data are at hand."""
        return self.source_train is None

    @property
    def regime(self) -> Regime:
        """`few-label` if any target label may be seen, else `label-free`."""
        return "label-free" if self.target_support is None else "few-label"


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenTask:
    """What no policy, tuner or checkpoint choice may see.

    Attributes:
        target_eval: Labelled target images for the reward in training, or None outside of it.
        target_test: Labelled target images, read once by the final report, or None when unknown.
        target_train_labels: True labels of `target_unlabelled`, for the target-supervised upper bound only.
    """

    target_eval: Domain | None = None
    target_test: Domain | None = None
    target_train_labels: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptationTask:
    """A visible and a hidden part, and where in a suite the task stands.

    Attributes:
        visible: For the run.
        hidden: For the reward and the report.
        split: Part of the suite, for example `train` or `held-out-shifts`.
        facts: What the generator knows (shift kinds, severities, label shift); for reports and for a
            privileged critic in training, never for an actor.
        notes: What was put right in a user's model or images, in words.
        previous_head: The head that the model had before it got one for other classes, or None.
    """

    visible: VisibleTask
    hidden: HiddenTask = field(default_factory=HiddenTask)
    split: str = "own"
    facts: dict[str, float | int | str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    previous_head: nn.Linear | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The visible part's name."""
        return self.visible.name
