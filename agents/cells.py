"""One cell of the benchmark: one arm on one task with one seed. Only here are hidden labels read."""

import functools
import re
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from lepton_rl.agents.arm import Database, Storage
from lepton_rl.agents.arms import Arm, SingleArm, TunerArm, find_arm
from lepton_rl.agents.arms.settings import cross_entropy_only
from lepton_rl.agents.arms.source_only import ARM as SOURCE_ONLY
from lepton_rl.agents.judge import judged, test_of, tuned
from lepton_rl.controls import KEEP
from lepton_rl.errors import InputError
from lepton_rl.run import AdaptationRun
from lepton_rl.solo import SoloEngine
from lepton_rl.suite import Suite
from lepton_rl.task import AdaptationTask, Regime

SUPERVISED_STEPS = 160  # the upper bound trains for twice the task's budget, and at least for twice this many
SUPERVISED_LEARNING_RATE = 2e-3
TASKS_KEPT = 32  # per process; making one costs a fortieth of a run
PATIENCE = (1.0, 2.0, 4.0, 8.0, 15.0)  # seconds to wait for a database that has gone away

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, order=True)
class Place:
    """A task and a seed: what all arms share.

    Attributes:
        split: Part of the suite.
        index: Number of the task within it.
        seed: Number of the repetition, 0, 1, ...
    """

    split: str
    index: int
    seed: int

    def lane_seed(self, seed: int) -> int:
        """Return the seed of every run at this place, whatever the arm and the number of tasks (paired)."""
        entropy = (seed, zlib.crc32(self.split.encode()), self.index, self.seed)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """An arm at a place; made once, and making it again gives the same rows.

    Attributes:
        place: Task and seed.
        arm: Name of the arm.
        policy: Mark of the policy under test that it runs; empty for an arm that runs none.
    """

    place: Place
    arm: str
    policy: str = ""

    def journal(self, folder: Path) -> Path:
        """Return the file in which a tuner keeps its state."""
        who = f"{self.arm}-{self.policy}" if self.policy else self.arm
        name = f"{who}-{self.place.split}-{self.place.index:04d}-{self.place.seed}"
        return folder / (re.sub(r"[^\w.-]", "_", name) + ".jsonl")


@dataclass(frozen=True, kw_only=True, order=True)
class Lesson:
    """A training task that an arm has to see beforehand.

    Attributes:
        arm: Name of the arm.
        policy: Mark of the policy that it runs; empty for none.
        index: Number of the training task.
    """

    arm: str
    policy: str
    index: int

    @property
    def pupil(self) -> str:
        """Who is taught, as in `lessons.json`."""
        return pupil(self.arm, self.policy)

    @property
    def place(self) -> Place:
        """Where the task stands."""
        return Place(split="train", index=self.index, seed=0)


def pupil(arm: str, policy: str) -> str:
    """Return under which name an arm's lessons are kept."""
    return f"{arm} {policy}".strip()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Does the jobs of a benchmark; one lives in every worker.

    Attributes:
        make_suite: Makes the suite.
        regime: Label regime of all tasks, or None to leave it to each.
        seed: Of the benchmark.
        runs: After how many runs of a tuner a row is made, ascending.
        policies: Names or paths of the policies under test by their marks.
        journals: Folder of the tuners' states, or None.
        database: URL of the tuners' states instead, and what their names begin with; or None.
        lessons: What the arms that take lessons were given; those of an arm that is missing are taken here.
    """

    make_suite: Callable[[], Suite]
    regime: Regime | None
    seed: int
    runs: tuple[int, ...]
    policies: Mapping[str, str]
    journals: Path | None = None
    database: tuple[str, str] | None = None
    lessons: Mapping[str, list[Any]] = field(default_factory=dict)

    def start(self) -> Callable[[Place | Cell | Lesson], Any]:
        """Return what does a job: the reference accuracies of a place, the rows of a cell, or a lesson."""
        suite = self.make_suite()

        @functools.lru_cache(maxsize=TASKS_KEPT)
        def make(split: str, index: int) -> AdaptationTask:
            return suite.task(split, index, self.regime)

        def do(job: Place | Cell | Lesson) -> Any:  # noqa: ANN401
            place = job if isinstance(job, Place) else job.place
            task = make(place.split, place.index)
            if isinstance(job, Place):
                return self.reference(place, task)
            before = _mark(task)
            done = self.lesson(job, task) if isinstance(job, Lesson) else self.rows(job, task)
            if _mark(task) != before:
                make.cache_clear()
                raise InputError(
                    f"arm {job.arm!r} changed the task that all arms share: expected it as it was given; copy what is "
                    "trained"
                )
            return done

        return do

    def lesson(self, lesson: Lesson, task: AdaptationTask) -> Any:  # noqa: ANN401
        """Show an arm a training task, of which it sees what it sees of any other."""
        return self._found(lesson.arm, lesson.policy).lesson(task.visible, lesson.place.lane_seed(self.seed))

    def reference(self, place: Place, task: AdaptationTask) -> Row:
        """Measure the two ends of the normalised score."""
        test = test_of(task)
        seed = place.lane_seed(self.seed)
        return {
            **_where(place, task),
            "source_only": SOURCE_ONLY.single(task.visible, seed).accuracy(test),
            "supervised": supervised_accuracy(task, seed),
        }

    def rows(self, cell: Cell, task: AdaptationTask) -> list[Row]:
        """Run the cell's arm; the two reference accuracies are filled in by who knows them."""
        test_of(task)
        seed = cell.place.lane_seed(self.seed)
        arm = self._arm(cell.arm, cell.policy)
        common = {**_where(cell.place, task), "arm": cell.arm, "policy": cell.policy or None}
        if isinstance(arm, TunerArm):
            groups = [(number,) for number in self.runs] if arm.whole else [self.runs]
            made = [row for runs in groups for row in self._patiently(arm, cell, task, seed, runs)]
        else:
            assert isinstance(arm, SingleArm)  # the registry takes no other
            made = [judged(arm, task, seed)]
        return [common | row for row in made]

    def _found(self, name: str, policy: str) -> Arm:
        return find_arm(name, self.policies[policy] if policy else None)

    def _arm(self, name: str, policy: str) -> Arm:
        arm = self._found(name, policy)
        if not arm.lessons:
            return arm
        if pupil(name, policy) not in self.lessons:
            suite = self.make_suite()
            wanted = [Lesson(arm=name, policy=policy, index=index) for index in range(arm.lessons)]
            tasks = [suite.task("train", lesson.index, self.regime) for lesson in wanted]
            return arm.taught([self.lesson(*pair) for pair in zip(wanted, tasks, strict=True)])
        return arm.taught(self.lessons[pupil(name, policy)])

    def storage(self, cell: Cell, arm: TunerArm) -> Storage | None:
        """Return where a tuner keeps its state."""
        if self.database is not None and not arm.needs_files:
            url, prefix = self.database
            return Database(url=url, study=f"{prefix}-{cell.journal(Path()).stem}")
        return None if self.journals is None else cell.journal(self.journals)

    def _patiently(
        self, arm: TunerArm, cell: Cell, task: AdaptationTask, seed: int, runs: tuple[int, ...]
    ) -> list[Row]:
        """Tune; when the database goes away, wait for it, and go on with what it holds then."""
        for wait in PATIENCE:
            try:
                return tuned(arm, task, seed, runs, self.storage(cell, arm))
            except (SQLAlchemyError, StorageInternalError):
                if self.database is None:
                    raise
                time.sleep(wait)
        try:
            return tuned(arm, task, seed, runs, self.storage(cell, arm))
        except (SQLAlchemyError, StorageInternalError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:120]
            raise InputError(
                f"the database of the tuners does not answer ({reason}): expected it back within "
                f"{sum(PATIENCE):.0f} s; start it and give the same command, what is finished is kept"
            ) from None


def _mark(task: AdaptationTask) -> tuple[float, ...]:
    """Return sums that change when a network or an image does."""
    visible = task.visible
    weights = [float(value.double().sum()) for value in visible.model.state_dict().values()]
    domains = (visible.target_unlabelled, visible.target_support, visible.target_probe)
    return (*weights, *(float(part.images.sum() + part.labels.sum()) for part in domains if part is not None))


def _where(place: Place, task: AdaptationTask) -> Row:
    return {
        "task": task.name,
        "split": place.split,
        "regime": task.visible.regime,
        "index": place.index,
        "seed": place.seed,
    }


def supervised_accuracy(task: AdaptationTask, seed: int) -> float:
    """Train on all target labels and return the test accuracy: the harness's own upper bound, never an arm.

    Every label of `target_unlabelled`, cross-entropy alone, all stages, twice the budget (320 steps or more),
    and the last weights, without the guard.
    """
    labels = task.hidden.target_train_labels
    if labels is None:
        raise InputError(f"task {task.name!r} has no target_train_labels: expected them for the upper bound; add them")
    visible = replace(
        task.visible,
        budget=2 * max(task.visible.budget, SUPERVISED_STEPS),
        source_train=None,
        source_val=None,
        target_support=replace(task.visible.target_unlabelled, labels=labels),
        target_probe=None,
    )
    settings = cross_entropy_only(learning_rate=SUPERVISED_LEARNING_RATE)
    engine = SoloEngine(visible)
    run = AdaptationRun(engine)
    run.start({0: (visible, seed, settings)})
    while not run.over[0]:
        run.step(torch.tensor([KEEP]))
    test = test_of(task)
    logits = engine.predict(torch.from_numpy(np.ascontiguousarray(test.images))[None], "target")[1][0]
    return float((logits.argmax(1).cpu().numpy() == test.labels).mean())
