"""pyproject.toml, the lock file and environment.yml describe one environment; every module of the package imports."""

from __future__ import annotations

import importlib
import pkgutil
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import saferclip

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()


def locked() -> dict[str, list[Requirement]]:
    """Name -> its pinned versions; more than one where they differ between platforms or Pythons."""
    pins: dict[str, list[Requirement]] = {}
    for line in re.findall(r"^([a-z0-9].*?) ?\\?$", LOCK, re.MULTILINE):
        requirement = Requirement(line)
        pins.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return pins


def required() -> list[Requirement]:
    project = PROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values(), PROJECT["build-system"]["requires"]]
    return [Requirement(line) for group in groups for line in group]


def version_of(pin: Requirement) -> Version:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", pin
    return Version(specifier.version)


@pytest.mark.parametrize("requirement", required(), ids=lambda requirement: requirement.name)
def test_the_lock_holds_what_the_project_asks_for(requirement: Requirement) -> None:
    pins = locked().get(canonicalize_name(requirement.name))
    assert pins, f"{requirement.name} is not locked: make lock"
    for pin in pins:
        assert version_of(pin) in requirement.specifier, f"{pin} is outside the project's range: make lock"


def test_every_pin_has_hashes_and_no_index_is_named() -> None:
    blocks = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) > 100
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []
    assert not re.search(r"https?://|--index|--find-links|--extra", LOCK)


def test_torch_and_torchvision_are_of_one_release() -> None:
    """torch 2.11 goes with torchvision 0.26, and so on: their metadata do not say so."""
    pins = locked()
    (torch,), (torchvision,) = pins["torch"], pins["torchvision"]
    assert version_of(torchvision).minor == version_of(torch).minor + 15
    ranges = {requirement.name: requirement.specifier for requirement in required()}
    assert (ranges["torch"], ranges["torchvision"]) == (SpecifierSet(">=2.11"), SpecifierSet(">=0.26"))


def test_conda_builds_the_locked_environment() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["--requirement requirements.lock"]
    (python,) = [entry for entry in environment["dependencies"] if str(entry).startswith("python ")]
    assert SpecifierSet(python.removeprefix("python ")) == SpecifierSet(PROJECT["project"]["requires-python"])


def test_make_installs_the_locks_and_nothing_beside_them() -> None:
    installs = re.findall(r"pip install (.*)", (ROOT / "Makefile").read_text())
    assert len(installs) == 2
    assert "--require-hashes --requirement requirements.lock" in installs[0]
    assert "--no-deps --no-build-isolation --editable ." in installs[1]


def test_continuous_integration_runs_make_test_and_nothing_else() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & stat.S_IXUSR
    commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert commands == ["set -eu", 'cd "$(dirname "$0")/.."', "exec make test"]


@pytest.mark.parametrize("name", [module.name for module in pkgutil.walk_packages(saferclip.__path__, "saferclip.")])
def test_every_module_imports(name: str) -> None:
    if name != "saferclip.__main__":  # which would run the command line
        importlib.import_module(name)


def test_the_citation_has_the_package_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == saferclip.__version__
    assert citation["license"] == PROJECT["project"]["license"]
