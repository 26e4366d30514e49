"""A SLURM cluster that the tests of this folder share, and copies of the project to run on it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the module they are of
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def clusters() -> ModuleType:
    """What starts a cluster: ``cluster.py``."""
    return _load("saferclip_slurm_cluster", HERE / "cluster.py")


@pytest.fixture(scope="module")
def slurm(clusters: ModuleType) -> Iterator[Any]:
    """A running cluster, which every command that a test starts finds in its environment."""
    try:
        clusters.install()
    except clusters.Failed as error:
        pytest.skip(f"no SLURM cluster here: {error}")
    with clusters.cluster() as made, pytest.MonkeyPatch.context() as patch:
        for name in ("SLURM_CONF", "PATH"):
            patch.setenv(name, made.environment[name])
        yield made


@pytest.fixture(scope="session")
def project_copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A function name -> a new project folder with the project's files, as in the tests of the workflow."""
    projects = _load("saferclip_slurm_projects", HERE.parent / "workflow/conftest.py")
    return lambda name: projects.Project.copy(tmp_path_factory.mktemp(name))
