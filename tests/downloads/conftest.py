"""The loopback server of the rehearsal, and faults to give it."""

from __future__ import annotations

import csv
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import saferclip.downloads.web as web_module
from saferclip.downloads.table import COLUMNS

SERVER = Path(__file__).parents[1] / "rehearsal/server.py"
HOST = "files.example"


@pytest.fixture(scope="session")
def server() -> ModuleType:
    """The module of the loopback server."""
    spec = importlib.util.spec_from_file_location("rehearsal_server", SERVER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["rehearsal_server"] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub(server: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A running server with nothing on it, which the environment names as the hub."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with server.Hub(tmp_path / "served") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries of milliseconds, and what was logged is shown."""
    monkeypatch.setattr(web_module, "FIRST_PAUSE", 0.002)
    logging.getLogger("saferclip").setLevel(logging.INFO)


@pytest.fixture
def put(hub: Any) -> Callable[[str, bytes], str]:
    """A function (path, content) -> address: puts a file on the web server."""

    def write(name: str, content: bytes) -> str:
        path = hub.root / "web" / HOST / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return f"{hub.address}/web/{HOST}/{name}"

    return write


@pytest.fixture
def repository(hub: Any) -> Callable[..., Path]:
    """A function (kind, name, **files) -> folder: puts a repository on the hub; '__' in a file's name is a slash."""

    def write(kind: str, name: str, files: dict[str, bytes], gated: bool = False) -> Path:
        folder = hub.root / kind / name
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        if gated:
            (folder / ".gated").touch()
        return Path(folder)

    return write


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """A function (**cells) -> path of a versions table with that one row."""

    def write(**cells: Any) -> Path:
        path = tmp_path / "versions.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerow({"name": "thing", "licence": "mit", **cells})
        return path

    return write


@pytest.fixture
def random_bytes() -> bytes:
    """A file of 400 kB."""
    return os.urandom(400_000)
