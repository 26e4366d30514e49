"""A run that seems finished, for asking what Snakemake would do."""

from __future__ import annotations

import pytest
from projects import Project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which the default run seems to have been made."""
    project = Project.copy(tmp_path_factory.mktemp("finished"))
    project.pretend()
    return project
