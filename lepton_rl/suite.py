"""Distributions over adaptation tasks, with training and held-out parts.

Task number i of a split is always the same task: it is drawn from a seed made of the suite's name, the split
and i. Held-out splits never share a shift kind, an architecture or an image with what they hold out.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from lepton_rl.domain import Domain
from lepton_rl.errors import InputError
from lepton_rl.models import HELD_OUT_ARCHITECTURES, TRAIN_ARCHITECTURES, StagedNet
from lepton_rl.pretrain import channel_statistics, pretrained
from lepton_rl.shifts import HELD_OUT_KINDS, TRAIN_KINDS, Shift, compose
from lepton_rl.task import REGIMES, AdaptationTask, HiddenTask, Regime, VisibleTask

PAIRS_SPLIT = "train-pairs"  # of suites that have sets with the same classes
LEARNING_SPLITS = ("train", PAIRS_SPLIT, "validation")  # nothing is reported of them
SPLITS = ("train", "validation", "held-out-tasks", "held-out-shifts", "held-out-architecture", "longer-budget")
LABELS_PER_CLASS = (1, 2, 3, 5, 10)
BUDGETS = (20, 40, 80, 160, 320)  # people wait for seconds or for an hour
LONG_BUDGET = 640
CLASS_PARTS = ("all", "lower", "upper")  # every class, or one half of them: networks differ in what they can tell apart
SOURCE_SHIFTS = 6  # shifted sources per base set; few, because each is a network to train
EVAL_IMAGES = 256
TEST_IMAGES = 1024  # read once, so that many are cheap: with 256 of them, a point of accuracy is within the noise
MAX_UNLABELLED = 512


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a task is made of, before any image is touched; two equal recipes make the same task.

    Attributes:
        split: Part of the suite.
        index: Number within the split.
        base: Name of the base set.
        classes: Which of its classes, one of `CLASS_PARTS`.
        architecture: Name of the network.
        source_shift: Shift of the source domain, or None.
        target_shifts: Shifts of the target domain, applied in order.
        label_skew: 0 = the target's classes are balanced; larger = long-tailed, exponent of a power law.
        labels_per_class: Labelled target images per class; 0 = label-free.
        label_noise: Share of wrong labels among them.
        source_free: Whether source data are withheld.
        budget: Gradient steps.
        seed: Of everything drawn while the task is made.
    """

    split: str
    index: int
    base: str
    classes: str
    architecture: str
    source_shift: Shift | None
    target_shifts: tuple[Shift, ...]
    label_skew: float
    labels_per_class: int
    label_noise: float
    source_free: bool
    budget: int
    seed: int

    @property
    def name(self) -> str:
        """For people and rows."""
        return f"{self.base}/{self.split}/{self.index:04d}"


def draw_recipe(
    bases: tuple[str, ...], split: str, index: int, regime: Regime | None, budgets: tuple[int, ...] = BUDGETS
) -> Recipe:
    """Draw task number `index` of a split.

    Args:
        bases: Names of the base sets to choose from.
        split: One of `SPLITS`.
        index: 0, 1, 2, ...
        regime: Fix the label regime, or None to draw it.
        budgets: Budgets to choose from; `longer-budget` has its own.

    Raises:
        InputError: If the split or the regime is unknown.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown: expected one of {', '.join(SPLITS)}")
    if regime is not None and regime not in REGIMES:
        raise InputError(f"regime {regime!r} is unknown: expected one of {', '.join(REGIMES)}")
    entropy = (zlib.crc32(f"{','.join(bases)}|{split}".encode()), index)
    rng = np.random.default_rng(np.random.SeedSequence(entropy))
    base = str(rng.choice(bases))
    architectures = HELD_OUT_ARCHITECTURES if split == "held-out-architecture" else TRAIN_ARCHITECTURES
    few = bool(rng.random() < 0.5) if regime is None else regime == "few-label"
    return Recipe(
        split=split,
        index=index,
        base=base,
        classes=str(rng.choice(CLASS_PARTS, p=(0.8, 0.1, 0.1))),
        architecture=str(rng.choice(architectures)),
        source_shift=_source_shift(base, int(rng.integers(SOURCE_SHIFTS))) if rng.random() < 0.4 else None,
        target_shifts=_target_shifts(rng, split),
        label_skew=float(rng.uniform(0.5, 1.5)) if rng.random() < 0.35 else 0.0,
        labels_per_class=int(rng.choice(LABELS_PER_CLASS)) * few,
        label_noise=float(rng.choice((0.1, 0.2))) if few and rng.random() < 0.15 else 0.0,
        source_free=bool(rng.random() < 0.25),
        budget=LONG_BUDGET if split == "longer-budget" else int(rng.choice(budgets)),
        seed=int(rng.integers(2**31)),
    )


def _target_shifts(rng: np.random.Generator, split: str) -> tuple[Shift, ...]:
    n = int(rng.choice((1, 2, 3), p=(0.4, 0.4, 0.2)))
    shifts = [_shift(rng, TRAIN_KINDS, 0.1, 1.0) for _ in range(n)]
    if split == "held-out-shifts":
        shifts[0] = _shift(rng, HELD_OUT_KINDS, 0.3, 1.0)
    return tuple(shifts)


def _source_shift(base: str, number: int) -> Shift:
    """Return one of a base set's few source shifts."""
    return _shift(np.random.default_rng((zlib.crc32(base.encode()), number)), TRAIN_KINDS, 0.2, 0.6)


def _shift(rng: np.random.Generator, kinds: tuple[str, ...], low: float, high: float) -> Shift:
    kind, severity = str(rng.choice(kinds)), round(float(rng.uniform(low, high)), 1)
    return Shift(kind=kind, severity=severity, seed=int(rng.integers(2**31)))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two domains with the same classes.

    Attributes:
        source: What the network is trained on.
        target: What it is adapted to.
    """

    source: Domain
    target: Domain

    @property
    def name(self) -> str:
        """For people and rows."""
        return f"{self.source.name}-{self.target.name}"


Bases = Mapping[str, Callable[[], Domain | Pair]]


class Suite(Protocol):
    """Anything that makes task number `index` of a split, the same one every time."""

    def recipe(self, split: str, index: int, regime: Regime | None = None) -> Recipe:
        """Draw a task without making it."""
        ...

    def make(self, recipe: Recipe) -> AdaptationTask:
        """Make the task of a recipe."""
        ...

    def task(self, split: str, index: int, regime: Regime | None = None) -> AdaptationTask:
        """Draw and make a task."""
        ...

    def widest(self, recipe: Recipe) -> Recipe:
        """Return a recipe like the given one whose task has as many classes as any: the measure of a fleet."""
        ...


class TaskSuite:
    """Tasks made from base sets by shifting, splitting and withholding.

    Args:
        name: Of the suite.
        bases: For each base set, or pair of sets, a function that loads it; called when first needed.
        width: Channels of the networks' first stage.
        pretrain_steps: Gradient steps on source data.
        budgets: Budgets of its tasks, in gradient steps.
    """

    def __init__(
        self,
        name: str,
        bases: Bases,
        *,
        width: int = 8,
        pretrain_steps: int = 300,
        budgets: tuple[int, ...] = BUDGETS,
    ) -> None:
        self.name = name
        self.budgets = budgets
        self.width, self.pretrain_steps = width, pretrain_steps
        self._bases = bases
        self._loaded: dict[str, tuple[Domain, Domain]] = {}
        self._sources: dict[_SourceKey, _Source] = {}
        self._models: dict[tuple[str, _SourceKey], StagedNet] = {}

    @classmethod
    def digits(cls) -> "TaskSuite":
        """Return the built-in suite: scikit-learn's 1797 scanned digits, 8x8, in minutes on a laptop."""
        return cls("digits", {"digits": Domain.digits})

    def recipe(self, split: str, index: int, regime: Regime | None = None) -> Recipe:
        """Draw task number `index` of a split without making it."""
        return draw_recipe(tuple(sorted(self._bases)), split, index, regime, self.budgets)

    def task(self, split: str, index: int, regime: Regime | None = None) -> AdaptationTask:
        """Make task number `index` of a split; the same one every time."""
        return self.make(self.recipe(split, index, regime))

    def widest(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the base set that has most classes, and all of them."""
        base = max(sorted(self._bases), key=lambda name: self._halves(name)[0].n_classes)
        return replace(recipe, base=base, classes="all", source_shift=None)

    def make(self, recipe: Recipe) -> AdaptationTask:
        """Make the task of a recipe."""
        key: _SourceKey = (recipe.base, recipe.classes, recipe.source_shift)
        source = self._source(key)
        rng = np.random.default_rng(recipe.seed)
        target = compose(class_part(self._halves(recipe.base)[1], recipe.classes), recipe.target_shifts)
        parts = split_target(target, recipe, rng)
        visible = VisibleTask(
            name=recipe.name,
            model=self._model(recipe.architecture, key),
            n_classes=target.n_classes,
            mean=source.mean,
            std=source.std,
            budget=recipe.budget,
            source_train=None if recipe.source_free else source.train,
            source_val=None if recipe.source_free else source.val,
            target_support=parts.support,
            target_probe=parts.probe,
            target_unlabelled=parts.unlabelled.without_labels(),
        )
        hidden = HiddenTask(target_eval=parts.eval, target_test=parts.test, target_train_labels=parts.unlabelled.labels)
        return AdaptationTask(visible=visible, hidden=hidden, split=recipe.split, facts=_facts(recipe))

    def _halves(self, base: str) -> tuple[Domain, Domain]:
        """Return the images of source and of target."""
        if base not in self._loaded:
            self._loaded[base] = _halved(self._bases[base](), base)
        return self._loaded[base]

    def _source(self, key: "_SourceKey") -> "_Source":
        if key not in self._sources:
            base, classes, shift = key
            half = class_part(self._halves(base)[0], classes)
            shifted = half if shift is None else shift(half)
            cut = len(shifted) * 4 // 5
            train, val = shifted.take(np.arange(cut)), shifted.take(np.arange(cut, len(shifted)))
            mean, std = channel_statistics(train.images)
            self._sources[key] = _Source(train=train, val=val, mean=mean, std=std)
        return self._sources[key]

    def _model(self, architecture: str, key: "_SourceKey") -> StagedNet:
        if (architecture, key) not in self._models:
            source = self._source(key).train
            self._models[architecture, key] = pretrained(
                architecture, source, width=self.width, steps=self.pretrain_steps
            )
        return self._models[architecture, key]


_SourceKey = tuple[str, str, Shift | None]  # base set, part of its classes, shift


def _halved(given: Domain | Pair, base: str) -> tuple[Domain, Domain]:
    """Deal a base set's images onto source and target, once and for all: no image is in both."""
    if isinstance(given, Pair):
        return given.source, given.target
    order = np.random.default_rng(zlib.crc32(base.encode())).permutation(len(given))
    cut = len(given) * 2 // 5
    return given.take(order[:cut]), given.take(order[cut:])


def class_part(domain: Domain, part: str) -> Domain:
    """Return the images of one half of the classes, renumbered from 0; `all` returns the domain as it is."""
    if part == "all":
        return domain
    half = domain.n_classes // 2
    first, last = (0, half) if part == "lower" else (half, domain.n_classes)
    chosen = domain.take(np.flatnonzero((domain.labels >= first) & (domain.labels < last)))
    return replace(chosen, labels=chosen.labels - first, classes=domain.classes[first:last])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Source:
    """A source domain, split and measured once; tasks share it, and so do the lanes of a fleet."""

    train: Domain
    val: Domain
    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetParts:
    """A target domain dealt onto its splits; no image is in two of them."""

    support: Domain | None
    probe: Domain | None
    unlabelled: Domain
    eval: Domain
    test: Domain | None


def split_target(target: Domain, recipe: Recipe, rng: np.random.Generator) -> TargetParts:
    """Deal a labelled target domain onto the splits of a task.

    Label skew thins the classes of everything but the few labelled images: people label the same number per
    class, whatever the domain's own frequencies are. Tasks to learn from have no target_test: its images are in
    their target_eval, because what a policy is paid by should be luck as little as possible.
    """
    order = rng.permutation(len(target))
    few = _per_class(target, order, recipe.labels_per_class)
    rest = np.setdiff1d(order, few, assume_unique=True)
    rest = _thinned(target, rng.permutation(rest), recipe.label_skew, rng)
    n = min(EVAL_IMAGES, len(rest) // 4)
    unlabelled, left = rest[2 * n : 2 * n + MAX_UNLABELLED], rest[2 * n + MAX_UNLABELLED :]
    paid, test = rest[:n], np.concatenate([rest[n : 2 * n], left[: TEST_IMAGES - n]])
    learning = recipe.split in LEARNING_SPLITS
    support, probe = _support_and_probe(target, few, recipe, rng)
    return TargetParts(
        support=support,
        probe=probe,
        eval=target.take(np.concatenate([paid, test]) if learning else paid),
        test=None if learning else target.take(test),
        unlabelled=target.take(unlabelled),
    )


def _per_class(domain: Domain, order: np.ndarray, n: int) -> np.ndarray:
    """Return the first n images of every class in the given order."""
    labels = domain.labels[order]
    return np.concatenate([order[labels == k][:n] for k in range(domain.n_classes)])


def _thinned(domain: Domain, order: np.ndarray, skew: float, rng: np.random.Generator) -> np.ndarray:
    """Make the classes long-tailed: class of rank r keeps a share (r + 1)^-skew, ranks drawn at random."""
    ranks = rng.permutation(domain.n_classes)
    keep = (1.0 + ranks[domain.labels[order]]) ** -skew
    kept: np.ndarray = order[rng.random(len(order)) < keep]
    return kept


def _support_and_probe(
    target: Domain, few: np.ndarray, recipe: Recipe, rng: np.random.Generator
) -> tuple[Domain | None, Domain | None]:
    """Split the few labels in two thirds to train on and one third to validate on; a single one is trained on."""
    if len(few) == 0:
        return None, None
    labels = target.labels[few]
    wrong = rng.random(len(few)) < recipe.label_noise
    labels = np.where(wrong, rng.integers(0, target.n_classes, len(few)), labels)
    labelled = replace(target.take(few), labels=labels)
    n_probe = len(few) // 3
    order = rng.permutation(len(few))
    probe = labelled.take(order[:n_probe]) if n_probe else None
    return labelled.take(order[n_probe:]), probe


def _facts(recipe: Recipe) -> dict[str, float | int | str]:
    shifts = [s for s in (recipe.source_shift, *recipe.target_shifts) if s is not None]
    return {
        "base": recipe.base,
        "classes": recipe.classes,
        "architecture": recipe.architecture,
        "shifts": "+".join(f"{s.kind}{s.severity}" for s in shifts),
        "label_skew": recipe.label_skew,
        "label_noise": recipe.label_noise,
        "labels_per_class": recipe.labels_per_class,
        "source_free": int(recipe.source_free),
        "budget": recipe.budget,
        "seed": recipe.seed,
    }
