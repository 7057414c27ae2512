"""Task suites from data sets on the disk: a folder of `.npz` files, or a user's own two folders of images.

USPS and MNIST-M are held out by convention: they appear in the split `held-out-datasets` and nowhere else, so that
no policy is ever trained on them.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.model_check import check_model
from lepton_rl.pretrain import channel_statistics, pretrained
from lepton_rl.starting_model import StartingModel
from lepton_rl.suite import BUDGETS, PAIRS_SPLIT, SPLITS, Pair, Recipe, Suite, TaskSuite, draw_recipe, split_target
from lepton_rl.task import AdaptationTask, HiddenTask, Regime, VisibleTask

BASES = ("mnist", "fashion_mnist", "notmnist", "emnist_letters", "cifar10")
HELD_OUT = ("usps", "mnist_m")
HELD_OUT_SPLIT = "held-out-datasets"
OWN_SPLIT = "own"
MOST_IMAGES = 6000  # per set: a task uses at most 512 unlabelled target images
DIGITS = "digits"  # built in, beside the files
SAME_CLASSES = ((DIGITS, "mnist"), ("notmnist", "emnist_letters"))  # learnt from in both directions; the first ten
CHANNELS = 3  # colour is part of what makes MNIST-M another domain
SIZES = (8, 16, 28)
FEWEST = 4  # images per class of a folder
WIDTH, PRETRAIN_STEPS = 8, 300


@dataclass(kw_only=True)
class PairSuite:
    """Tasks between given domains: no shift is added, what changes is the labels, the skew and the budget.

    Attributes:
        pairs: Domains to go from and to.
        split: Name of the only split.
        width: Channels of the networks' first stage.
        pretrain_steps: Gradient steps on source data.
        budgets: Budgets of the tasks, in gradient steps.
        network: The network of all tasks; None draws one of the family for each.
    """

    pairs: tuple[Pair, ...]
    split: str
    width: int = WIDTH
    pretrain_steps: int = PRETRAIN_STEPS
    budgets: tuple[int, ...] = BUDGETS
    network: StartingModel | None = None
    _models: dict[tuple[str, str], nn.Module] = field(default_factory=dict)

    def recipe(self, split: str, index: int, regime: Regime | None = None) -> Recipe:
        """Draw task number `index` without making it; the pairs take turns."""
        if split != self.split:
            raise InputError(f"split {split!r} is unknown: expected {self.split}")
        pair = self.pairs[index % len(self.pairs)]
        drawn = draw_recipe((pair.name,), "held-out-tasks", index, regime, self.budgets)
        return replace(drawn, split=self.split, classes="all", source_shift=None, target_shifts=())

    def task(self, split: str, index: int, regime: Regime | None = None) -> AdaptationTask:
        """Make task number `index`; the same one every time."""
        return self.make(self.recipe(split, index, regime))

    def widest(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the pair that has most classes."""
        numbers = range(len(self.pairs))
        return replace(recipe, index=max(numbers, key=lambda number: self.pairs[number].source.n_classes))

    def make(self, recipe: Recipe) -> AdaptationTask:
        """Make the task of a recipe."""
        pair = self.pairs[recipe.index % len(self.pairs)]
        train, val = _dealt(pair.source)
        mean, std = self._standardisation(train)
        parts = split_target(pair.target, recipe, np.random.default_rng(recipe.seed))
        visible = VisibleTask(
            name=recipe.name,
            model=self._model(recipe.architecture, pair.source.name, train),
            n_classes=pair.target.n_classes,
            mean=mean,
            std=std,
            budget=recipe.budget,
            source_train=None if recipe.source_free else train,
            source_val=None if recipe.source_free else val,
            target_support=parts.support,
            target_probe=parts.probe,
            target_unlabelled=parts.unlabelled.without_labels(),
        )
        hidden = HiddenTask(target_eval=parts.eval, target_test=parts.test, target_train_labels=parts.unlabelled.labels)
        facts: dict[str, float | int | str] = {
            "base": recipe.base,
            "architecture": recipe.architecture,
            "label_skew": recipe.label_skew,
            "labels_per_class": recipe.labels_per_class,
            "source_free": int(recipe.source_free),
            "budget": recipe.budget,
            "seed": recipe.seed,
        }
        return AdaptationTask(visible=visible, hidden=hidden, split=self.split, facts=facts)

    def _standardisation(self, train: Domain) -> tuple[np.ndarray, np.ndarray]:
        stated = None if self.network is None else self.network.standardisation
        if stated is None:
            return channel_statistics(train.images)
        return np.asarray(stated[0]), np.asarray(stated[1])

    def _model(self, architecture: str, source: str, train: Domain) -> nn.Module:
        key = (architecture if self.network is None else self.network.name, source)
        if key not in self._models:
            if self.network is None:
                model: nn.Module = pretrained(architecture, train, width=self.width, steps=self.pretrain_steps)
            else:
                model = self.network.load() if self.network.comes_trained else self.network.trained_on(train)
                _check_outputs(model, train)
            self._models[key] = model
        return self._models[key]


class ShiftedPairs(TaskSuite):
    """Tasks to learn from between sets with the same classes: they have a shift less than others, and may have none.

    Its only split is `PAIRS_SPLIT`.
    """

    def recipe(self, split: str, index: int, regime: Regime | None = None) -> Recipe:
        """Draw task number `index` without making it."""
        if split != PAIRS_SPLIT:
            raise InputError(f"split {split!r} is unknown: expected {PAIRS_SPLIT}")
        drawn = draw_recipe(tuple(sorted(self._bases)), "train", index, regime, self.budgets)
        return replace(drawn, split=split, target_shifts=drawn.target_shifts[1:])


@dataclass(frozen=True, kw_only=True)
class DataSuite:
    """Tasks of a folder of data sets: shifted within one set, and across sets in `train-pairs`, `held-out-datasets`."""

    within: TaskSuite
    pairs: ShiftedPairs | None
    across: PairSuite | None

    def recipe(self, split: str, index: int, regime: Regime | None = None) -> Recipe:
        """Draw task number `index` of a split without making it."""
        return self._part(split).recipe(split, index, regime)

    def task(self, split: str, index: int, regime: Regime | None = None) -> AdaptationTask:
        """Make task number `index` of a split; the same one every time."""
        return self._part(split).task(split, index, regime)

    def make(self, recipe: Recipe) -> AdaptationTask:
        """Make the task of a recipe."""
        return self._part(recipe.split).make(recipe)

    def widest(self, recipe: Recipe) -> Recipe:
        """Return a recipe like the given one whose task has as many classes as any."""
        return self._part(recipe.split).widest(recipe)

    def _part(self, split: str) -> TaskSuite | PairSuite:
        part = {PAIRS_SPLIT: self.pairs, HELD_OUT_SPLIT: self.across}.get(split, self.within)
        if part is None:
            needed = "mnist.npz, or notmnist.npz and emnist_letters.npz"
            if split == HELD_OUT_SPLIT:
                needed = f"mnist.npz and one of {', '.join(HELD_OUT)}"
            raise InputError(f"split {split!r} needs {needed}: add them to the data folder")
        return part


def data_folder(named: str | Path | None = None) -> Path:
    """Return the folder of the data sets: the one that is named, else `LEPTON_DATA`.

    Raises:
        InputError: If there is none, or it holds none of the known files.
    """
    name = named or os.environ.get("LEPTON_DATA")
    if not name:
        raise InputError("suite 'data' has no folder: expected one with .npz files; give --data, or set LEPTON_DATA")
    folder = Path(name)
    if not any((folder / f"{base}.npz").is_file() for base in BASES):
        expected = ", ".join(f"{base}.npz" for base in (*BASES, *HELD_OUT))
        raise InputError(f"data folder {str(folder)!r} holds no data set: expected one or more of {expected}")
    return folder


def data_suite(folder: Path, size: int = 16) -> DataSuite:
    """Return the suite of the data sets in a folder.

    Args:
        folder: With files of the names in `BASES` and `HELD_OUT`; those that are missing are left out.
        size: Side in pixels to which all images are brought, 8, 16 or 28.

    Raises:
        InputError: If the size is another one, or the folder holds no data set.
    """
    if size not in SIZES:
        raise InputError(f"size {size} is out of range: expected one of {', '.join(map(str, SIZES))}")
    folder = data_folder(folder)
    bases: dict[str, Callable[[], Domain]] = {
        base: partial(read_set, folder, base, size) for base in BASES if (folder / f"{base}.npz").is_file()
    }
    bases[DIGITS] = partial(read_digits, size)
    within = TaskSuite(f"data{size}", bases, width=WIDTH, pretrain_steps=PRETRAIN_STEPS)
    alike = _learning_pairs(bases)
    pairs = ShiftedPairs(f"data{size}-pairs", alike, width=WIDTH, pretrain_steps=PRETRAIN_STEPS) if alike else None
    return DataSuite(within=within, pairs=pairs, across=_held_out_pairs(folder, size))


def _held_out_pairs(folder: Path, size: int) -> PairSuite | None:
    held_out = [name for name in HELD_OUT if (folder / f"{name}.npz").is_file()]
    if not held_out or not (folder / "mnist.npz").is_file():
        return None
    mnist, *others = (read_set(folder, name, size) for name in ("mnist", *held_out))
    pairs = [Pair(source=mnist, target=other) for other in others]
    pairs += [Pair(source=other, target=mnist) for other in others]
    return _across(tuple(pairs), HELD_OUT_SPLIT)


def _learning_pairs(bases: Mapping[str, Callable[[], Domain]]) -> dict[str, Callable[[], Pair]]:
    directions = [direction for one, other in SAME_CLASSES for direction in ((one, other), (other, one))]
    return {
        f"{source}-{target}": partial(_pair, bases[source], bases[target])
        for source, target in directions
        if source in bases and target in bases
    }


def _pair(source: Callable[[], Domain], target: Callable[[], Domain]) -> Pair:
    """Return two sets with the classes that both have."""
    one, other = source(), target()
    n = min(one.n_classes, other.n_classes)
    return Pair(source=_first_classes(one, n), target=_first_classes(other, n))


def _first_classes(domain: Domain, n: int) -> Domain:
    return replace(domain.take(domain.labels < n), classes=domain.classes[:n])


def read_set(folder: Path, name: str, size: int) -> Domain:
    """Read a data set, at most `MOST_IMAGES` of it, in the suite's size and channels."""
    domain = Domain.from_npz(folder / f"{name}.npz").labelled()
    order = np.random.default_rng(zlib.crc32(name.encode())).permutation(len(domain))[:MOST_IMAGES]
    return domain.take(order).resized(size, size).with_channels(CHANNELS).renamed(name)


def read_digits(size: int) -> Domain:
    """Return scikit-learn's digits in the suite's size and channels."""
    return Domain.digits().resized(size, size).with_channels(CHANNELS)


def folder_suite(
    source: Path,
    targets: Sequence[Path],
    size: int = 28,
    network: StartingModel | None = None,
    budgets: tuple[int, ...] = BUDGETS,
) -> PairSuite:
    """Return a suite of folders of images, one sub-folder per class in each.

    Args:
        source: What the network is trained on.
        targets: What it is adapted to, one after the other; their labels are hidden from the arms and used to report.
        size: Side in pixels to which all images are brought.
        network: The network of all tasks; None draws one of the family for each.
        budgets: Budgets to draw from, in gradient steps.

    Raises:
        InputError: If a folder is not usable, or has too few labelled images.
    """
    known = Domain.from_folder(source, size=size).labelled()
    if network is not None:
        known = known.with_channels(network.channels(known.images.shape[1]))
    _check_counts(known, source)
    pairs = []
    for number, target in enumerate(targets, start=1):
        wanted = Domain.from_folder(target, size=size, channels=known.images.shape[1], classes=known.classes).labelled()
        _check_counts(wanted, target)
        # Numbers, not names of folders: tasks are drawn from them, and must not depend on where a folder lies.
        pairs.append(Pair(source=known.renamed("source"), target=wanted.renamed(f"target{number}")))
    return replace(_across(tuple(pairs), OWN_SPLIT), network=network, budgets=budgets)


def _check_counts(domain: Domain, folder: Path) -> None:
    counts = np.bincount(domain.labels, minlength=domain.n_classes)
    if domain.n_classes < 2 or counts.min() < FEWEST:
        raise InputError(
            f"folder {str(folder)!r} has {counts.tolist()} labelled images of {', '.join(domain.classes)}: expected "
            f"two classes or more with {FEWEST} images each; add some"
        )


def _check_outputs(model: nn.Module, train: Domain) -> None:
    outputs = check_model(model, *train.images.shape[1:]).n_classes
    if outputs != train.n_classes:
        raise InputError(
            f"the model has {outputs} outputs and the source {train.n_classes} classes: expected as many; give a model "
            "for these classes"
        )


@dataclass(frozen=True, kw_only=True)
class SuiteSource:
    """A suite by name; worker processes are sent this and make the suite themselves.

    Attributes:
        name: `digits` or `data`.
        data: Folder of the suite `data`; None = `LEPTON_DATA`.
        size: Side of its images in pixels, one of `SIZES`.
    """

    name: str = "digits"
    data: Path | None = None
    size: int = 16

    def __call__(self) -> Suite:
        """Make the suite.

        Raises:
            InputError: If the name is unknown, or the folder is not usable.
        """
        if self.name == "data":
            return data_suite(data_folder(self.data), self.size)
        if self.name != "digits":
            raise InputError(f"suite {self.name!r} is unknown: expected digits or data")
        return TaskSuite.digits()


def splits_of(suite: str) -> tuple[str, ...]:
    """Return the splits that a suite has, by the suite's name."""
    return {"data": (*SPLITS, PAIRS_SPLIT, HELD_OUT_SPLIT), "folders": (OWN_SPLIT,)}.get(suite, SPLITS)


def check_split(suite: str, split: str) -> None:
    """Refuse a split to learn from that a suite does not have.

    Raises:
        InputError: If it does not have it.
    """
    if split not in splits_of(suite):
        raise InputError(f"suite {suite!r} has no split {split!r}: expected train; give --suite data")


def contents(folder: Path) -> str:
    """Return a hash of what lies in a folder of data: names and bytes."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _across(pairs: tuple[Pair, ...], split: str) -> PairSuite:
    return PairSuite(pairs=pairs, split=split, width=WIDTH, pretrain_steps=PRETRAIN_STEPS)


def _dealt(source: Domain) -> tuple[Domain, Domain]:
    order = np.random.default_rng(zlib.crc32(source.name.encode())).permutation(len(source))
    cut = len(order) * 4 // 5
    return source.take(order[:cut]), source.take(order[cut:])
