"""A SLURM cluster that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from slurm import cluster


@pytest.fixture(scope="session")
def clusters() -> ModuleType:
    """What starts a cluster: ``cluster.py``."""
    return cluster


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
