"""The crew on a Ray cluster: the same jobs, on as many machines as the cluster has.

Ray is the optional extra `ray` and is imported here alone. Every machine needs the same versions of this package
and of the suite's data, and reads the folder `--out` only when the tuners' state lies there: use a database or a
shared file system to let killed searches go on.
"""

import importlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import torch

from lepton_rl.agents.crew import CHECK_SECONDS, TRIES, Done, Handler, Lazy, attempt, go_on
from lepton_rl.errors import InputError
from lepton_rl.stopping import handlers_kept


class _Hand:
    """An actor that does one job at a time with one thread."""

    def __init__(self, start: Callable[[], Handler]) -> None:
        torch.set_num_threads(1)
        self._handler = Lazy(start)

    def do(self, job: Any) -> Done:  # noqa: ANN401
        return attempt(self._handler, job)


class RayCrew:
    """A context manager with the interface of `Crew`, whose workers are actors of one core each.

    Args:
        workers: Number of actors; 0 = one per core of the cluster.
        start: As in `Crew`.
        address: Of the cluster: host:port, `auto`, or `local` for one that lives as long as this context.
        check: As in `Crew`.

    Raises:
        InputError: If Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self, workers: int, start: Callable[[], Handler], address: str, check: Callable[[], None] = go_on
    ) -> None:
        try:
            ray = importlib.import_module("ray")
            ray.init  # noqa: B018 - a folder called `ray` can be imported too
        except (ImportError, AttributeError):
            raise InputError(
                f"address {address!r} needs Ray, which is not installed: expected `pip install lepton_rl[ray]`"
            ) from None
        self._ray, self._start, self._address, self._size = ray, start, address, workers
        self._check = check

    def __enter__(self) -> Self:
        """Join the cluster."""
        self._joined = not self._ray.is_initialized()
        if self._joined:
            try:
                with handlers_kept():
                    self._ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:120]
                raise InputError(
                    f"address {self._address!r} leads to no Ray cluster ({reason}): expected host:port, auto or "
                    "local; start one with `ray start --head`"
                ) from None
        self._size = self._size or int(self._ray.cluster_resources().get("CPU", 1))
        self._hand = self._ray.remote(num_cpus=1, max_restarts=0)(_Hand)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the cluster; the actors end with it."""
        if self._joined:
            self._ray.shutdown()

    def run(self, jobs: Iterable[Any]) -> Iterator[Done]:
        """Do jobs and yield each when it is done; a dead actor costs its job a second try."""
        waiting = deque(jobs)
        hands = [self._hand.remote(self._start) for _ in range(min(self._size, len(waiting)))]
        under_way: dict[Any, tuple[Any, Any]] = {}
        deaths: Counter[Any] = Counter()
        while waiting or under_way:
            while waiting and hands:
                hand, job = hands.pop(), waiting.popleft()
                under_way[hand.do.remote(job)] = (hand, job)
            self._check()
            finished, _ = self._ray.wait(list(under_way), num_returns=1, timeout=CHECK_SECONDS)
            if not finished:
                continue
            [ready] = finished
            hand, job = under_way.pop(ready)
            try:
                done: Done = self._ray.get(ready)
                hands.append(hand)
            except self._ray.exceptions.RayError as problem:
                hands.append(self._hand.remote(self._start))
                deaths[job] += 1
                if deaths[job] < TRIES:
                    waiting.appendleft(job)
                    continue
                done = Done(job=job, problem=f"its worker died {TRIES} times ({type(problem).__name__})")
            yield done
        for hand in hands:
            self._ray.kill(hand)
