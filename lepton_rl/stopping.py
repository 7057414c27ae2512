"""Being asked to leave: a signal is noted, the work at hand is finished and saved, then the process leaves.

Machines that are lent send SIGTERM (or SIGUSR2, as schedulers of clusters do) some time before they are taken away.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR2") if hasattr(signal, name))


class Stopped(Exception):
    """The work was saved and can be taken up again by the same command; the exit code is 75 (EX_TEMPFAIL)."""


class Unfinished(RuntimeError):
    """The work failed half-way, what came before is saved, and the same command goes on; the exit code is 1."""


class StopRequest:
    """Whether somebody asked this process to leave."""

    def __init__(self) -> None:
        self.name = ""

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        del frame
        self.name = signal.Signals(number).name

    def check(self, done: str) -> None:
        """Leave, if asked to.

        Args:
            done: What is finished and saved, for the message.

        Raises:
            Stopped: If a signal has come.
        """
        if self.name:
            raise Stopped(f"stopped by {self.name} after {done}: what is done is saved; the same command goes on")


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGUSR2 instead of dying of them; outside of the main thread signals stay as they are."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    known = getattr(signal.getsignal(STOP_SIGNALS[0]), "__self__", None)
    if isinstance(known, StopRequest):  # whoever called this one is asked, too
        yield known
        return
    before = {number: signal.signal(number, request.note) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put back what handles stop signals when a library has put its own in its place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Start processes that no stop signal and no Ctrl-C ends: they leave when their pipe closes.

    A terminal or a scheduler signals the whole group of processes. What is started in here inherits the blocked
    signals, from its first instruction on; what comes for this process meanwhile is delivered afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    held = {*STOP_SIGNALS, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
