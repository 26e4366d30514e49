"""The loopback server itself, by the clients that are to believe it is the hub."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import requests
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

SERVER = Path(__file__).with_name("server.py")


@pytest.fixture(scope="module")
def server() -> Any:
    spec = util.spec_from_file_location("loopback_server", SERVER)
    assert spec and spec.loader
    module = util.module_from_spec(spec)
    sys.modules["loopback_server"] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model with folders, a gated dataset, and a file of the web."""
    files = {
        "models/org/name/config.json": b"{}",
        "models/org/name/unet/deep/model.safetensors": b"weights",
        "models/org/name/.hidden": b"",
        "datasets/org/name/train.csv": b"a\n1\n",
        "datasets/org/name/.gated": b"",
        "web/a.example/b c.txt": b"0123456789",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.fixture
def hub(server: Any, root: Path) -> Iterator[Any]:
    with server.Hub(root) as running:
        yield running


def test_listings(hub: Any) -> None:
    api = HfApi(endpoint=hub.address)
    info = api.model_info("org/name", files_metadata=True)
    assert [(file.rfilename, file.size) for file in info.siblings or ()] == [
        ("config.json", 2),
        ("unet/deep/model.safetensors", 7),
    ]
    assert info.sha == hub.repository("models", "org/name", "main").commit
    names = {file.path for file in api.list_repo_tree("org/name", recursive=True, revision=info.sha)}
    assert names == {"config.json", "unet", "unet/deep", "unet/deep/model.safetensors"}
    assert {file.path for file in api.list_repo_tree("org/name")} == {"config.json", "unet"}
    assert [file.path for file in api.list_repo_tree("org/name", "unet")] == ["unet/deep"]
    assert [file.path for file in api.get_paths_info("org/name", ["config.json", "none"])] == ["config.json"]


def test_files_and_refusals(hub: Any, tmp_path: Path) -> None:
    def get(name: str, file: str, **options: Any) -> Path:
        return Path(hf_hub_download(name, file, endpoint=hub.address, cache_dir=tmp_path / "cache", **options))

    assert get("org/name", "unet/deep/model.safetensors").read_bytes() == b"weights"
    with pytest.raises(GatedRepoError, match="401"):
        get("org/name", "train.csv", repo_type="dataset", token=False)
    assert get("org/name", "train.csv", repo_type="dataset", token="hf_some").read_bytes() == b"a\n1\n"
    with pytest.raises(RepositoryNotFoundError):
        get("org/other", "config.json")
    with pytest.raises(RevisionNotFoundError):
        get("org/name", "config.json", revision="a" * 40)
    with pytest.raises(EntryNotFoundError):
        get("org/name", ".hidden")


def test_any_revision(server: Any, root: Path, tmp_path: Path) -> None:
    """So that the commits of the real versions table can be asked for."""
    with server.Hub(root, any_revision=True) as hub:
        assert HfApi(endpoint=hub.address).model_info("org/name", revision="a" * 40).sha == "a" * 40
        options = {"endpoint": hub.address, "cache_dir": tmp_path / "cache", "revision": "a" * 40}
        assert "a" * 40 in hf_hub_download("org/name", "config.json", **options)


@pytest.mark.parametrize(
    ("part", "status", "body"),
    [(None, 200, b"0123456789"), ("bytes=4-", 206, b"456789"), ("bytes=4-5", 206, b"45"), ("bytes=10-", 416, b"")],
)
def test_parts(hub: Any, part: str | None, status: int, body: bytes) -> None:
    answer = requests.get(f"{hub.address}/web/a.example/b%20c.txt", headers={"Range": part}, timeout=10)
    assert (answer.status_code, answer.content) == (status, body)
    assert hub.sent("/web/") == len(body)


def test_proxy_and_command(root: Path) -> None:
    command = [sys.executable, str(SERVER), "--root", str(root), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        try:
            proxies = {"http": address}
            assert requests.get("http://a.example/b c.txt", proxies=proxies, timeout=10).content == b"0123456789"
            assert requests.get("http://a.example/../../models", proxies=proxies, timeout=10).status_code == 404
        finally:
            process.terminate()
