"""Signals by which a user, Snakemake or a scheduler asks a command to end: SIGINT, SIGTERM and SIGUSR1.

Python ends at once at the last two, and leaves behind what it was writing.  Here every one of them raises ``Ended``,
so that clean-ups run, or, while a block is ``deferred``, is only noted until the block comes to a good place to end.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C; kill, preemption; SLURM's --signal=USR1@seconds
ECHO_SECONDS = 1.0  # a signal to a whole group of processes may arrive twice, also from a launcher that passes it on


class Ended(SystemExit):
    """A signal asked the process to end; the exit status is 128 + the signal's number, as a shell has it."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(128 + number)
        self.number = number
        self.message = message or f"ended by {name(number)}"


def name(number: int) -> str:
    """What a signal is called, such as SIGTERM."""
    return signal.Signals(number).name


class Request:
    """The signal, if any, that came while a block was deferred."""

    def __init__(self) -> None:
        self.number = 0
        self._time = 0.0

    def note(self, number: int) -> None:
        """Remember the first signal; raise Ended at the second, unless it is an echo of the first."""
        if self.number and not (number == self.number and time.monotonic() - self._time < ECHO_SECONDS):
            raise Ended(number)
        if not self.number:
            self.number, self._time = number, time.monotonic()


@contextmanager
def raised() -> Iterator[None]:
    """While the block runs, the signals raise Ended at once."""
    with _handled(_raise):
        yield


@contextmanager
def deferred() -> Iterator[Request]:
    """While the block runs, the first signal is only noted; the block looks, and leaves where it is good to leave.

    Raises Ended after the block if it did not.
    """
    request = Request()
    with _handled(request.note):
        yield request
    if request.number:
        raise Ended(request.number)


def _raise(number: int) -> None:
    raise Ended(number)


@contextmanager
def _handled(respond: Callable[[int], None]) -> Iterator[None]:
    """Put in handlers, and the former ones back; nothing outside the main thread, where Python has no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def handle(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked helper, which has nothing to clean up
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        respond(number)

    # What is ignored stays so: SIGINT in a job that a shell has put in the background.
    former = {number: signal.getsignal(number) for number in ENDING if signal.getsignal(number) != signal.SIG_IGN}
    for number in former:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
