"""Lanes that go on in halves when the device has no memory for all of them at once."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lepton_rl.envs.session import Session

Work = Callable[[Session, list[int]], tuple[Any, ...]]


class HalvingSession:
    """A session that is split in two, and those in two, when the device is out of memory.

    What the lanes had done is played again on the smaller engines: tasks, seeds and actions are known and every
    draw is a function of them, so that an episode goes on where it was.

    Args:
        session: All lanes.
    """

    def __init__(self, session: Session) -> None:
        self.lanes, self.defaults = session.lanes, session.defaults
        self._parts = [(session, list(range(session.lanes)))]

    @property
    def sizes(self) -> list[int]:
        """Numbers of lanes that are computed at once."""
        return [len(lanes) for _, lanes in self._parts]

    def start(self, rngs: dict[int, np.random.Generator]) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Start an episode on the given lanes, as `Session.start`."""

        def work(session: Session, lanes: list[int]) -> tuple[Any, ...]:
            mine = {k: rngs[lane] for k, lane in enumerate(lanes) if lane in rngs}
            states = {k: rng.bit_generator.state for k, rng in mine.items()}
            try:
                return session.start(mine)
            except torch.OutOfMemoryError:
                for k, rng in mine.items():  # the same tasks are drawn when it is tried again
                    rng.bit_generator.state = states[k]
                raise

        observations, infos = self._each(work)
        return observations, infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Apply one action per lane, as `Session.step`."""
        observations, rewards, ended, infos = self._each(lambda session, lanes: session.step(actions[lanes]))
        return observations, rewards, ended, infos

    def _each(self, work: Work) -> list[Any]:
        """Do some work on every part, smaller parts where memory runs out, and join what comes back."""
        waiting, answers = self._parts, []
        self._parts = []
        while waiting:
            session, lanes = waiting.pop(0)
            try:
                answer = work(session, lanes)
            except torch.OutOfMemoryError:
                if len(lanes) == 1:
                    raise
                answer = None  # what failed holds memory until this block is left
            if answer is None:
                waiting = [(half, [lanes[k] for k in part]) for half, part in session.halves()] + waiting
                self._tell(lanes)
                continue
            self._parts.append((session, lanes))
            answers.append((lanes, answer))
        return [self._joined([(lanes, answer[i]) for lanes, answer in answers]) for i in range(len(answers[0][1]))]

    def _tell(self, lanes: list[int]) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        said = f"the device has no memory for {len(lanes)} lanes at once: going on with half of them at a time"
        warnings.warn(said, RuntimeWarning, stacklevel=2)

    def _joined(self, parts: list[tuple[list[int], Any]]) -> Any:  # noqa: ANN401
        first = parts[0][1]
        if isinstance(first, list):
            found: list[Any] = [None] * self.lanes
            for lanes, values in parts:
                for lane, value in zip(lanes, values, strict=True):
                    found[lane] = value
            return found
        joined = np.zeros((self.lanes, *first.shape[1:]), dtype=first.dtype)
        for lanes, values in parts:
            joined[lanes] = values
        return joined
