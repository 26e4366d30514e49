"""Processes among which a step divides its work, and which end when it does, whatever ends it."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from threading import Thread

from saferclip.provenance import available_cores


def pool() -> ProcessPoolExecutor:
    """A process for each core that there is."""
    return ProcessPoolExecutor(available_cores(), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Where the step is killed, its processes would wait for ever for somebody to take their results."""
    parent = multiprocessing.parent_process()
    assert parent, "only a process that another one has started calls this"

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
