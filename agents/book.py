"""Where an Optuna search keeps its finished trials, so that a killed one goes on where it was.

A cell of its own has a small file with one line per finished trial, written once the trial is over; the study
lives in memory. (Optuna's journal writes and syncs every parameter apart: 70 to 85 ms a trial.) A database is for
studies that machines share.
"""

import json
import logging
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.pool import NullPool

from lepton_rl.agents.arm import Database, Storage
from lepton_rl.agents.search_space import Space
from lepton_rl.errors import InputError

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
RUNG = "completed_rung_"  # what successive halving compares with


def open_book(storage: Storage | None, space: Space) -> "Book":
    """Open what a search has kept, or begin anew."""
    return _InDatabase(storage) if isinstance(storage, Database) else Book(storage, space)


class Book:
    """A study in memory, and a file of its finished trials.

    Args:
        path: The file, which one process writes at a time; None = none.
        space: In which the trials were drawn.

    Raises:
        InputError: If a line of the file is damaged; a last one that was cut off is dropped.
    """

    def __init__(self, path: Path | None, space: Space) -> None:
        optuna.logging.set_verbosity(logging.WARNING)
        self.study = optuna.create_study(study_name="cell", direction="maximize")
        self._path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            for number, record in enumerate(_whole_lines(path), start=1):
                try:
                    self.study.add_trial(_trial(record, space))
                except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                    raise _damaged(path, number, record) from None

    def finished(self) -> list[FrozenTrial]:
        """Return the finished trials in order."""
        return self.study.get_trials(deepcopy=False, states=FINISHED)

    def tell(self, trial: Trial, score: float | None, run: dict[str, float]) -> None:
        """Finish a trial; `score` None = pruned."""
        trial.set_user_attr("run", run)
        if score is None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, score)
        self._keep()

    def _keep(self) -> None:
        if self._path is not None:
            record = _record(self.study.get_trials(deepcopy=False)[-1])
            with self._path.open("a", encoding="utf-8") as file:  # no sync: a lost trial is only run again
                file.write(json.dumps(record, sort_keys=True) + "\n")


class _InDatabase(Book):
    """A study in a database, which finishes or fails trials by itself."""

    def __init__(self, place: Database) -> None:
        optuna.logging.set_verbosity(logging.WARNING)
        # No pool: every connection is closed after its use, however many cells there are.
        storage = optuna.storages.RDBStorage(place.url, engine_kwargs={"poolclass": NullPool})
        self.study = optuna.create_study(
            study_name=place.study, direction="maximize", storage=storage, load_if_exists=True
        )
        self._path = None
        # Ask and tell has no heartbeat: what a killed process left running is failed here and asked for again, to
        # the same parameters, as a cell has one process at a time.
        for stale in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(stale.number, state=TrialState.FAIL)


def _record(trial: FrozenTrial) -> dict[str, Any]:
    record: dict[str, Any] = {
        "state": trial.state.name,
        "value": trial.value,
        "parameters": trial.params,
        "run": trial.user_attrs["run"],
    }
    if trial.intermediate_values:
        record["reported"] = {str(step): value for step, value in trial.intermediate_values.items()}
        record["rungs"] = {key: value for key, value in trial.system_attrs.items() if key.startswith(RUNG)}
    return record


def _trial(record: dict[str, Any], space: Space) -> FrozenTrial:
    drawn = FixedTrial(record["parameters"])
    space.policy(drawn)  # asks for every parameter, and so tells their distributions
    return create_trial(
        state=TrialState[record["state"]],
        value=record["value"],
        params=drawn.params,
        distributions=drawn.distributions,
        user_attrs={"run": record["run"]},
        system_attrs=record.get("rungs"),
        intermediate_values={int(step): value for step, value in record.get("reported", {}).items()},
    )


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file; a last line without its end is cut off, as its writer was killed."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    records = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(line)
            record["state"], record["parameters"], record["run"]["images"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise _damaged(path, number, line) from None
        records.append(cast(dict[str, Any], record))
    return records


def _damaged(path: Path, number: int, what: object) -> InputError:
    return InputError(
        f"{path}, line {number} is damaged ({str(what)[:40]!r}): expected a finished trial; remove the file to have "
        "its cell searched again"
    )
