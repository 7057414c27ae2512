"""What can be seen of a run: the observation, from visible splits only.

Every signal is scale-free, clipped to its range and 0 when its data are absent (availability flags tell). The
same vector serves any architecture, class count and image size. `SIGNALS` is the table of names, ranges,
formulas and sources; the environment's documentation and the policy file's schema are made from it.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lepton_rl import discrepancy, validators
from lepton_rl.controls import LEARNING_RATE_RANGE, LOSS_TERMS, WEIGHT_RANGE, Controls, cosine
from lepton_rl.engine import Engine, TrainStats
from lepton_rl.losses import cross_entropy
from lepton_rl.objective import TERMS
from lepton_rl.stages import N_GROUPS, N_STAGES
from lepton_rl.task import VisibleTask
from lepton_rl.views import Views

GROUP_NAMES = (*(f"stage{i + 1}" for i in range(N_STAGES)), "head")


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One entry of the observation: its name, closed range, formula and source."""

    name: str
    low: float
    high: float
    formula: str
    group: str


def _table() -> tuple[Signal, ...]:
    rows: list[Signal] = []

    def add(group: str, name: str, low: float, high: float, formula: str) -> None:
        rows.append(Signal(name=name, low=low, high=high, formula=formula, group=group))

    add("progress", "progress", 0, 1, "gradient steps done / budget")
    add("progress", "schedule", 0, 1, "cosine factor of the learning rate (Loshchilov and Hutter 2017)")
    add("knobs", "learning_rate", 0, 1, "log position of the learning rate in its range")
    add("knobs", "unfrozen_stages", 0, 1, "unfrozen stages / 4")
    for term in LOSS_TERMS:
        add("knobs", f"weight_{term}", 0, 1, "0 when off, else 0.1 + 0.9 x log position of the weight in its range")
    add("knobs", "augmentation", 0, 1, "strength of the augmentation")
    add("availability", "has_source", 0, 1, "1 with source data")
    add("availability", "has_labels", 0, 1, "1 with labelled target images")
    add("availability", "has_probe", 0, 1, "1 with labelled target images to validate on")
    for name, low, high, formula in _MEASURED:
        add("scores", name, low, high, formula)
    for name in _FOLLOWED:
        add("change", f"{name}_since_last", -1, 1, "change since the last decision")
        add("change", f"{name}_since_start", -1, 1, "change since the start of the run")
    for term in TERMS:
        add("optimisation", f"loss_{term}", 0, 2, "mean loss of the last window, x / (1 + x/2)")
        add("optimisation", f"slope_{term}", -1, 1, "second half of the window minus first half, tanh")
    for group in GROUP_NAMES:
        add("optimisation", f"gradient_{group}", 0, 1, "(log10(|gradient| / |weights|) + 6) / 8")
        add("optimisation", f"distance_{group}", 0, 1, "tanh(|weights - pretrained| / |pretrained|)")
    add("optimisation", "gradient_cosine", -1, 1, "cosine of head gradients: source labels, target pseudo-labels")
    add("facts", "labels_per_class", 0, 2, "log10(1 + labelled target images per class)")
    add("facts", "classes", 0, 2, "log10(classes) / 2")
    add("facts", "parameters", 0, 2, "log10(parameters) / 5")
    add("facts", "target_images", 0, 2, "log10(target images) / 4")
    add("facts", "budget", 0, 2, "log10(budget) / 3")
    return tuple(rows)


_MEASURED = (
    ("source_accuracy", 0, 1, "accuracy on source_val under source statistics"),
    ("source_loss", 0, 2, "cross-entropy on source_val / log K, x / (1 + x/2)"),
    ("probe_accuracy", 0, 1, "accuracy on target_probe"),
    ("probe_loss", 0, 2, "cross-entropy on target_probe / log K, x / (1 + x/2)"),
    ("entropy", 0, 1, "mean entropy of target predictions / log K"),
    ("marginal_entropy", 0, 1, "1 - KL(mean target prediction, class prior) / log K; balanced unless known"),
    ("confidence", 0, 1, "mean largest target probability"),
    ("nuclear_norm", 0, 1, "batch nuclear norm of target predictions (BNM, Cui et al. 2020)"),
    ("density", 0, 1, "soft neighbourhood density of target features (Saito et al. 2021)"),
    (
        "prior_distance",
        0,
        1,
        "Jensen-Shannon divergence of the target marginal from the known or source prior, bits",
    ),
    ("marginal_drift", 0, 1, "Jensen-Shannon divergence of the target marginal from its start, bits"),
    ("agreement_with_start", 0, 1, "share of target predictions equal to those at the start"),
    ("agreement_with_last", 0, 1, "share of target predictions equal to those at the last decision"),
    ("coral", 0, 1, "scale-free CORAL distance of features (Sun and Saenko 2016)"),
    ("mmd", -1, 1, "unbiased MMD^2 over a source split-half, tanh(x / 10) (Gretton et al. 2012)"),
    ("a_distance", 0, 1, "proxy A-distance / 2 (Ben-David et al. 2007)"),
    ("mean_shift", 0, 1, "distance of feature means / (1 + distance)"),
    ("variance_shift", 0, 1, "mean |log variance ratio| of features / (1 + mean)"),
)
_FOLLOWED = (
    "source_accuracy",
    "probe_accuracy",
    "probe_loss",
    "entropy",
    "marginal_entropy",
    "confidence",
    "nuclear_norm",
    "density",
    "coral",
    "mmd",
)

SIGNALS = _table()
SIGNAL_NAMES = tuple(signal.name for signal in SIGNALS)
MEASURED_NAMES = tuple(name for name, *_ in _MEASURED)  # what `measure` gives


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What earlier decisions left behind, per lane.

    Attributes:
        start_logits: Target view at the start, `[lanes, b, k]`.
        last_logits: Target view at the last decision.
        start: Measured signals at the start, `[lanes, 18]`.
        last: Measured signals at the last decision.
        stats: Of the last window, or None before the first.
    """

    start_logits: Tensor
    last_logits: Tensor
    start: Tensor
    last: Tensor
    terms: Tensor
    slopes: Tensor
    gradient_norm: Tensor

    @classmethod
    def blank(cls, engine: Engine, views: Views) -> "Memory":
        """Return the memory of lanes that have not started."""
        zeros = torch.zeros(engine.lanes, len(TERMS), device=engine.device, dtype=engine.dtype)
        measured = torch.zeros(engine.lanes, len(_MEASURED), device=engine.device, dtype=engine.dtype)
        logits = views.target.logits
        return cls(
            start_logits=logits,
            last_logits=logits,
            start=measured,
            last=measured,
            terms=zeros,
            slopes=zeros,
            gradient_norm=torch.zeros(engine.lanes, N_GROUPS, device=engine.device, dtype=engine.dtype),
        )

    def begin(self, lanes: Tensor, views: Views, measured: Tensor) -> "Memory":
        """Forget the past of marked lanes, bool `[lanes]`: the present is their start."""

        def put(old: Tensor, new: Tensor) -> Tensor:
            return torch.where(lanes.reshape(-1, *[1] * (new.dim() - 1)), new, old)

        zeros = torch.zeros_like(self.terms)
        return Memory(
            start_logits=put(self.start_logits, views.target.logits),
            last_logits=put(self.last_logits, views.target.logits),
            start=put(self.start, measured),
            last=put(self.last, measured),
            terms=put(self.terms, zeros),
            slopes=put(self.slopes, zeros),
            gradient_norm=put(self.gradient_norm, torch.zeros_like(self.gradient_norm)),
        )

    def advance(self, views: Views, measured: Tensor) -> "Memory":
        """Make the present the last decision."""
        return replace(self, last_logits=views.target.logits, last=measured)

    def after(self, stats: TrainStats) -> "Memory":
        """Keep what the last window looked like from inside."""
        return replace(self, terms=stats.terms, slopes=stats.slopes, gradient_norm=stats.gradient_norm)


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What is known of a lane's task beforehand, as numbers."""

    class_prior: list[float] | None
    labels_per_class: float
    parameters: int
    target_images: int

    @classmethod
    def of(cls, task: VisibleTask) -> "TaskFacts":
        """Read the facts of a task."""
        labelled = sum(len(d) for d in (task.target_support, task.target_probe) if d is not None)
        prior = None
        if task.source_train is not None:
            counts = [float((task.source_train.labels == k).sum()) for k in range(task.n_classes)]
            prior = [count / max(1.0, sum(counts)) for count in counts]
        return cls(
            class_prior=prior if task.class_prior is None else task.class_prior.tolist(),
            labels_per_class=labelled / task.n_classes,
            parameters=sum(p.numel() for p in task.model.parameters()),
            target_images=len(task.target_unlabelled),
        )


def measure(engine: Engine, views: Views, memory: Memory, facts: list[TaskFacts]) -> Tensor:
    """Compute the measured signals, `[lanes, 18]` in the order of their table; NaN where data are absent."""
    target, n_classes = views.target, engine.n_classes
    log_k = n_classes.to(engine.dtype).clamp(min=2).log()
    source = engine.length["source_val"] > 0
    probe = engine.length["target_probe"] > 0
    uniform = [1.0 / engine.width_of_head] * engine.width_of_head
    priors = torch.tensor(
        [_pad(f.class_prior, engine.width_of_head) or uniform for f in facts],
        device=engine.device,
        dtype=engine.dtype,
    )
    start_marginal = memory.start_logits.softmax(-1).mean(1)
    values = {
        "source_accuracy": validators.source_accuracy(
            source_logits=views.source.logits, source_labels=views.source.labels
        ),
        "source_loss": _squash(cross_entropy(views.source.logits, views.source.labels) / log_k),
        "probe_accuracy": validators.probe_accuracy(probe_logits=views.probe.logits, probe_labels=views.probe.labels),
        "probe_loss": _squash(cross_entropy(views.probe.logits, views.probe.labels) / log_k),
        "entropy": -validators.negative_entropy(target_logits=target.logits, n_classes=n_classes),
        "marginal_entropy": validators.information_maximisation(
            target_logits=target.logits, n_classes=n_classes, log_prior=engine.log_prior[:, None]
        )
        - validators.negative_entropy(target_logits=target.logits, n_classes=n_classes),
        "confidence": validators.mean_confidence(target_logits=target.logits),
        "nuclear_norm": validators.nuclear_norm(target_logits=target.logits, n_classes=n_classes),
        "density": validators.soft_neighbourhood_density(target_features=target.features),
        "prior_distance": -validators.prior_match(target_logits=target.logits, source_prior=priors),
        "marginal_drift": -validators.prior_match(target_logits=target.logits, source_prior=start_marginal),
        "agreement_with_start": validators.agreement(target_logits=target.logits, reference_logits=memory.start_logits),
        "agreement_with_last": validators.agreement(target_logits=target.logits, reference_logits=memory.last_logits),
        "coral": discrepancy.coral_distance(views.source.features, target.features),
        "mmd": torch.tanh(discrepancy.mmd2_ratio(views.source.features, target.features) / 10),
        "a_distance": discrepancy.proxy_a_distance(views.source.features, target.features) / 2,
        "mean_shift": _ratio(discrepancy.mean_shift(views.source.features, target.features)),
        "variance_shift": _ratio(discrepancy.variance_shift(views.source.features, target.features)),
    }
    present = dict.fromkeys(_NEEDS_SOURCE, source) | dict.fromkeys(("probe_accuracy", "probe_loss"), probe)
    columns = [
        torch.where(present[name], values[name], torch.zeros_like(log_k)) if name in present else values[name]
        for name, *_ in _MEASURED
    ]
    return torch.stack([column.to(engine.dtype) for column in columns], dim=1).nan_to_num(0.0, 0.0, 0.0)


_NEEDS_SOURCE = (
    "source_accuracy",
    "source_loss",
    "prior_distance",
    "coral",
    "mmd",
    "a_distance",
    "mean_shift",
    "variance_shift",
)


def observe(
    engine: Engine, views: Views, measured: Tensor, memory: Memory, controls: Controls, facts: list[TaskFacts]
) -> Tensor:
    """Assemble the observation, float32 `[lanes, len(SIGNALS)]`, inside the declared ranges."""
    size, moved = engine.weight_norms()
    by_name = {name: measured[:, i] for i, (name, *_) in enumerate(_MEASURED)}
    index = {name: i for i, (name, *_) in enumerate(_MEASURED)}
    values: dict[str, Tensor] = {
        "progress": engine.step_count / engine.budget,
        "schedule": cosine(engine.step_count, engine.budget),
        "learning_rate": _log_position(controls.learning_rate, LEARNING_RATE_RANGE),
        "unfrozen_stages": controls.unfrozen_stages / N_STAGES,
        "augmentation": controls.augmentation,
        "has_source": engine.length["source_val"] > 0,
        "has_labels": engine.length["target_support"] > 0,
        "has_probe": engine.length["target_probe"] > 0,
        **by_name,
        "gradient_cosine": _head_gradient_cosine(engine, views),
        "budget": engine.budget.log10() / 3,
        "classes": engine.n_classes.log10() / 2,
    }
    for i, term in enumerate(LOSS_TERMS):
        weight = controls.weights[:, i]
        on = 0.1 + 0.9 * _log_position(weight.clamp(min=WEIGHT_RANGE[0]), WEIGHT_RANGE)
        values[f"weight_{term}"] = torch.where(weight > 0, on, torch.zeros_like(on))
    for name in _FOLLOWED:
        values[f"{name}_since_last"] = measured[:, index[name]] - memory.last[:, index[name]]
        values[f"{name}_since_start"] = measured[:, index[name]] - memory.start[:, index[name]]
    for i, term in enumerate(TERMS):
        values[f"loss_{term}"] = _squash(memory.terms[:, i])
        values[f"slope_{term}"] = torch.tanh(memory.slopes[:, i])
    for i, group in enumerate(GROUP_NAMES):
        ratio = memory.gradient_norm[:, i] / size[:, i].clamp(min=1e-12)
        values[f"gradient_{group}"] = (ratio.clamp(min=1e-6).log10() + 6) / 8
        values[f"distance_{group}"] = torch.tanh(moved[:, i] / size[:, i].clamp(min=1e-12))
    for name, number in (
        ("labels_per_class", [math.log10(1 + f.labels_per_class) for f in facts]),
        ("parameters", [math.log10(f.parameters) / 5 for f in facts]),
        ("target_images", [math.log10(f.target_images) / 4 for f in facts]),
    ):
        values[name] = torch.tensor(number, device=engine.device)
    stacked = torch.stack([values[signal.name].to(torch.float32) for signal in SIGNALS], dim=1)
    low = torch.tensor([signal.low for signal in SIGNALS], device=engine.device, dtype=torch.float32)
    high = torch.tensor([signal.high for signal in SIGNALS], device=engine.device, dtype=torch.float32)
    return stacked.nan_to_num(0.0, 0.0, 0.0).clamp(low, high)


def _head_gradient_cosine(engine: Engine, views: Views) -> Tensor:
    """Return the cosine of the head's gradients on source labels and on target pseudo-labels, `[lanes]`.

    The gradient of cross-entropy with respect to a linear head is (p - y)^T features / n: no backward pass.
    """
    source = _head_gradient(views.source.logits, views.source.features, views.source.labels.clamp(min=0))
    target = _head_gradient(views.target.logits, views.target.features, views.target.logits.argmax(-1))
    cosine_of = torch.nn.functional.cosine_similarity(source.flatten(1), target.flatten(1), dim=1)
    return torch.where(engine.length["source_val"] > 0, cosine_of, torch.zeros_like(cosine_of))


def _head_gradient(logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    one_hot = torch.nn.functional.one_hot(labels, logits.shape[-1])
    return (logits.softmax(-1) - one_hot).mT @ features / features.shape[1]


def _pad(prior: list[float] | None, width: int) -> list[float] | None:
    return None if prior is None else prior + [0.0] * (width - len(prior))


def _squash(x: Tensor) -> Tensor:
    """Map 0..inf onto 0..2, the identity near 0."""
    return x / (1 + x / 2)


def _ratio(x: Tensor) -> Tensor:
    return x / (1 + x)


def _log_position(x: Tensor, limits: tuple[float, float]) -> Tensor:
    low, high = limits
    return (x / low).log() / math.log(high / low)
