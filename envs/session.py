"""Episodes on N lanes: which task a lane plays, what it is paid, and when it ends.

The scalar environment is a session of one lane and the vector environment one of N; `AdaptationRun` holds the
dynamics. This is the only place outside of reports that reads `target_eval`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lepton_rl.controls import KEEP, ControlSettings, tuned_default
from lepton_rl.datasets import SuiteSource
from lepton_rl.domain import Domain
from lepton_rl.engine import Engine, Side
from lepton_rl.envs.reward import reward
from lepton_rl.errors import InputError
from lepton_rl.fleet import FleetEngine
from lepton_rl.run import AdaptationRun
from lepton_rl.solo import SoloEngine
from lepton_rl.suite import Suite
from lepton_rl.task import REGIMES, AdaptationTask, Regime, VisibleTask

SUITES = ("digits", "data")


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """What the environments' keyword arguments become.

    Attributes:
        suite: A suite, where one comes from, or a name: `digits`, or `data` (the folder `LEPTON_DATA`).
        split: Part of the suite.
        tasks: Episodes draw from tasks 0 .. tasks - 1 of the split.
        regime: Fix the label regime; None = both.
        architectures: Lane i plays networks of kind i modulo their number; None = each task's own.
        settings: Knobs at the start; None = the tuned default.
        action_cost: Points per moved knob.
        device: Where to train.
    """

    suite: Suite | SuiteSource | str = "digits"
    split: str = "train"
    tasks: int = 1000
    regime: Regime | None = None
    architectures: tuple[str, ...] | None = None
    settings: ControlSettings | None = None
    action_cost: float = 0.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse unknown names and empty ranges."""
        if isinstance(self.suite, str) and self.suite not in SUITES:
            raise InputError(f"suite {self.suite!r} is unknown: expected one of {', '.join(SUITES)} or a suite")
        if self.tasks < 1:
            raise InputError(f"tasks {self.tasks} is out of range: expected at least 1")
        if self.regime is not None and self.regime not in REGIMES:
            raise InputError(f"regime {self.regime!r} is unknown: expected one of {', '.join(REGIMES)} or None")

    def make_suite(self) -> Suite:
        """Return the suite."""
        source = SuiteSource(name=self.suite) if isinstance(self.suite, str) else self.suite
        return source() if isinstance(source, SuiteSource) else source


@dataclass
class _Lane:
    """One lane's episode; task, seed and actions are enough to play it again."""

    task: AdaptationTask
    seed: int
    default: list[float]
    accuracy: float
    decision: int = 0
    actions: list[np.ndarray] = field(default_factory=list)


class DefaultRuns:
    """Accuracies of the tuned default's own run, per task, played once and remembered.

    Args:
        settings: The tuned default.
    """

    def __init__(self, settings: ControlSettings) -> None:
        self.settings = settings
        self._known: dict[tuple[str, int], list[float]] = {}

    def forget(self) -> None:
        """Forget everything: a fleet's rounding depends on who was beside a lane, and is not to outlive a seed."""
        self._known.clear()

    def accuracies(self, drawn: list[tuple[AdaptationTask, int]], engine: Callable[[int], Engine]) -> list[list[float]]:
        """Return accuracies on target_eval at the start and after each decision.

        Args:
            drawn: Tasks and the seeds of their runs.
            engine: Makes an engine for so many of them at once.
        """
        keys = [(f"{task.name}/{task.facts.get('architecture')}/{task.visible.regime}", seed) for task, seed in drawn]
        new = {key: pair for key, pair in zip(keys, drawn, strict=True) if key not in self._known}
        if new:
            self._known.update(zip(new, self._play(list(new.values()), engine(len(new))), strict=True))
        return [self._known[key] for key in keys]

    def _play(self, drawn: list[tuple[AdaptationTask, int]], engine: Engine) -> list[list[float]]:
        tasks = [task for task, _ in drawn]
        run = AdaptationRun(engine)
        run.start({lane: (task.visible, seed, self.settings) for lane, (task, seed) in enumerate(drawn)})
        seen = [[accuracy] for accuracy in eval_accuracy(engine, tasks)]
        while not all(run.over):
            going = [not over for over in run.over]
            run.advance(torch.tensor([KEEP] * engine.lanes))
            for lane, accuracy in enumerate(eval_accuracy(engine, tasks)):
                if going[lane]:
                    seen[lane].append(accuracy)
        return seen


def eval_accuracy(engine: Engine, tasks: list[AdaptationTask]) -> list[float]:
    """Return every lane's accuracy on its task's target_eval, 0..1; privileged."""
    return [float(hits.mean()) for hits in eval_hits(engine, tasks)]


def eval_hits(engine: Engine, tasks: list[AdaptationTask], side: Side = "target") -> list[np.ndarray]:
    """Return for every lane which images of its task's target_eval it gets right, bool `[n]`; privileged."""
    domains = [_eval(task) for task in tasks]
    size = max(len(domain) for domain in domains)
    images = torch.from_numpy(np.stack([_repeat(domain.images, size) for domain in domains])).to(engine.device)
    guesses = engine.predict(images, side)[1].argmax(-1).cpu().numpy()
    return [guess[: len(domain)] == domain.labels for guess, domain in zip(guesses, domains, strict=True)]


def _eval(task: AdaptationTask) -> Domain:
    if task.hidden.target_eval is None:
        raise InputError(f"task {task.name!r} has no target_eval: expected labelled target images to pay rewards by")
    return task.hidden.target_eval


def _repeat(images: np.ndarray, size: int) -> np.ndarray:
    return images[np.arange(size) % len(images)]


class Session:
    """Episodes on N lanes of one engine.

    Args:
        config: What to play.
        lanes: Number of lanes.
        fleet: Whether to use a `FleetEngine`, which needs one architecture for all lanes.
        architecture: Kind of all networks; None = each task's own.
        suite: Shared between sessions, or None to make the configured one.
        defaults: Shared memory of default runs, or None for one of its own.
    """

    def __init__(
        self,
        config: SessionConfig,
        *,
        lanes: int,
        fleet: bool,
        architecture: str | None = None,
        suite: Suite | None = None,
        defaults: DefaultRuns | None = None,
    ) -> None:
        self.config, self.lanes, self.fleet, self.architecture = config, lanes, fleet, architecture
        self.suite = suite or config.make_suite()
        self.settings = config.settings or tuned_default()
        self.defaults = defaults or DefaultRuns(self.settings)
        self._run: AdaptationRun | None = None
        self._lanes: list[_Lane] = []

    def start(self, rngs: dict[int, np.random.Generator]) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Start an episode on the given lanes, each with its own generator.

        Returns:
            Observations of all lanes, float32 `[lanes, signals]`, and one info per lane.
        """
        self._catch_up()
        drawn = {lane: self._draw(rng) for lane, rng in rngs.items()}
        run = self._ready(drawn)
        observation = run.start({lane: (task.visible, seed, self.settings) for lane, (task, seed) in drawn.items()})
        pairs = list(drawn.values())
        defaults = self.defaults.accuracies(pairs, lambda lanes: self._engine(pairs[0][0].visible, lanes))
        for (lane, (task, seed)), default in zip(drawn.items(), defaults, strict=True):
            self._lanes[lane] = _Lane(task=task, seed=seed, default=default, accuracy=default[0])
        return _array(observation), [self._info(lane, 0) for lane in range(self.lanes)]

    def _draw(self, rng: np.random.Generator) -> tuple[AdaptationTask, int]:
        recipe = self.suite.recipe(self.config.split, int(rng.integers(self.config.tasks)), self.config.regime)
        if self.architecture is not None:
            recipe = replace(recipe, architecture=self.architecture)
        # The run's seed belongs to the task: the default's run on the same task and seed is then played once.
        return self.suite.make(recipe), recipe.seed

    def _ready(self, drawn: dict[int, tuple[AdaptationTask, int]]) -> AdaptationRun:
        """Return a run whose engine fits the drawn tasks."""
        if self._run is None or not self._fits(drawn):
            assert set(drawn) == set(range(self.lanes)), "the first start must start every lane"
            self._run = AdaptationRun(self._engine(drawn[0][0].visible, self.lanes))
            if not self._lanes:
                self._lanes = [
                    _Lane(task=drawn[lane][0], seed=drawn[lane][1], default=[0.0], accuracy=0.0)
                    for lane in range(self.lanes)
                ]
        return self._run

    def _fits(self, drawn: dict[int, tuple[AdaptationTask, int]]) -> bool:
        """A fleet is made as wide as any task; an engine of one lane is made anew for other classes or images."""
        now = None if self._run is None else self._run.engine.tasks[0]
        return self.fleet or now is None or all(_shape(task.visible) == _shape(now) for task, _ in drawn.values())

    def _engine(self, first: VisibleTask, lanes: int) -> Engine:
        if not self.fleet:
            return SoloEngine(first, device=self.config.device)
        recipe = self.suite.recipe(self.config.split, 0, self.config.regime)
        if self.architecture is not None:
            recipe = replace(recipe, architecture=self.architecture)
        widest = self.suite.make(self.suite.widest(recipe)).visible
        return FleetEngine(widest, lanes, device=self.config.device)

    def halves(self) -> list[tuple["Session", list[int]]]:
        """Give the lanes to two sessions, each with its lane numbers here; this one lets go of its memory."""
        self._run = None
        parts = [list(range(self.lanes // 2)), list(range(self.lanes // 2, self.lanes))]
        found = []
        for part in parts:
            half = Session(
                self.config,
                lanes=len(part),
                fleet=self.fleet,
                architecture=self.architecture,
                suite=self.suite,
                defaults=self.defaults,
            )
            half._lanes = [self._lanes[lane] for lane in part] if self._lanes else []
            found.append((half, part))
        return found

    def _catch_up(self) -> None:
        """Play the episodes of another session's lanes again, up to where they were: all draws are theirs."""
        if self._run is not None or not self._lanes:
            return
        begun = {k: (lane.task, lane.seed) for k, lane in enumerate(self._lanes)}
        run = self._ready(begun)
        run.start({k: (task.visible, seed, self.settings) for k, (task, seed) in begun.items()})
        longest = max(len(lane.actions) for lane in self._lanes)
        for t in range(longest):
            first = {k: t - longest + len(lane.actions) for k, lane in enumerate(self._lanes)}
            # A lane that is not as far begins (again) when the others have only as many decisions left.
            late = {k: begun[k] for k, number in first.items() if number == 0 and t > 0}
            if late:
                run.start({k: (task.visible, seed, self.settings) for k, (task, seed) in late.items()})
            actions = [self._lanes[k].actions[n] if n >= 0 else np.array(KEEP) for k, n in first.items()]
            run.step(torch.as_tensor(np.stack(actions), dtype=torch.int64))
        fresh = {k: begun[k] for k, lane in enumerate(self._lanes) if not lane.actions and longest}
        if fresh:
            run.start({k: (task.visible, seed, self.settings) for k, (task, seed) in fresh.items()})

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Apply one action per lane.

        Returns:
            Observations `[lanes, signals]`, rewards `[lanes]` in points, ends `[lanes]`, and one info per lane.
        """
        self._catch_up()
        assert self._run is not None, "reset the environment first"
        observation, outcome = self._run.step(torch.as_tensor(actions, dtype=torch.int64))
        accuracies = eval_accuracy(self._run.engine, [lane.task for lane in self._lanes])
        rewards = np.zeros(self.lanes)
        infos = []
        for i, lane in enumerate(self._lanes):
            lane.decision += 1
            lane.actions.append(np.array(actions[i]))
            rewards[i] = reward(
                accuracies[i],
                lane.accuracy,
                lane.default,
                lane.decision,
                ended=outcome.ended[i],
                diverged=outcome.diverged[i],
                changed=int((actions[i] != np.array(KEEP)).sum()),
                action_cost=self.config.action_cost,
            )
            lane.accuracy = accuracies[i]
            infos.append(self._info(i, outcome.steps[i]) | {"diverged": outcome.diverged[i]})
        return _array(observation), rewards, np.array(outcome.ended), infos

    def _info(self, lane: int, steps: int) -> dict[str, Any]:
        """Describe a lane; the accuracies are privileged: for logs and critics, never for an actor."""
        state = self._lanes[lane]
        return {
            "task": state.task.name,
            "steps": steps,
            "eval_accuracy": state.accuracy,
            "default_accuracy": state.default[-1],
        }


def _shape(task: VisibleTask) -> tuple[int, ...]:
    return (task.n_classes, *task.target_unlabelled.images.shape[1:])


def _array(observation: Tensor) -> np.ndarray:
    """Copy to the host: environments never hand out arrays that they use again."""
    return observation.detach().cpu().numpy().copy()
