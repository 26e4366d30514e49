"""What the layout promises: every module imports, stages look to their left only, nothing is tied to a machine."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import saferclip

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/saferclip"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# __main__ is the command itself; tests/test_cli.py runs it.
MODULES = [module.name for module in pkgutil.walk_packages(saferclip.__path__, "saferclip.")]
MODULES.remove("saferclip.__main__")

GENERATED = {"__pycache__", "cache", "tmp"}
# Written so that this file holds no such path or host itself.
MACHINE_PATH = re.compile(r"(?<![\w.}\])])/(?:home|root|Users|work|mnt|scratch)/\w")
REGISTRY_HOST = re.compile(r"\b(?:pypi|pythonhosted|anaconda|npmjs)\.(?:org|com|io)\b")


def written_files() -> Iterator[Path]:
    """What people wrote: the top level's files, and the folders of code, settings and text."""
    yield from (path for path in ROOT.iterdir() if path.is_file())
    for folder in ("src", "tests", "config", "workflow", "docs", "benchmarks", ".ci", ".dvc", ".github"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not GENERATED & set(path.relative_to(ROOT).parts):
                yield path


def imports(source: Path) -> Iterator[str]:
    """Names of all modules that a file imports, at whatever depth."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_every_source_file_is_a_module() -> None:
    """A folder without __init__.py would be left out of the tests below, and of the package."""
    names = {".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in SOURCES}
    packages = {name.removesuffix(".__init__") for name in names}
    assert packages == {"saferclip", "saferclip.__main__", *MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name)


def test_stages_read_from_their_left() -> None:
    """The contract in pyproject.toml is kept."""
    command = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache', '--no-logo'])"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_the_contract_knows_every_stage_and_shared_module() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = {name.strip() for layer in settings["contracts"][0]["layers"] for name in layer.split("|")}
    top = {name for name in MODULES if name.count(".") == 1}
    assert layers == top


def test_the_package_knows_nothing_of_snakemake() -> None:
    found = {str(path) for path in SOURCES for name in imports(path) if name.partition(".")[0] == "snakemake"}
    assert not found


def test_everything_public_says_what_it_is() -> None:
    silent = []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
        silent += [f"{path}: {getattr(node, 'name', '')}" for node in [tree, *public] if not ast.get_docstring(node)]
    assert not silent


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY_HOST], ids=["path of a machine", "host of a registry"])
def test_nothing_is_tied_to_a_machine_or_a_registry(pattern: re.Pattern[str]) -> None:
    files = list(written_files())
    assert {ROOT / "Snakefile", ROOT / "requirements.lock", Path(__file__)} <= set(files)
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files
        for match in pattern.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not found


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (MACHINE_PATH, "folder = '/home/" + "someone/data'"),
        (MACHINE_PATH, "/Users/" + "someone"),
        (REGISTRY_HOST, "https://" + "pypi" + ".org/simple"),
    ],
)
def test_the_patterns_find_what_they_look_for(pattern: re.Pattern[str], text: str) -> None:
    assert pattern.search(text)
