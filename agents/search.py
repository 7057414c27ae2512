"""Search over training tasks for what is played without feedback: the tuned default and a schedule.

They are what policies start from and the opponents in every benchmark, so they get an honest search: Optuna's TPE
over the policy's own knobs, on training tasks only, paid by `target_eval` as policies are. Poor trials stop after a
third of the tasks. After every trial the best so far is on the disk, and so is the trial: a search that was killed
has kept its result, and the same command goes on.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import optuna

from lepton_rl.agents.crew import Crew
from lepton_rl.agents.search_space import Space
from lepton_rl.agents.suites import MakeSuite, SuiteChoice
from lepton_rl.agents.trials import Found, Part, Search, player
from lepton_rl.agents.tuner import SAMPLERS
from lepton_rl.cache import write_atomically
from lepton_rl.controls import LOSS_TERMS, ControlSettings, tuned_default
from lepton_rl.datasets import OWN_SPLIT, splits_of
from lepton_rl.errors import InputError
from lepton_rl.lock import beside, locked
from lepton_rl.run import DECISIONS
from lepton_rl.stopping import StopRequest, stop_on_signals
from lepton_rl.task import Regime

DEFAULT, SCHEDULE = "tuned-default", "tuned-schedule"


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Search over the training tasks of a suite; what was killed goes on by the same command."""

    out: Path | None = None
    """JSON file to write after every trial; default the arm's own, in lepton_rl/defaults. Finished trials are kept
    in the folder OUT.trials beside it."""
    suite: str = "digits"
    """Suite whose training part is used: digits, or data (with --data)."""
    data: Path | None = None
    """Folder of the .npz files of the suite data; default LEPTON_DATA."""
    size: int = 16
    """Side in pixels to which images of the suite data are brought: 8, 16 or 28."""
    tasks: int = 36
    """Training tasks that a trial is judged by."""
    trials: int = 48
    """Trials; poor ones stop after a third of the tasks."""
    workers: int = 2
    """Processes; what is found does not depend on it."""
    seed: int = 0
    """Seed of the sampler."""

    def __post_init__(self) -> None:
        """Refuse values that find nothing."""
        for name in ("tasks", "trials", "workers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is out of range: expected 1 or more; raise --{name}")
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative: expected 0 or more; mend --seed")

    @property
    def choice(self) -> SuiteChoice:
        """The suite that is meant."""
        return SuiteChoice(name=self.suite, data=self.data, size=self.size)


def search(config: SearchConfig, what: str, make_suite: MakeSuite | None = None) -> Found:
    """Search, write the JSON file after every trial, and return its content.

    Args:
        config: Where and how long.
        what: `tuned-default` or `tuned-schedule`.
        make_suite: Makes the suite instead of the one that is named; worker processes import it.

    Raises:
        InputError: If the suite is unknown, or has no training tasks.
        Stopped: If SIGTERM or SIGUSR2 came; finished trials are kept.
        Unfinished: If a task could not be played; finished trials are kept.
    """
    if OWN_SPLIT in splits_of(config.suite):
        raise InputError(f"suite {config.suite!r} has no training tasks: expected digits or data; mend --suite")
    make_suite = make_suite or config.choice.maker()
    out = config.out or _package_file(what)
    with locked(beside(out), out), stop_on_signals() as stop:
        trials = out.with_name(out.name + ".trials") / _mark(config, what)
        one = Search(_part(config, what), config.seed, trials)
        with Crew(config.workers, functools.partial(player, make_suite), _leave(stop, one)) as crew:
            while one.done < config.trials:
                said = one.trial(crew)
                write_found(out, _found(config, what, one))
                print(f"{said}, best {one.best()['mean_accuracy']:.4f}", flush=True)
    found = _found(config, what, one)
    write_found(out, found)
    return found


def first_guesses() -> list[ControlSettings]:
    """Return what a careful person would try first; the search starts from them."""
    guesses = []
    for rate, unsupervised in itertools.product((1e-3, 2e-3, 5e-3), (0.0, 0.1, 0.3)):
        weights = dict.fromkeys(LOSS_TERMS, 0.0) | {"source": 1.0}
        if unsupervised:
            weights |= dict.fromkeys(("alignment", "entropy", "diversity", "self_training"), unsupervised)
        guesses.append(ControlSettings(learning_rate=rate, weights=weights))
    return guesses


def write_found(path: Path, found: Found) -> None:
    """Write what was found, whole or not at all."""
    write_atomically(path, (json.dumps(found, indent=2, sort_keys=True) + "\n").encode())


def _part(config: SearchConfig, what: str) -> Part:
    tasks: tuple[tuple[int, Regime | None], ...] = tuple((index, None) for index in range(config.tasks))
    if what == DEFAULT:
        return Part(name=what, space=Space(), tasks=tasks, guesses=tuple(first_guesses()))
    guesses = (tuned_default(), *first_guesses())
    return Part(name=what, space=Space(decisions=DECISIONS), tasks=tasks, guesses=guesses)


def _found(config: SearchConfig, what: str, one: Search) -> Found:
    found: Found = dict(one.best())
    if what != SCHEDULE:
        found.pop("actions", None)
    found["search"] = {
        **{key: value for key, value in asdict(config).items() if key not in ("out", "data", "workers")},
        "finished_trials": one.done,
        "optuna": optuna.__version__,
        "sampler": SAMPLERS["tpe"].__name__,
        **{key: round(one.spent(key)) for key in ("games", "steps", "seconds")},
    }
    return found


def _mark(config: SearchConfig, what: str) -> str:
    """Return a name for all that the trials of a search have in common, so that no two searches are mixed."""
    told = asdict(replace(config, trials=1, workers=1, out=None, data=None))
    words = json.dumps([what, told, config.choice.contents(), optuna.__version__], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def _leave(stop: StopRequest, one: Search) -> Callable[[], None]:
    return lambda: stop.check(f"{one.done} trials")


def _package_file(what: str) -> Path:
    return Path(__file__).resolve().parent.parent / "lepton_rl" / "defaults" / f"{what}.json"
