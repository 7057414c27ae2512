"""A vector environment whose lanes are dealt onto worker processes, for machines without a GPU."""

import multiprocessing
import os
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from lepton_rl.agents.sb3_vec_env import lane_info
from lepton_rl.envs.spaces import action_space, observation_space
from lepton_rl.envs.vector import FineTuneVectorEnv
from lepton_rl.models import TRAIN_ARCHITECTURES
from lepton_rl.stopping import Unfinished, signals_held_back


class WorkerDied(Unfinished):
    """A worker process ended, for example for want of memory."""


class WorkerVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """The lanes of a `FineTuneVectorEnv`, stepped by several processes with one thread each.

    Every lane does what it would do in one process: results do not depend on the number of workers, or by no more than
    rounding where the lanes of a worker are fleets.

    Args:
        num_envs: Number of lanes.
        workers: Number of processes.
        fleet: As in `FineTuneVectorEnv`; lanes of one architecture then come together, for fleets as large as may be.
        architectures: As in `FineTuneVectorEnv`.
        arguments: Further arguments of `FineTuneVectorEnv`.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int,
        workers: int,
        *,
        fleet: bool = False,
        architectures: tuple[str, ...] = TRAIN_ARCHITECTURES,
        **arguments: Any,  # noqa: ANN401
    ) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = observation_space(), action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        kinds = [architectures[lane % len(architectures)] for lane in range(num_envs)]
        self._lanes = _deal(kinds, min(workers, num_envs), together=fleet)
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for lanes in self._lanes:
            ours, theirs = context.Pipe()
            # Lane i keeps its architecture wherever it runs.
            mine = tuple(kinds[lane] for lane in lanes)
            made = {"num_envs": len(lanes), "architectures": mine, "fleet": fleet, **arguments}
            process = context.Process(target=_serve, args=(theirs, made), daemon=True)
            if os.name == "posix":
                resource_tracker.ensure_running()  # starting it would let the signals through again
            # What ends the training must not end its workers first: they leave when the pipe closes.
            with signals_held_back():
                process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start every lane; lane i is seeded with `seed + i`, or with entry i of a list."""
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        mine = [None if seeds is None else [seeds[lane] for lane in lanes] for lanes in self._lanes]
        answers = self._ask("reset", mine)
        observations = np.zeros(self.observation_space.shape or (), dtype=np.float32)
        for lanes, (seen, _) in zip(self._lanes, answers, strict=True):
            observations[lanes] = seen
        return observations, self._merge([infos for _, infos in answers])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step every lane, the workers at the same time."""
        answers = self._ask("step", [np.asarray(actions)[lanes] for lanes in self._lanes])
        observations = np.zeros(self.observation_space.shape or (), dtype=np.float32)
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), dtype=bool)
        for lanes, (seen, paid, ended, cut, _) in zip(self._lanes, answers, strict=True):
            observations[lanes], rewards[lanes], terminated[lanes], truncated[lanes] = seen, paid, ended, cut
        return observations, rewards, terminated, truncated, self._merge([answer[-1] for answer in answers])

    def _ask(self, what: str, arguments: list[Any]) -> list[Any]:
        answers = []
        asked = 0
        try:
            for pipe, argument in zip(self._pipes, arguments, strict=True):
                pipe.send((what, argument))
                asked += 1
            for pipe in self._pipes:
                answers.append(pipe.recv())
        except (EOFError, OSError):
            number = len(answers) if asked == len(self._pipes) else asked
            self._processes[number].join(timeout=2)
            code = self._processes[number].exitcode
            self.close()
            raise WorkerDied(f"worker {number} died (exit code {code}) while it was asked to {what}") from None
        for answer in answers:
            if isinstance(answer, Exception):
                self.close()
                raise answer
        return answers

    def _merge(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """Deal the workers' merged infos back onto the lanes."""
        merged: dict[str, Any] = {}
        for lanes, part in zip(self._lanes, parts, strict=True):
            for k, lane in enumerate(lanes):
                merged = self._add_info(merged, lane_info(part, k), int(lane))
        return merged

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ANN401
        """End the worker processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=2)
            if process.is_alive():  # in the middle of a step, and deaf to SIGTERM
                process.kill()
                process.join()


def _deal(kinds: list[str], workers: int, *, together: bool) -> list[np.ndarray]:
    """Deal the lanes onto the workers: those of one kind together, or in turn, so that kinds are dealt evenly."""
    if not together:
        return [np.arange(worker, len(kinds), workers) for worker in range(workers)]
    return np.array_split(np.argsort([kinds.index(kind) for kind in kinds], kind="stable"), workers)


def _serve(pipe: Connection, made: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    env = FineTuneVectorEnv(**made)
    while True:
        try:
            what, argument = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):  # the parent has gone, perhaps without reading the last answer
            return
        try:
            answer: Any = env.reset(seed=argument) if what == "reset" else env.step(argument)
        except Exception as error:  # the parent raises it; a worker that died silently would hang the training
            answer = error
        try:
            pipe.send(answer)
        except OSError:  # the parent has gone
            return
