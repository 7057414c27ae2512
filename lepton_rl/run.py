"""One adaptation run as a state machine: observe, apply an action, take gradient steps, until the budget ends.

The dynamics exist here and nowhere else: the scalar environment, the vector environment, `adapt()`, the tuner
and the benchmark are views of it. An N-lane run equals N one-lane runs, step by step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lepton_rl.controls import KNOBS, PULL_BACK, Controls, ControlSettings
from lepton_rl.engine import Engine
from lepton_rl.errors import InputError
from lepton_rl.signals import Memory, TaskFacts, measure, observe
from lepton_rl.task import VisibleTask
from lepton_rl.views import Views

DECISIONS = 8
MIN_INTERVAL = 5  # gradient steps between two decisions; fewer say nothing


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What one decision led to, per lane.

    Attributes:
        steps: Gradient steps taken.
        ended: Whether the run is over (budget used, stopped or diverged).
        diverged: Whether weights became non-finite; they are back at the last finite ones.
    """

    steps: list[int]
    ended: list[bool]
    diverged: list[bool]


def decisions_of(budget: int) -> int:
    """Return how many decisions a budget has room for, at most `DECISIONS`.

    Raises:
        InputError: If the budget is below one decision.
    """
    if budget < MIN_INTERVAL:
        raise InputError(
            f"budget {budget} is below one decision: expected at least {MIN_INTERVAL} gradient steps; raise the budget"
        )
    return min(DECISIONS, budget // MIN_INTERVAL)


class AdaptationRun:
    """N runs on the lanes of one engine.

    Start every lane before the first `step`. A lane that has ended stays as it is until it is started again.

    Args:
        engine: Does the gradient steps.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        n = engine.lanes
        self.controls = Controls.start([ControlSettings()] * n, engine.device)
        self.decision = [0] * n
        self.decisions = [0] * n
        self.over = [True] * n
        self.views: Views
        self._facts: list[TaskFacts | None] = [None] * n
        self._memory: Memory | None = None
        self._finite: list[dict[str, Tensor]] = [{} for _ in range(n)]

    def start(self, tasks: dict[int, tuple[VisibleTask, int, ControlSettings]]) -> Tensor:
        """Start lanes on tasks and return the observation of all lanes.

        Args:
            tasks: For each lane to start: the task, the lane's seed, and the knobs it starts with.

        Returns:
            float32 `[lanes, signals]`.
        """
        if tasks:
            self._load(tasks)
        marked = torch.tensor([lane in tasks for lane in range(self.engine.lanes)], device=self.engine.device)
        self.views = self.engine.views()
        if self._memory is None:
            self._memory = Memory.blank(self.engine, self.views)
        memory = self._memory.begin(marked, self.views, self._memory.start)
        measured = measure(self.engine, self.views, memory, self._known_facts())
        self._memory = memory.begin(marked, self.views, measured)
        return observe(self.engine, self.views, measured, self._memory, self.controls, self._known_facts())

    def _load(self, tasks: dict[int, tuple[VisibleTask, int, ControlSettings]]) -> None:
        self.engine.load_lanes({lane: (task, seed) for lane, (task, seed, _) in tasks.items()})
        self.controls = self.controls.put({lane: settings for lane, (_, _, settings) in tasks.items()})
        snapshots = self.engine.snapshots()
        for lane, (task, _, _) in tasks.items():
            self.decisions[lane] = decisions_of(task.budget)
            self.decision[lane], self.over[lane] = 0, False
            self._facts[lane] = TaskFacts.of(task)
            self._finite[lane] = snapshots[lane]

    def look_at_original(self, views: Views) -> Tensor:
        """Measure networks that were not touched yet, `[lanes, 18]` in the order of `signals.MEASURED_NAMES`.

        Args:
            views: Of target images under the source's normalisation statistics: what a user has before adapting.
        """
        assert self._memory is not None, "start the lanes first"
        return measure(self.engine, views, self._memory, self._known_facts())

    def step(self, actions: Tensor) -> tuple[Tensor, StepOutcome]:
        """Apply one action per lane, take the window's gradient steps, and observe.

        Args:
            actions: int64 `[lanes, 12]` in the order of `controls.KNOBS`.

        Returns:
            Observation float32 `[lanes, signals]`, and what happened.
        """
        outcome = self.advance(actions)
        return self._observe(), outcome

    def advance(self, actions: Tensor) -> StepOutcome:
        """Step without observing, where nobody looks: what `step` does to the run, for less."""
        assert self._memory is not None, "start the lanes first"
        pulled, stopped = ((actions[:, KNOBS.index(knob)] == 1).tolist() for knob in ("transfer", "stop"))
        self.controls = self.controls.apply(actions.to(self.engine.device))
        pulled = [pull and not over for pull, over in zip(pulled, self.over, strict=True)]
        if any(pulled):
            self.engine.pull_back(torch.tensor(pulled, device=self.engine.device), PULL_BACK)
        steps = [
            0 if stop or over else self._window(lane)
            for lane, (stop, over) in enumerate(zip(stopped, self.over, strict=True))
        ]
        if max(steps) > 0:
            stats = self.engine.train(self.controls, steps)
            self._memory = self._memory.after(stats)
            finite = self.engine.finite() & torch.isfinite(stats.terms).all(1)
        else:
            finite = self.engine.finite()
        diverged = self._recover(finite.tolist())
        for lane in range(self.engine.lanes):
            if not self.over[lane]:
                self.decision[lane] += 1
                self.over[lane] = stopped[lane] or diverged[lane] or self.decision[lane] >= self.decisions[lane]
        return StepOutcome(steps=steps, ended=list(self.over), diverged=diverged)

    def _window(self, lane: int) -> int:
        """Return the gradient steps of a lane's next window; the windows add up to the budget exactly."""
        task = self.engine.tasks[lane]
        assert task is not None
        d, n = self.decision[lane], self.decisions[lane]
        return task.budget * (d + 1) // n - task.budget * d // n

    def _recover(self, finite: list[bool]) -> list[bool]:
        """Put lanes that diverged back to their last finite weights, and remember those of the others."""
        diverged = [not ok and not over for ok, over in zip(finite, self.over, strict=True)]
        snapshots = self.engine.snapshots()
        for lane, bad in enumerate(diverged):
            if bad:
                self.engine.restore(lane, self._finite[lane])
            elif not self.over[lane]:
                self._finite[lane] = snapshots[lane]
        return diverged

    def adopt(self, lane: int, weights: dict[str, Tensor]) -> None:
        """Let a lane go on from other weights, another lane's `checkpoint` for example; its moments start anew."""
        self.engine.restore(lane, weights)
        self._finite[lane] = weights

    def checkpoint(self, lane: int) -> dict[str, Tensor]:
        """Return the weights and statistics after the last decision; always finite."""
        return self._finite[lane]

    def state(self) -> dict[str, Tensor]:
        """Return all that the next step depends on, weights apart: those of `checkpoint` are the engine's."""
        assert self._memory is not None, "start the lanes first"
        return {
            "decision": torch.tensor(self.decision),
            "over": torch.tensor(self.over),
            **{f"controls.{field.name}": getattr(self.controls, field.name) for field in fields(Controls)},
            **{f"memory.{field.name}": getattr(self._memory, field.name) for field in fields(Memory)},
            **{f"engine.{name}": value for name, value in self.engine.state().items()},
        }

    def load_state(self, state: Mapping[str, Tensor], weights: Sequence[dict[str, Tensor]]) -> None:
        """Go on from what `state` gave; first `start` the lanes on their tasks.

        Args:
            state: Of a run on the same tasks and seeds.
            weights: `checkpoint` of every lane at that moment.
        """
        decision, over = state["decision"].tolist(), state["over"].tolist()
        if any(not 0 <= now <= last for now, last in zip(decision, self.decisions, strict=True)):
            raise ValueError(f"decisions {decision} are out of range: expected at most {self.decisions}")
        for lane, mine in enumerate(weights):
            self.engine.restore(lane, mine)
            self._finite[lane] = mine
        prefix = "engine."
        self.engine.load_state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        put = {name: value.to(self.engine.device) for name, value in state.items()}
        self.controls = Controls(**{field.name: put[f"controls.{field.name}"] for field in fields(Controls)})
        self._memory = Memory(**{field.name: put[f"memory.{field.name}"] for field in fields(Memory)})
        self.decision, self.over = decision, over
        self.views = self.engine.views()

    def _observe(self) -> Tensor:
        assert self._memory is not None
        self.views = self.engine.views()
        measured = measure(self.engine, self.views, self._memory, self._known_facts())
        observation = observe(self.engine, self.views, measured, self._memory, self.controls, self._known_facts())
        self._memory = self._memory.advance(self.views, measured)
        return observation

    def _known_facts(self) -> list[TaskFacts]:
        blank = TaskFacts(class_prior=None, labels_per_class=0, parameters=1, target_images=1)
        return [facts or blank for facts in self._facts]
