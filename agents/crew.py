"""Processes that do one job at a time, and a death among them costs no more than its own job a second try."""

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

import torch

from lepton_rl.errors import InputError
from lepton_rl.stopping import signals_held_back

TRIES = 2
CHECK_SECONDS = 0.5
Handler = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of a job.

    Attributes:
        job: The job.
        value: What the handler returned; None if it failed.
        problem: Why it failed, in a line; None if it did not.
    """

    job: Any
    value: Any = None
    problem: str | None = None


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def go_on() -> None:
    """Ask nobody."""


class Crew:
    """A context manager that does jobs in spawned processes with one thread each, or right here.

    Args:
        workers: Number of processes; 1 works in this process, where a death cannot be survived.
        start: Called once in every process, when its first job arrives; returns what does a job. It, the jobs
            and the results travel between processes, so functions must be importable.
        check: Called here between jobs, and twice a second while other processes work: what it raises ends the
            context, and the jobs at hand are abandoned.
    """

    def __init__(self, workers: int, start: Callable[[], Handler], check: Callable[[], None] = go_on) -> None:
        """Plan the processes; they start with the context."""
        self._start, self._check = start, check
        self._size = workers
        self._workers: list[_Worker] = []
        self._here = Lazy(start)

    def __enter__(self) -> Self:
        """Start the processes."""
        if self._size > 1:
            self._workers = [_Worker(self._start) for _ in range(self._size)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes, at once when something went wrong."""
        for worker in self._workers:
            worker.end(at_once=kind is not None)

    def run(self, jobs: Iterable[Any]) -> Iterator[Done]:
        """Do jobs and yield each when it is done, in the order in which they end."""
        if self._size > 1:
            yield from self._run_apart(deque(jobs))
        else:
            for job in jobs:
                self._check()
                yield attempt(self._here, job)
            self._check()

    def _run_apart(self, waiting: deque[Any]) -> Iterator[Done]:
        deaths: Counter[Any] = Counter()
        in_a_row = 0
        while waiting or any(worker.busy for worker in self._workers):
            self._check()
            self._hand_out(waiting)
            ready = wait([worker.connection for worker in self._workers if worker.busy], timeout=CHECK_SECONDS)
            for i, worker in enumerate(self._workers):
                if not worker.busy or worker.connection not in ready:
                    continue
                job, done = worker.job, worker.take()
                in_a_row = 0 if done else in_a_row + 1
                if done is None:
                    self._workers[i] = _Worker(self._start)
                    deaths[job] += 1
                    self._check_life(in_a_row, worker)
                    if deaths[job] < TRIES:
                        waiting.appendleft(job)
                        continue
                    done = Done(job=job, problem=f"its worker died {TRIES} times ({worker.epitaph})")
                yield done
        self._check()

    def _hand_out(self, waiting: deque[Any]) -> None:
        """Give every idle worker a job; one that died while it had nothing to do is replaced."""
        for i, worker in enumerate(self._workers):
            if waiting and not worker.busy:
                if not worker.give(waiting[0]):
                    self._workers[i] = worker = _Worker(self._start)
                    worker.give(waiting[0])
                if worker.busy:
                    waiting.popleft()

    def _check_life(self, in_a_row: int, worker: "_Worker") -> None:
        """Stop when nothing but deaths happens: it is not the jobs."""
        if in_a_row > TRIES * self._size + 2:
            raise RuntimeError(
                f"{in_a_row} workers died one after the other ({worker.epitaph}): expected one to live; call "
                "benchmark() under `if __name__ == '__main__':`, or use --workers 1"
            )


class _Worker:
    """One process, and the job that it has."""

    def __init__(self, start: Callable[[], Handler]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, start), daemon=True)
        with signals_held_back():  # the parent, asked to leave, decides what becomes of the job at hand
            self.process.start()
        theirs.close()  # or a death would not end the pipe
        self.job: Any = None
        self.busy = False

    def give(self, job: Any) -> bool:  # noqa: ANN401
        """Hand over a job; False if the process is dead."""
        try:
            self.connection.send(job)
        except OSError:
            self.end(at_once=True)
            return False
        self.job, self.busy = job, True
        return True

    def take(self) -> Done | None:
        """Receive what became of the job; None if the process died over it."""
        try:
            done: Done = self.connection.recv()
        except (EOFError, OSError):
            self.end(at_once=False)  # it is dead or dying; wait for how
            return None
        self.busy = False
        return done

    @property
    def epitaph(self) -> str:
        """Say how the process ended."""
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"signal {-code}, {signal.strsignal(-code)}; perhaps too little memory"
        return f"exit code {code}"

    def end(self, *, at_once: bool) -> None:
        """End the process."""
        self.connection.close()  # the process leaves when it has nothing more to read
        self.process.join(timeout=0.5 if at_once else 5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Lazy:
    """Makes the handler when its first job arrives, so that a failure to make it is told like a job's."""

    def __init__(self, start: Callable[[], Handler]) -> None:
        self._start = start
        self._handler: Handler | None = None

    def __call__(self, job: Any) -> Any:  # noqa: ANN401
        """Do a job."""
        self._handler = self._handler or self._start()
        return self._handler(job)


def _work(connection: Connection, start: Callable[[], Handler]) -> None:
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(1)
    handler = Lazy(start)
    while True:
        try:
            connection.send(attempt(handler, connection.recv()))
        except (EOFError, OSError):  # the parent has gone, or wants this process to go
            return


def _follow_parent() -> None:
    """End this process when its parent is killed: an orphan would write into the files of the next attempt."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def attempt(handler: Handler, job: Any) -> Done:  # noqa: ANN401
    """Do a job; one that fails takes no other with it."""
    try:
        return Done(job=job, value=handler(job))
    except InputError as error:
        return Done(job=job, problem=str(error))
    except Exception as error:
        return Done(job=job, problem=f"{type(error).__name__}: {error}")
