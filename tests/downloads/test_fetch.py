"""The step `download` on rows of every kind, against a loopback hub; and pinning."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from click.testing import CliRunner

from saferclip.cli import main
from saferclip.downloads import DownloadError, read_table, visible_files
from saferclip.downloads import hub as hub_module
from saferclip.downloads.fetch import fetch, pin

WEIGHTS = bytes(range(256)) * 400
FILES = {"config.json": b"{}", "unet/model.safetensors": WEIGHTS, "model.bin": b"pickle", "README.md": b"words"}

Repository = Callable[..., Path]
Table = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "downloads"


def downloaded(folder: Path, table: Path, retries: int = 0) -> dict[str, Any]:
    """Fetch 'thing' and return its manifest."""
    fetch("thing", table, folder, 4, retries)
    return dict(json.loads((folder / "thing.json").read_text()))


def refused(folder: Path, table: Path, retries: int = 0) -> str:
    """Why 'thing' cannot be fetched: one line."""
    with pytest.raises(DownloadError) as caught:
        fetch("thing", table, folder, 4, retries)
    assert "\n" not in str(caught.value)
    assert not (folder / "thing.json").exists()
    return str(caught.value)


def visible(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in visible_files(place)}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fault_path(hub: Any, folder: Path, file: str) -> str:
    """The address of a repository's file at its commit, without the host."""
    kind, name = folder.relative_to(hub.root).parts[0], "/".join(folder.relative_to(hub.root).parts[1:])
    prefix = "datasets/" if kind == "datasets" else ""
    return f"/{prefix}{name}/resolve/{hub.repository(kind, name, 'main').commit}/{file}"


def test_a_repository_by_patterns(hub: Any, repository: Repository, table: Table, folder: Path) -> None:
    repository("models", "org/name", FILES)
    path = table(kind="hf-model", source="org/name", files="*.json;*.safetensors")
    manifest = downloaded(folder, path)
    assert visible(folder / "thing") == {"config.json", "unet/model.safetensors"}
    assert manifest == {
        "name": "thing",
        "kind": "hf-model",
        "source": "org/name",
        "revision": hub.repository("models", "org/name", "main").commit,
        "patterns": ["*.json", "*.safetensors"],
        "files": {
            "config.json": {"bytes": 2, "sha256": sha256(b"{}")},
            "unet/model.safetensors": {"bytes": len(WEIGHTS), "sha256": sha256(WEIGHTS)},
        },
    }


def test_what_is_complete_is_left_alone(hub: Any, repository: Repository, table: Table, folder: Path) -> None:
    """Even if a workflow removed the manifest before it runs the step again."""
    repository("datasets", "org/name", FILES)
    path = table(kind="hf-dataset", source="org/name")
    first = downloaded(folder, path)
    before = len(hub.requests)
    (folder / "thing.json").unlink()
    assert downloaded(folder, path) == first
    assert len(hub.requests) == before
    (folder / "thing/config.json").unlink()
    assert downloaded(folder, path) == first
    assert hub.sent("model.safetensors") == len(WEIGHTS)


def test_another_revision_replaces_the_files(hub: Any, repository: Repository, table: Table, folder: Path) -> None:
    place = repository("models", "org/name", FILES)
    downloaded(folder, table(kind="hf-model", source="org/name"))
    (place / "README.md").unlink()
    (place / "config.json").write_bytes(b"{1}")
    commit = hub.repository("models", "org/name", "main").commit
    manifest = downloaded(folder, table(kind="hf-model", source="org/name", revision=commit))
    assert manifest["revision"] == commit
    assert visible(folder / "thing") == FILES.keys() - {"README.md"}
    assert (folder / "thing/config.json").read_bytes() == b"{1}"
    assert hub.sent("model.safetensors") == len(WEIGHTS)


def test_an_unpinned_row_is_warned_about(
    repository: Repository, table: Table, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository("models", "org/name", FILES)
    downloaded(folder, table(kind="hf-model", source="org/name"))
    assert "names no revision for 'thing', so its content may change; `saferclip pin thing` fills it in" in caplog.text


def test_a_gate(repository: Repository, table: Table, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository("datasets", "org/name", FILES, gated=True)
    path = table(kind="hf-dataset", source="org/name", terms="https://hub.example/org/name")
    message = refused(folder, path, retries=3)
    assert "is gated" in message
    assert "accept the terms at https://hub.example/org/name, then set HF_TOKEN or run `hf auth login`" in message
    monkeypatch.setenv("HF_TOKEN", "hf_refused")
    message = refused(folder, path, retries=3)
    assert "your account has no access; accept the terms at https://hub.example/org/name and wait" in message
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    assert downloaded(folder, path)["files"].keys() == FILES.keys()


@pytest.mark.parametrize("kind", ["hf-model", "hf-dataset"])
def test_no_such_repository(hub: Any, table: Table, folder: Path, kind: str) -> None:
    message = refused(folder, table(kind=kind, source="org/none"), retries=3)
    assert f"org/none: the hub has no such repository ({kind}); correct 'source'" in message
    assert len([request for request in hub.requests if "org/none" in request.path]) == 1


def test_no_such_revision(repository: Repository, table: Table, folder: Path) -> None:
    repository("models", "org/name", FILES)
    message = refused(folder, table(kind="hf-model", source="org/name", revision="a" * 40), retries=3)
    assert f"has no revision {'a' * 40}; correct 'revision', or empty it and run `saferclip pin thing`" in message


def test_nothing_matches(repository: Repository, table: Table, folder: Path) -> None:
    repository("models", "org/name", FILES)
    message = refused(folder, table(kind="hf-model", source="org/name", files="*.onnx"))
    assert "nothing matches *.onnx; correct 'files'; it has README.md, config.json" in message


def test_no_hub_within_reach(table: Table, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier, interrupted run left must not pass for the whole."""
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # huggingface_hub waits up to 23 s
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (folder / "thing").mkdir(parents=True)
    (folder / "thing/config.json").write_bytes(b"{}")
    for revision in ("", "a" * 40):
        message = refused(folder, table(kind="hf-model", source="org/name", revision=revision), retries=1)
        assert "the hub cannot be reached; check the network, https_proxy and HF_ENDPOINT" in message
    assert (folder / "thing/config.json").exists()


def test_the_hub_goes_away_between_listing_and_files(
    repository: Repository, table: Table, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository("models", "org/name", FILES)
    listing = hub_module._listing

    def list_and_leave(*arguments: Any) -> Any:
        found = listing(*arguments)
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        return found

    monkeypatch.setattr(hub_module, "_listing", list_and_leave)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    assert "cannot be reached" in refused(folder, table(kind="hf-model", source="org/name"))


def test_offline_by_choice(repository: Repository, table: Table, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository("models", "org/name", FILES)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    started = time.monotonic()
    message = refused(folder, table(kind="hf-model", source="org/name"), retries=50)
    assert "HF_HUB_OFFLINE is set; unset it, or set downloads.local.thing" in message
    assert time.monotonic() - started < 5


def test_a_page_in_place_of_the_hub(hub: Any, table: Table, folder: Path) -> None:
    def page(handler: Any) -> bool:
        handler.send_body(200, b"<html>log in</html>", {"Content-Type": "text/html"})
        return True

    hub.faults["/api/models/org/name"].extend([page] * 2)
    message = refused(folder, table(kind="hf-model", source="org/name"), retries=3)
    assert "is no hub; correct HF_ENDPOINT, or open it in a browser" in message


def test_a_hub_that_is_busy(hub: Any, repository: Repository, table: Table, folder: Path) -> None:
    def busy(handler: Any) -> bool:
        handler.send_body(503, b"", {})
        return True

    place = repository("models", "org/name", FILES)
    hub.faults["/api/models/org/name"].append(busy)
    hub.faults[fault_path(hub, place, "unet/model.safetensors")].append(busy)
    path = table(kind="hf-model", source="org/name")
    assert "the hub answers 503; what was complete is kept" in refused(folder, path)
    assert downloaded(folder, path, retries=3)["files"].keys() == FILES.keys()


def test_a_file_that_breaks_off(
    hub: Any, repository: Repository, table: Table, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub itself goes on from where it was."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)

    def cut(handler: Any) -> bool:
        handler.start(200, {"Content-Length": str(len(WEIGHTS)), "ETag": f'"{sha256(WEIGHTS)}"'})
        handler.write(WEIGHTS[:50_000])
        handler.close_connection = True
        return True

    place = repository("models", "org/name", FILES)
    hub.faults[fault_path(hub, place, "unet/model.safetensors")].append(cut)
    assert downloaded(folder, table(kind="hf-model", source="org/name"))["files"].keys() == FILES.keys()
    (resumed,) = [request for request in hub.requests if "range" in request.headers]
    assert resumed.status == 206


def test_wrong_content_is_set_aside_and_fetched_again(
    hub: Any, repository: Repository, table: Table, folder: Path
) -> None:
    def other(handler: Any) -> bool:
        handler.send_body(200, bytes(len(WEIGHTS)), {"ETag": f'"{sha256(WEIGHTS)}"'})
        return True

    place = repository("models", "org/name", FILES)
    faults = hub.faults[fault_path(hub, place, "unet/model.safetensors")]
    path = table(kind="hf-model", source="org/name")
    faults.append(other)
    message = refused(folder, path)
    assert f"has SHA-256 {sha256(bytes(len(WEIGHTS)))}" in message
    assert f"the hub says {sha256(WEIGHTS)}" in message
    assert visible(folder / "thing") == FILES.keys() - {"unet/model.safetensors"}
    faults.append(other)
    assert downloaded(folder, path, retries=1)["files"].keys() == FILES.keys()


def test_a_small_file_is_checked_by_its_git_hash(hub: Any, repository: Repository, table: Table, folder: Path) -> None:
    def other(handler: Any) -> bool:
        handler.send_body(200, b"[]", {})
        return True

    place = repository("models", "org/name", FILES)
    hub.faults[fault_path(hub, place, "config.json")].append(other)
    assert "config.json has Git hash" in refused(folder, table(kind="hf-model", source="org/name"))


def test_too_little_room(
    hub: Any, repository: Repository, table: Table, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository("models", "org/name", FILES)
    usage = shutil.disk_usage(folder.parent)._replace(free=50_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: usage)
    message = refused(folder, table(kind="hf-model", source="org/name"))
    assert f"{folder / 'thing'}: 107.5 kB are needed, of which 5% as a reserve, and 50.0 kB are free" in message
    assert not hub.sent("/resolve/")


def test_a_proxy_is_used(
    hub: Any, repository: Repository, table: Table, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one, which knows the hub, to an address that does not exist. A process of its own reads the variables."""
    repository("models", "org/name", FILES)
    path = table(kind="hf-model", source="org/name")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    monkeypatch.setenv("http_proxy", hub.address)
    hub.names.add("hub.example")
    options = ["--table", str(path), "--folder", str(folder), "--connections", "2", "--retries", "0"]
    command = [sys.executable, "-m", "saferclip", "download", "thing", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "thing.json").exists()
    assert hub.requests[-1].path.startswith("http://hub.example/")


def test_a_url(hub: Any, put: Callable[[str, bytes], str], table: Table, folder: Path) -> None:
    path = table(kind="url", source=put("set%201.zip", b"PK") + "?x=1", sha256=sha256(b"PK"), bytes=2)
    (hub.root / "web/files.example/set%201.zip").rename(hub.root / "web/files.example/set 1.zip")
    manifest = downloaded(folder, path)
    assert manifest["files"] == {"set 1.zip": {"bytes": 2, "sha256": sha256(b"PK")}}
    assert manifest["revision"] == ""
    before = len(hub.requests)
    assert downloaded(folder, path) == manifest
    assert len(hub.requests) == before


def test_a_url_whose_hash_was_corrected(put: Callable[[str, bytes], str], table: Table, folder: Path) -> None:
    url = put("a.zip", b"new")
    (folder / "thing").mkdir(parents=True)
    (folder / "thing/a.zip").write_bytes(b"old")
    downloaded(folder, table(kind="url", source=url, sha256=sha256(b"new")))
    assert (folder / "thing/a.zip").read_bytes() == b"new"


def test_what_only_the_user_can_supply(table: Table, folder: Path) -> None:
    message = refused(folder, table(kind="folder", source="pictures of spoons", terms="https://a.example"))
    assert "only you can supply it: pictures of spoons. Ask for it at https://a.example" in message
    assert "set downloads.local.thing" in message


def test_a_killed_process_keeps_what_was_complete(hub: Any, repository: Repository, table: Table, folder: Path) -> None:
    """Files that had come are not fetched again, and what a killed client left is cleared away."""

    def slow(handler: Any) -> bool:
        handler.start(200, {"Content-Length": str(len(WEIGHTS)), "ETag": f'"{sha256(WEIGHTS)}"'})
        handler.write(WEIGHTS[:70_000])
        handler.wfile.flush()
        time.sleep(60)
        return True

    place = repository("models", "org/name", {"a.safetensors": b"a" * 9999, "b.safetensors": WEIGHTS})
    hub.faults[fault_path(hub, place, "b.safetensors")].append(slow)
    path = table(kind="hf-model", source="org/name")
    options = ["--table", str(path), "--folder", str(folder), "--connections", "2", "--retries", "0"]
    process = subprocess.Popen([sys.executable, "-m", "saferclip", "download", "thing", *options], env=os.environ)
    deadline = time.monotonic() + 60
    while not ((folder / "thing/a.safetensors").exists() and list(folder.rglob("*.incomplete"))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    downloaded(folder, path)
    assert visible(folder / "thing") == {"a.safetensors", "b.safetensors"}
    assert hub.sent("a.safetensors") == 9999
    assert not list(folder.rglob("*.incomplete"))


def test_pinning_a_repository(hub: Any, repository: Repository, table: Table, folder: Path) -> None:
    """Afterwards the same files are fetched, which are there already."""
    repository("models", "org/name", FILES)
    path = table(kind="hf-model", source="org/name", note="keep me")
    manifest = downloaded(folder, path)
    pin(["thing"], path, None)
    assert read_table(path)["thing"].revision == hub.repository("models", "org/name", "main").commit
    assert read_table(path)["thing"].note == "keep me"
    before, text = len(hub.requests), path.read_bytes()
    assert downloaded(folder, path) == manifest
    pin(["thing"], path, None)
    assert path.read_bytes() == text
    assert len(hub.requests) == before


def test_pinning_a_url(put: Callable[[str, bytes], str], table: Table, folder: Path) -> None:
    path = table(kind="url", source=put("a.zip", b"PK"))
    for place, message in ((None, "--folder"), (folder, "was not fetched into .* yet")):
        with pytest.raises(DownloadError, match=message):
            pin(["thing"], path, place)
    downloaded(folder, path)
    pin(["thing"], path, folder)
    row = read_table(path)["thing"]
    assert (row.sha256, row.bytes) == (sha256(b"PK"), 2)


def test_the_commands(hub: Any, repository: Repository, table: Table, folder: Path) -> None:
    repository("models", "org/name", FILES)
    path = table(kind="hf-model", source="org/name")
    options = ["--table", str(path), "--folder", str(folder), "--connections", "2", "--retries", "0"]
    run = CliRunner().invoke
    assert run(main, ["download", "thing", *options]).exit_code == 0
    assert run(main, ["pin", "thing", "--table", str(path)]).exit_code == 0
    assert read_table(path)["thing"].revision == hub.repository("models", "org/name", "main").commit
    wrong = run(main, ["download", "things", *options])
    assert wrong.exit_code == 1
    assert wrong.output.splitlines()[-1] == f"error: {path}: there is no row 'things'; did you mean 'thing'?"
