"""Processes that share a step's work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saferclip import workers

# Each result is more than a pipe holds, so that the worker waits until somebody has read it.
STEP = """
import os, time
from saferclip import workers

def work(number):
    print(os.getpid(), flush=True)
    return bytes(10_000_000)

with workers.pool() as pool:
    list(pool.map(work, range(1000)))
"""


def test_work_comes_back_in_order() -> None:
    with workers.pool() as pool:
        assert list(pool.map(abs, range(-9, 0))) == list(range(9, 0, -1))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found through Linux's /proc")
def test_a_killed_step_leaves_no_process() -> None:
    with subprocess.Popen([sys.executable, "-c", STEP], stdout=subprocess.PIPE, text=True) as step:
        assert step.stdout
        started = {int(step.stdout.readline()) for _ in range(20)}
        step.send_signal(signal.SIGKILL)
        step.wait()
        end = time.monotonic() + 60
        while living := {pid for pid in started if _lives(pid)}:
            if time.monotonic() > end:
                for pid in living:
                    os.kill(pid, signal.SIGKILL)
                pytest.fail(f"{len(living)} of {len(started)} processes outlived the step")
            time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
