"""Run in a child of pytest's fork server: one ``saferclip`` command, to which something happens on its way.

``runpy`` is given ``arguments``, ``environment``, ``log`` (standard error) and ``accidents``: names of functions here,
each with its arguments.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def signal_after_step(step: int, number: int, group: bool = False) -> None:
    """Send a signal to this process, or to its group, once a step (from 1, of this process's own) is taken."""
    _after_step(step, lambda: os.killpg(0, number) if group else os.kill(os.getpid(), number))


def _after_step(wanted: int, act: Callable[[], None]) -> None:
    from saferclip.training.tuner import Tuner

    take, taken = Tuner.steps, 0

    def steps(self: Tuner, *arguments: Any) -> Iterator[dict[str, float]]:
        nonlocal taken
        for numbers in take(self, *arguments):
            taken += 1
            if taken == wanted:
                act()
            yield numbers

    Tuner.steps = steps  # type: ignore[method-assign]


def limit_files(size: int) -> None:
    """Let no file become larger than ``size`` bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def hang_while_writing() -> None:
    """Let learning-rate-selection write half a file, say so, and go to sleep; the first signal finds it there."""
    from saferclip import io
    from saferclip.training import selection

    def select(_runs: Any, output: Path) -> None:
        with io.atomic_path(output) as temporary:
            temporary.write_text("half")
            print("half written", file=sys.stderr, flush=True)
            time.sleep(60)

    selection.select = select


def run(arguments: list[str], environment: dict[str, str], log: str, accidents: dict[str, list[Any]]) -> None:
    """Become the command."""
    os.setsid()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    for name, values in accidents.items():
        globals()[name](*values)
    from saferclip.cli import main

    main(arguments)


if __name__ == "child":
    run(**globals()["job"])
