"""Projects to run and to break, and a count of every fault that was injected."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from faults import runs as fault_runs

COLUMNS = ("fault", "stage", "outcome")


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """What starts, watches, kills and compares runs: ``runs.py``."""
    return fault_runs


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[[str, str, str], None]:
    """A function (fault, stage, outcome), called once what it says has been checked: it counts in the summary."""
    return lambda fault, stage, outcome: record_property("fault", [fault, stage, outcome])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many faults of which kind were injected where; SAFERCLIP_FAULTS_CSV names a file to write them to."""
    faults = Counter(
        tuple(value)
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "fault"
    )
    if not faults:
        return
    terminalreporter.section(f"{sum(faults.values())} faults injected")
    for (fault, stage, outcome), count in sorted(faults.items()):
        terminalreporter.write_line(f"{count:4d}  {fault}: {stage}: {outcome}")
    if path := os.environ.get("SAFERCLIP_FAULTS_CSV"):
        with Path(path).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*COLUMNS, "count"])
            writer.writerows([*fault, count] for fault, count in sorted(faults.items()))
