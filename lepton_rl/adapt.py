"""Adapt a model to a new domain in one run: the function that everything else in this package is for."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from lepton_rl.artifact import SHIPPED, load_policy
from lepton_rl.cache import write_atomically
from lepton_rl.class_names import NewHead
from lepton_rl.cross_validation import CrossValidation, check_folds, cross_validate
from lepton_rl.domain import Domain
from lepton_rl.explanation import Explanation, explain
from lepton_rl.keeping import Keeper, keeping
from lepton_rl.manifest import whole_folder, write_manifest
from lepton_rl.metrics import Comparison, Floats, Metrics, compare
from lepton_rl.own import own_task
from lepton_rl.policy import Policy, asking_for
from lepton_rl.preprocessing import Preprocessing, accuracy, predict, probabilities
from lepton_rl.rollout import Callback, Row, RunResult, rollout
from lepton_rl.selection import ORIGINAL
from lepton_rl.solo import SoloEngine
from lepton_rl.stages import N_GROUPS
from lepton_rl.task import AdaptationTask

Verdict = Literal["adapted", "kept the original"]
Judged = tuple[NDArray[np.int64], Floats, Floats]  # labels, probabilities before, probabilities after


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptResult:
    """What an adaptation came to.

    Attributes:
        model: A copy of the model with the chosen weights, in evaluation mode.
        verdict: `adapted`, or `kept the original` where the guard was for it.
        reason: Why, in words.
        chosen: Whose weights these are: `original`, `decision k` or `average`.
        history: One row per decision (signals, action, knobs, score), row 0 the start.
        before: Metrics of the original model; empty without labels to measure with. `probe_accuracy` is taken
            on labelled target images that also chose the weights, so it flatters; `test_accuracy` does not.
        after: The same of `model`.
        classes: Names of the model's outputs.
        preprocessing: What images go through on their way into the model.
        steps: Gradient steps taken.
        seconds: Wall-clock time of the run.
        arguments: What `adapt` was called with, for the manifest.
        metrics: Both models on the `test` images, class by class and with intervals; None without any.
        cross_validation: The same over the few labels, from further runs; None unless asked for.
        explanation: Why each decision, which images changed class, where features went.
        notes: What was put right in the model or the images, and what is doubtful in them, in words.
        previous_head: The head that the model came with, where it got a new one for other classes, or None;
            `task_adapter.with_head` puts it back.
    """

    model: nn.Module
    verdict: Verdict
    reason: str
    chosen: str
    history: list[Row]
    before: dict[str, float]
    after: dict[str, float]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    steps: int
    seconds: float
    arguments: dict[str, Any] = field(default_factory=dict)
    metrics: Comparison | None = None
    cross_validation: CrossValidation | None = None
    explanation: Explanation | None = None
    notes: tuple[str, ...] = ()
    previous_head: nn.Linear | None = None

    def predict(self, domain: Domain) -> NDArray[np.int64]:
        """Return the most likely class of every image of a domain of any size, an index into `classes`, `[n]`."""
        return predict(self.model, domain, self.preprocessing)

    def save(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        command: str = "adapt",
        arguments: Mapping[str, Any] | None = None,
        argv: Sequence[str] | None = None,
    ) -> Path:
        """Write weights, history, result, manifest and report into a folder, all or nothing, and return it.

        Args:
            folder: New or empty.
            overwrite: Whether the output of an earlier command there may go.
            command: For the manifest.
            arguments: For the manifest; default those of `adapt`.
            argv: For the manifest; default the command line of this process.

        Raises:
            InputError: If the folder is not free or cannot be written.
        """
        from lepton_rl.report import adapt_report  # needs plotly, which nothing else here does

        with whole_folder(Path(folder), overwrite=overwrite) as part:
            write_atomically(part / "weights.safetensors", self._weights())
            lines = "".join(json.dumps(row) + "\n" for row in self.history)
            write_atomically(part / "history.jsonl", lines.encode())
            write_atomically(part / "result.json", self._record().encode())
            if self.explanation is not None:
                write_atomically(part / "explanation.json", (json.dumps(self.explanation.facts) + "\n").encode())
                write_atomically(part / "reference.safetensors", save({"features": self.explanation.reference}))
            if self.previous_head is not None:
                write_atomically(part / "previous_head.safetensors", save(dict(self.previous_head.state_dict())))
            write_manifest(part, command=command, arguments=arguments or self.arguments, argv=argv)
            adapt_report(part)
        return Path(folder)

    def _weights(self) -> bytes:
        # Copies, because safetensors refuses tied weights; one key of metadata, because it shuffles several.
        tensors = {name: t.detach().cpu().clone().contiguous() for name, t in self.model.state_dict().items()}
        facts: dict[str, Any] = {"classes": self.classes, "preprocessing": vars(self.preprocessing)}
        if self.explanation is not None:
            facts["head"] = self.explanation.head
        return save(tensors, {"lepton_model": json.dumps(facts, sort_keys=True)})

    def _record(self) -> str:
        names = ("verdict", "reason", "chosen", "before", "after", "classes", "steps", "seconds", "notes")
        facts = {name: getattr(self, name) for name in names} | {"preprocessing": vars(self.preprocessing)}
        for name, found in (("metrics", self.metrics), ("cross_validation", self.cross_validation)):
            facts[name] = None if found is None else found.to_json()
        # One entry a line: with an indent every cell of a confusion matrix would have a line of its own.
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items()) + "\n}\n"


def adapt(
    model: nn.Module,
    *,
    target: Domain,
    source: Domain | None = None,
    policy: str | Path | Policy = SHIPPED,
    budget: int = 400,
    seed: int = 0,
    test: Domain | None = None,
    folds: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    classes: Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    stages: Sequence[Sequence[str]] | None = None,
    head: str | None = None,
    new_head: NewHead = "auto",
    class_prior: Mapping[str, float] | None = None,
    min_gain: float | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    keeper: Keeper | None = None,
) -> AdaptResult:
    """Adapt a copy of a trained model to a new domain, in one run.

    Two thirds of the labelled target images are trained on, one third, the probe, validates; without any label the run
    goes by label-free signals. The guard of the policy chooses between the last weights and the original, by what it
    has learned to expect and by the probe; under a policy without one, `tuned-default` for example, scores choose, the
    probe's or label-free ones. Every target image is also used without its label. The model must have been trained on
    standardised images, `(x / 255 - mean) / std` per channel: give `normalisation` unless mean and std were
    those of the source images.

    Args:
        model: From images to logits `[n, k]`; it is never changed.
        target: Images of the new domain, with some labels or none.
        source: Labelled images of the domain that the model was trained on, or None (source-free).
        policy: `lepton-v1` (shipped), `tuned-default`, the path of a policy file, or a policy.
        budget: Gradient steps, at least 5; a few hundred are usual.
        seed: Of splits and batches; the same seed gives the same weights.
        test: Labelled target images for `before`, `after` and `metrics` alone.
        folds: 0, or k for a k-fold cross-validation over the labelled target images: k further runs, each
            judged on labelled images that it has not seen.
        out: Folder to save the result in; new or empty. Until it is there, every decision is kept beside it, in
            `OUT.unfinished`, so that the same call goes on where a killed one was.
        overwrite: Whether the output of an earlier command in `out` may go.
        classes: Names of the model's outputs, in order; default the source's.
        image_size: Side, or (height, width), in pixels; default the source's, or the target's own.
        normalisation: Mean and standard deviation per channel, in 0..1.
        stages: One to four groups of module names, from the image to the head; default those that
            `lepton inspect MODEL` shows.
        head: Dotted name of the linear classifier; default the last `nn.Linear`.
        new_head: Whether the model gets a head for other classes: `auto` (where the source has another number
            of classes than the model), `always`, `never`. The old one is `AdaptResult.previous_head`.
        class_prior: Share, or number, of target images of each class by its name, if you know it: how frequent a
            disease is, how rare a defect. Unknown, classes are taken to be balanced where labels do not say otherwise.
        min_gain: Points of accuracy that the learned guard has to expect, or the original is kept; more is more
            careful (`docs/results.md` says what it costs). Above 0 labelled images are no second witness. Default
            what the policy's file says, 0 for `lepton-v1`.
        callback: Called with every row of the history as it is made; of a run that goes on, with the earlier ones too.
        progress: Whether to show a progress bar.
        keeper: Keeps every decision where `out` is saved by somebody else (`keeping.py`).

    Raises:
        TypeError: If an argument has the wrong type.
        InputError: If something cannot be used; one line says what, why, and what to do.
        Stopped: If `out` is given and SIGTERM or SIGUSR2 came; the last decision is kept.
    """
    actor = load_policy(policy) if min_gain is None else asking_for(load_policy(policy), min_gain)

    def prepared(part: Domain, judged_on: Domain | None) -> tuple[AdaptationTask, Preprocessing]:
        return own_task(
            model,
            target=part,
            source=source,
            test=judged_on,
            budget=budget,
            seed=seed,
            classes=classes,
            image_size=image_size,
            normalisation=normalisation,
            stages=stages,
            head=head,
            new_head=new_head,
            class_prior=class_prior,
        )

    with nullcontext(keeper) if out is None else keeping(Path(out), overwrite=overwrite) as keeper:
        task, way = prepared(target, test)
        check_folds(target, folds)
        names = task.visible.target_unlabelled.classes
        with _shown(progress, budget, callback) as listener:
            run = rollout(task.visible, actor, seed=seed, callback=listener, keeper=keeper)
        start = task.visible.model  # yours, or a copy of it with a new head
        adapted = _chosen_model(start, run)
        original = copy.deepcopy(start).eval()
        metrics = judged = None
        if (held := task.hidden.target_test) is not None:
            labels, was, now = _judged(original, adapted, held, way)
            metrics, judged = compare(labels, was, now, names), (held, was, now)

        def once(number: int, part: Domain, held_out: Domain) -> Judged:
            fold, fold_way = prepared(part, held_out)
            unseen = fold.hidden.target_test
            assert unseen is not None

            def work() -> dict[str, Tensor]:
                first = copy.deepcopy(fold.visible.model).eval()
                other = _chosen_model(first, rollout(fold.visible, actor, seed=seed))
                _, was, now = _judged(first, other, unseen, fold_way)
                return {"before": torch.from_numpy(was), "after": torch.from_numpy(now)}

            name, shape = f"fold-{number + 1}-of-{folds}", (len(unseen), len(names))
            found = work() if keeper is None else keeper.known(name, shape, work)
            return unseen.labels, found["before"].numpy(), found["after"].numpy()

        explanation = explain(task.visible, way, run, actor, original=original, adapted=adapted, judged=judged)
        result = AdaptResult(
            model=adapted,
            verdict="kept the original" if run.chosen == ORIGINAL else "adapted",
            reason=run.reason + ("; training diverged and was ended" if run.diverged else ""),
            chosen=run.chosen,
            history=run.history,
            before=_accuracies(original, task, way, None if metrics is None else metrics.before),
            after=_accuracies(adapted, task, way, None if metrics is None else metrics.after),
            classes=names,
            preprocessing=way,
            steps=run.steps,
            seconds=run.seconds,
            notes=(*task.notes, *_doubts(explanation)),
            previous_head=task.previous_head,
            arguments={
                "model": type(model).__name__,
                "source": None if source is None else source.summary(),
                "target": target.summary(),
                "test": None if test is None else test.summary(),
                "policy": str(policy) if isinstance(policy, str | Path) else type(policy).__name__,
                "budget": budget,
                "seed": seed,
                "folds": folds,
                "class_prior": None if class_prior is None else dict(class_prior),
                "min_gain": min_gain,
            },
            metrics=metrics,
            cross_validation=cross_validate(target, folds, seed, names, once) if folds else None,
            explanation=explanation,
        )
        if out is not None and keeper is not None:
            result.save(out, overwrite=keeper.overwrite)
            keeper.remove()
        return result


def _chosen_model(original: nn.Module, run: RunResult) -> nn.Module:
    """Return a copy of the original with the run's weights and the target's normalisation statistics."""
    model = copy.deepcopy(original).eval()
    if run.chosen == ORIGINAL:
        return model
    engine = run.engine
    assert isinstance(engine, SoloEngine)
    engine.statistics.use("target", [False] * N_GROUPS, 0.0)
    model.load_state_dict(engine.model.state_dict())
    return model


def _doubts(explanation: Explanation) -> list[str]:
    labels = explanation.facts["labels"]
    if labels is None or not labels["doubtful"]:
        return []
    return [
        f"{labels['doubtful']} of {labels['images']} target labels are contradicted by the network with confidence: "
        "look at them in report.html"
    ]


def _judged(original: nn.Module, adapted: nn.Module, domain: Domain, way: Preprocessing) -> Judged:
    return domain.labels, probabilities(original, domain, way), probabilities(adapted, domain, way)


def _accuracies(model: nn.Module, task: AdaptationTask, way: Preprocessing, test: Metrics | None) -> dict[str, float]:
    probe = task.visible.target_probe
    found = {} if probe is None else {"probe_accuracy": accuracy(model, probe, way)}
    return found if test is None else found | {"test_accuracy": test.scores["accuracy"].value}


@contextmanager
def _shown(progress: bool, budget: int, callback: Callback | None) -> Iterator[Callback | None]:
    """Give the callback of a run, with a progress bar around it if wanted."""
    if not progress:
        yield callback
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("adapting"),
        BarColumn(),
        TextColumn("step {task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task("adapting", total=budget)

        def listener(row: Row) -> None:
            bar.update(job, completed=row["step"])
            if callback:
                callback(row)

        yield listener
