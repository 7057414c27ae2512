"""Optuna as a tuner of the knobs that the policy moves: ask and tell, with a journal that outlives a kill."""

import functools
import json
import logging
import time
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from lepton_rl.agents.arm import Trial, TunerArm
from lepton_rl.agents.search_space import parameters_of, suggest
from lepton_rl.controls import ControlSettings, tuned_default
from lepton_rl.objective import NEEDS_SOURCE
from lepton_rl.policy import KeepPolicy
from lepton_rl.rollout import RunResult, rollout
from lepton_rl.task import VisibleTask

STARTUP_TRIALS = 10
TPE_OPTIONS = {
    "multivariate": True,
    "group": True,  # loss weights exist only while their term is on
    "constant_liar": False,  # one trial at a time: nothing to lie about
    "n_startup_trials": STARTUP_TRIALS,
    "n_ei_candidates": 24,
}
WORST_SCORE = -1.0  # below every visible score; for a run whose score is no number


@dataclass(frozen=True, kw_only=True)
class OptunaTuner(TunerArm):
    """Search the settings of a run with Optuna, by the same visible score that the guard uses.

    Attributes:
        sampler: `tpe` or `random`.
        warm: Whether the first trial is the tuned default.
    """

    sampler: Literal["tpe", "random"]
    warm: bool = False

    def search(self, task: VisibleTask, seed: int, runs: int, storage: Path | None = None) -> Iterator[Trial]:
        """Run trials; those that the storage has finished already are not run again."""
        study = self._study(storage)
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        for trial in finished[:runs]:
            yield _remembered(trial, task, seed)
        for number in range(len(finished), runs):
            began = time.perf_counter()
            # A sampler per trial: what trial k draws depends on the seed, k and the trials before it, not on
            # whether the process was killed in between.
            study.sampler = self._make_sampler(seed, number)
            if self.warm and number == 0 and not study.get_trials(states=(TrialState.WAITING,)):
                study.enqueue_trial(parameters_of(_usable(tuned_default(), task)))
            asked = study.ask()
            settings = _suggest(asked, task)
            asked.set_user_attr("settings", settings.to_json())
            result = rollout(task, KeepPolicy(settings=settings), seed=seed)
            score = float(np.nan_to_num(result.score, nan=WORST_SCORE, neginf=WORST_SCORE))
            seconds = time.perf_counter() - began
            asked.set_user_attr("run", {"steps": result.steps, "seconds": seconds})
            study.tell(asked, score)
            kept = functools.partial(_same, result)
            yield Trial(score=score, steps=result.steps, seconds=seconds, settings=settings, result=kept)

    def describe(self) -> dict[str, Any]:
        """Return what the manifest records."""
        options = TPE_OPTIONS if self.sampler == "tpe" else {}
        name = {"tpe": "TPESampler", "random": "RandomSampler"}[self.sampler]
        start = "tuned default" if self.warm else "cold"
        return {
            "sampler": name,
            "options": options,
            "pruner": "none",
            "start": start,
            "optuna": optuna.__version__,
        }

    def _study(self, storage: Path | None) -> optuna.Study:
        optuna.logging.set_verbosity(logging.WARNING)
        study = optuna.create_study(
            study_name="cell", direction="maximize", storage=_journal(storage), load_if_exists=True
        )
        # Ask and tell has no heartbeat: what a killed process left running is failed here, and asked for
        # again. One that was killed while its settings were being drawn is drawn again, to the same ones.
        for stale in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(stale.number, state=TrialState.FAIL)
            if "settings" in stale.user_attrs:
                study.enqueue_trial(stale.params)
        return study

    def _make_sampler(self, seed: int, number: int) -> optuna.samplers.BaseSampler:
        words = np.random.SeedSequence((seed, number, zlib.crc32(self.sampler.encode()))).generate_state(1)
        if self.sampler == "random":
            return optuna.samplers.RandomSampler(seed=int(words[0]))
        with warnings.catch_warnings():  # `group` and `multivariate` are marked experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(seed=int(words[0]), **cast(Any, TPE_OPTIONS))


class _WithoutSource:
    """A trial in which the loss terms that need source data are off and never asked for."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._trial, name)

    def suggest_categorical(self, name: str, choices: list[bool]) -> bool:
        if name.removesuffix("_on") in NEEDS_SOURCE:
            return False
        return self._trial.suggest_categorical(name, choices)


def _suggest(trial: optuna.Trial, task: VisibleTask) -> ControlSettings:
    """Draw settings; without source data a tuner wastes no trial on weights that do nothing."""
    return suggest(cast(optuna.Trial, _WithoutSource(trial)) if task.source_free else trial)


def _usable(settings: ControlSettings, task: VisibleTask) -> ControlSettings:
    if not task.source_free:
        return settings
    weights = settings.weights | dict.fromkeys(NEEDS_SOURCE, 0.0)
    return ControlSettings(
        learning_rate=settings.learning_rate,
        unfrozen_stages=settings.unfrozen_stages,
        weights=weights,
        augmentation=settings.augmentation,
    )


def _remembered(trial: optuna.trial.FrozenTrial, task: VisibleTask, seed: int) -> Trial:
    """Return a trial finished before a restart; its weights are made again if it is the best."""
    run = trial.user_attrs["run"]
    settings = ControlSettings.from_json(trial.user_attrs["settings"])
    again = functools.partial(rollout, task, KeepPolicy(settings=settings), seed=seed)
    return Trial(
        score=float(cast(float, trial.value)),
        steps=int(run["steps"]),
        seconds=float(run["seconds"]),
        settings=settings,
        result=functools.cache(again),
    )


def _same(result: RunResult) -> RunResult:
    return result


def _journal(storage: Path | None) -> JournalStorage | None:
    if storage is None:
        return None
    storage.parent.mkdir(parents=True, exist_ok=True)
    _drop_cut_line(storage)
    return JournalStorage(JournalFileBackend(str(storage), JournalFileOpenLock(str(storage))))


def _drop_cut_line(journal: Path) -> None:
    """Repair a journal whose writer was killed: drop a last line without its end, and the lock."""
    for lock in journal.parent.glob(f"{journal.name}.lock*"):
        lock.unlink()  # a cell's journal has one writer at a time: this process
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.splitlines(keepends=True)
    while lines and not _is_json(lines[-1]):
        lines.pop()
    if b"".join(lines) != content:
        journal.write_bytes(b"".join(lines))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
