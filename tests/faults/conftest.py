"""Projects to run and to break, and a count of every fault that was injected."""

from __future__ import annotations

import csv
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
COLUMNS = ("fault", "stage", "outcome")


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the module they are of
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """What starts, watches, kills and compares runs: ``runs.py``."""
    return _load("saferclip_fault_runs", HERE / "runs.py")


@pytest.fixture(scope="session")
def project_copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A function name -> a new project folder with the project's files, as in the tests of the workflow."""
    projects = _load("saferclip_fault_projects", HERE.parent / "workflow/conftest.py")
    return lambda name: projects.Project.copy(tmp_path_factory.mktemp(name))


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
