"""A recorded run through remotes of DVC: there and back with the same bytes, and damage that is found and mended."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest
import yaml

ROOT = Path(__file__).parents[2]
RUN = Path("results/tiny")
VICTIMS = (RUN / "mining/neighbours.parquet", RUN / "large")  # the files whose objects are damaged


@dataclass(frozen=True)
class FolderRemote:
    """A remote that is a folder."""

    folder: Path
    name = "shared"

    @property
    def options(self) -> dict[str, str]:
        return {"url": str(self.folder)}

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        self.delete(name)  # DVC's objects are read-only
        (self.folder / name).write_bytes(content)
        (self.folder / name).chmod(0o444)

    def delete(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink()


@dataclass(frozen=True)
class S3Remote:
    """A remote in the bucket ``runs`` of a server."""

    endpoint: str
    name = "bucket"

    @property
    def options(self) -> dict[str, str]:
        return {"url": "s3://runs/saferclip", "endpointurl": self.endpoint}

    def read(self, name: str) -> bytes:
        content: bytes = self._object(name).get()["Body"].read()
        return content

    def write(self, name: str, content: bytes) -> None:
        self._object(name).put(Body=content)

    def delete(self, *names: str) -> None:
        for name in names:
            self._object(name).delete()

    def create(self) -> None:
        self._bucket().create()

    def _object(self, name: str) -> Any:
        return self._bucket().Object(f"saferclip/{name}")

    def _bucket(self) -> Any:
        return boto3.resource("s3", endpoint_url=self.endpoint).Bucket("runs")


@pytest.fixture(scope="module")
def recorded(project_copy: Any) -> Any:
    """A Git repository with a finished tiny run, of placeholders and a file of 12 MB, that DVC has in its cache."""
    project = project_copy("recorded")
    project.pretend("tiny")
    (project.folder / RUN / "large").write_bytes(os.urandom(12_000_000))
    project.version("tiny")
    _save(project, "a run")
    return project


@pytest.fixture(scope="module", params=["folder", "s3"])
def remote(request: pytest.FixtureRequest, recorded: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A remote to which the run was pushed, added as docs/artifacts.md says."""
    if request.param == "s3":
        remote: Any = S3Remote(request.getfixturevalue("s3"))
        remote.create()
    else:
        remote = FolderRemote(tmp_path_factory.mktemp("remote"))
    options = remote.options
    recorded.run("dvc", "remote", "add", remote.name, options.pop("url"))
    for name, value in (options | {"verify": "true"}).items():
        recorded.run("dvc", "remote", "modify", remote.name, name, value)
    _save(recorded, f"remote {remote.name}")
    recorded.run("dvc", "push", "--remote", remote.name)
    return remote


@pytest.fixture
def clone(recorded: Any, project_copy: Any) -> Iterator[Any]:
    """A new clone, with nothing of the run yet."""
    clone = project_copy("clone", empty=True)
    clone.run("git", "clone", "--quiet", str(recorded.folder), ".")
    assert not (clone.folder / RUN).exists()
    yield clone
    shutil.rmtree(clone.folder)


def test_a_run_comes_back_with_the_same_bytes(recorded: Any, remote: Any, clone: Any) -> None:
    clone.run("dvc", "pull", "--remote", remote.name)
    assert _hashes(clone) == _hashes(recorded)
    assert len(_hashes(clone)) > 100
    assert "Nothing to be done" in clone.plan(config="tiny").text
    assert "up to date" in clone.run("dvc", "status").stdout


def test_a_dropped_cache_is_fetched_again(recorded: Any, remote: Any) -> None:
    before = _hashes(recorded)
    for made in (".dvc/cache", "results", ".snakemake/metadata"):
        shutil.rmtree(recorded.folder / made)
    recorded.run("dvc", "pull", "--remote", remote.name)
    assert _hashes(recorded) == before
    assert "all as their names say" in recorded.run("saferclip", "verify").stdout


def test_damage_in_a_remote_is_refused_named_and_mended(recorded: Any, remote: Any, clone: Any) -> None:
    victims = {_object(recorded, file): file for file in VICTIMS}
    flipped, cut = victims
    content = remote.read(flipped)
    remote.write(flipped, content[:-1] + bytes([content[-1] ^ 1]))
    remote.write(cut, remote.read(cut)[:-1])

    pull = clone.run("dvc", "pull", "--remote", remote.name, "--verbose", check=False)
    assert pull.returncode != 0
    assert f"Checkout failed for following targets:\n{RUN}" in pull.stdout
    absent = clone.run(
        "dvc", "status", "--remote", remote.name, "--cloud"
    ).stdout  # "deleted": in the remote, but not here
    verify = clone.run("saferclip", "verify", check=False)
    assert verify.returncode == 1
    for name, file in victims.items():
        assert not (clone.folder / file).exists()
        assert f"corrupted cache file '{clone.folder}/.dvc/cache/{name}'" in pull.stdout
        assert f"deleted:            {file}\n" in absent
        assert f"missing: .dvc/cache/{name}: {file}\n" in verify.stdout
    assert absent.count("deleted: ") == verify.stdout.count("missing: ") == len(victims)

    remote.delete(*victims, _list(recorded))
    recorded.run("dvc", "push", "--remote", remote.name)
    clone.run("dvc", "pull", "--remote", remote.name)
    assert _hashes(clone) == _hashes(recorded)


def test_a_changed_list_of_files_is_refused_and_mended(recorded: Any, remote: Any, clone: Any) -> None:
    name = _list(recorded)
    remote.write(name, _renamed(remote.read(name)))
    pull = clone.run("dvc", "pull", "--remote", remote.name, "--verbose", check=False)
    assert pull.returncode != 0
    assert f"corrupted cache file '{clone.folder}/.dvc/cache/{name}'" in pull.stdout
    assert not (clone.folder / RUN).exists()
    assert f"not here: {RUN} (.dvc/cache/{name})\n" in clone.run("saferclip", "verify").stdout

    remote.delete(name)
    recorded.run("dvc", "push", "--remote", remote.name)
    clone.run("dvc", "pull", "--remote", remote.name)
    assert _hashes(clone) == _hashes(recorded)


def test_a_changed_list_in_the_default_remote_is_named_by_what_follows_the_pull(recorded: Any, clone: Any) -> None:
    """There DVC follows the list before it looks at its hash, and the pull seems well: docs/artifacts.md says so."""
    recorded.run("dvc", "push")
    shutil.move(recorded.folder / "artifacts", clone.folder)  # as if it had come by Git
    name, artifacts = _list(recorded), FolderRemote(clone.folder / "artifacts")
    content = artifacts.read(name)
    artifacts.write(name, _renamed(content))
    clone.run("dvc", "pull")
    assert f"not in cache:       {RUN}\n" in clone.run("dvc", "status").stdout
    for store in (".dvc/cache", "artifacts"):
        verify = clone.run("saferclip", "verify", *[store] * (store == "artifacts"), check=False)
        assert verify.returncode == 1
        assert f"{store}/{name}: {RUN}\n" in verify.stdout

    artifacts.write(name, content)
    clone.run("dvc", "pull", "--force")
    assert _hashes(clone) == _hashes(recorded)


def test_a_folder_of_objects_can_be_pulled_from_a_web_server(
    recorded: Any, clone: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As from the Hub, or any other place that serves files."""
    folder = tmp_path_factory.mktemp("web")
    recorded.run("dvc", "remote", "add", "--force", "copy", str(folder))
    recorded.run("dvc", "push", "--remote", "copy")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    clone.run("dvc", "remote", "add", "web", f"http://127.0.0.1:{server.server_port}")
    clone.run("dvc", "remote", "modify", "web", "verify", "true")
    clone.run("dvc", "pull", "--remote", "web")
    server.shutdown()
    assert _hashes(clone) == _hashes(recorded)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _renamed(names: bytes) -> bytes:
    """A list in which one file is called otherwise."""
    return names.replace(b"neighbours.parquet", b"neighbours.parqueT")


def _save(project: Any, message: str) -> None:
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", message)


def _hashes(project: Any) -> dict[str, str]:
    """SHA-256 of every file that DVC keeps, by path."""
    folders = [project.folder / name for name in ("results/tiny", "results/tiny-clip", ".snakemake/metadata")]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return {str(f.relative_to(project.folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def _object(project: Any, file: Path) -> str:
    """Where a remote or cache has a file's bytes."""
    md5 = hashlib.md5((project.folder / file).read_bytes()).hexdigest()
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def _list(project: Any) -> str:
    """Where a remote or cache has the list of the run's files."""
    stage = yaml.safe_load((project.folder / "dvc.lock").read_text())["stages"]["tiny"]
    (md5,) = (out["md5"] for out in stage["outs"] if out["path"] == str(RUN))
    return f"files/md5/{md5[:2]}/{md5[2:]}"
