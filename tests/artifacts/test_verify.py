"""`saferclip verify` on a cache that DVC itself filled: what is damaged or missing is named, and following it mends."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from saferclip import artifacts
from saferclip.io import DataError

CACHE, LOCK = Path(".dvc/cache"), Path("dvc.lock")
STAGES = """
stages:
  one: {cmd: 'true', outs: [results/one: {persist: true}]}
  two: {cmd: 'true', outs: [two.txt: {persist: true}]}
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository with an output of three files, one of a single file, and a remote that has both."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "results/one/deep").mkdir(parents=True)
    for name in ("results/one/a.json", "results/one/deep/b.json", "results/one/same.json", "two.txt"):
        (folder / name).write_text(f"text of {name.replace('same', 'a')}" * 100)
    (folder / "dvc.yaml").write_text(STAGES)
    _dvc(folder, "init", "--no-scm", "--quiet")
    _dvc(folder, "remote", "add", "--default", "--quiet", "remote", str(tmp_path_factory.mktemp("remote")))
    _dvc(folder, "commit", "--force", "--quiet")
    _dvc(folder, "push", "--quiet")
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to damage, and the working directory."""
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.usefixtures("folder")
def test_a_whole_cache_is_counted() -> None:
    said = artifacts.verify(CACHE, LOCK, cache=True)
    size = sum(file.stat().st_size for file in CACHE.rglob("*") if file.is_file())
    assert said == f".dvc/cache: 4 objects, {size / 1e6:.1f} MB, all as their names say"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped"])
def test_a_damaged_object_is_named_with_every_path(damage: str) -> None:
    (wrong,) = _objects("results/one/a.json")
    whole = wrong.read_bytes()
    _overwrite(wrong, {"cut": whole[:-1], "emptied": b"", "flipped": bytes([whole[0] ^ 1]) + whole[1:]}[damage])
    with pytest.raises(DataError) as error:
        artifacts.verify(CACHE, LOCK, cache=True)
    lines = str(error.value).splitlines()
    assert lines[1] == f"damaged: {wrong}: results/one/a.json, results/one/same.json"
    assert sum(line.startswith(("damaged", "missing")) for line in lines) == 1


def test_what_dvc_believes_of_its_cache_is_found_and_mended_as_told(folder: Path) -> None:
    wanted = (folder / "results/one/deep/b.json").read_bytes()
    (wrong,) = _objects("results/one/deep/b.json")
    (folder / "results/one/deep/b.json").unlink()
    _overwrite(wrong, b"something else")
    _dvc(folder, "checkout", "--quiet")
    assert (folder / "results/one/deep/b.json").read_bytes() == b"something else"  # DVC believed it
    assert "up to date" in _dvc(folder, "status")
    with pytest.raises(DataError) as error:
        artifacts.verify(CACHE, LOCK, cache=True)
    for line in re.findall(r"^  (.*)", str(error.value), re.MULTILINE):
        Path(line).unlink()
    (folder / "results/one/deep/b.json").unlink()
    _dvc(folder, "pull", "--quiet")
    assert (folder / "results/one/deep/b.json").read_bytes() == wanted
    assert "all as their names say" in artifacts.verify(CACHE, LOCK, cache=True)


@pytest.mark.usefixtures("folder")
def test_a_missing_object_is_named() -> None:
    (gone,) = _objects("results/one/deep/b.json")
    gone.unlink()
    with pytest.raises(DataError, match=f"\nmissing: {gone}: results/one/deep/b.json\n"):
        artifacts.verify(CACHE, LOCK, cache=True)


def test_of_an_output_in_its_place_everything_must_be_in_the_cache(folder: Path) -> None:
    (gone,) = _objects("two.txt")
    gone.unlink()
    with pytest.raises(DataError, match=f"\nmissing: {gone}: two.txt\n"):
        artifacts.verify(CACHE, LOCK, cache=True)
    assert f"not here: two.txt ({gone})" in artifacts.verify(CACHE, LOCK, cache=False)
    (folder / "two.txt").unlink()
    assert f"not here: two.txt ({gone})" in artifacts.verify(CACHE, LOCK, cache=True)


@pytest.mark.usefixtures("folder")
def test_damage_in_an_older_version_is_named() -> None:
    old = CACHE / "files/md5/00/" / ("0" * 30)
    old.parent.mkdir(exist_ok=True)
    old.write_bytes(b"bytes of another name")
    with pytest.raises(DataError, match=f"\ndamaged: {old}: of no version in dvc.lock\n"):
        artifacts.verify(CACHE, LOCK, cache=True)


@pytest.mark.usefixtures("folder")
def test_what_an_interrupted_transfer_leaves_is_no_object() -> None:
    (whole,) = _objects("two.txt")
    (whole.parent / f"{whole.name}.partial").write_bytes(b"half")
    artifacts.verify(CACHE, LOCK, cache=True)


@pytest.mark.usefixtures("folder")
def test_a_folder_without_objects_and_a_lock_without_stages_are_told() -> None:
    with pytest.raises(DataError, match=r"results: no objects of DVC .* dvc fetch"):
        artifacts.verify(Path("results"), LOCK, cache=False)
    for text in ("stages: [", "a: b", "stages: {one: {outs: [{path: x}]}}", "- 1", "stages: 3"):
        LOCK.write_text(text)
        with pytest.raises(DataError, match=r"dvc\.lock: not a lock file of DVC; .*git checkout"):
            artifacts.verify(CACHE, LOCK, cache=True)


@pytest.mark.usefixtures("folder")
def test_a_list_that_dvc_could_not_have_written_is_told() -> None:
    """Its hash is right, so the lock file was made by somebody else."""
    text = json.dumps([{"name": "x"}]).encode()
    md5 = hashlib.md5(text).hexdigest()
    file = CACHE / "files/md5" / md5[:2] / f"{md5[2:]}.dir"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text)
    LOCK.write_text(f"stages: {{one: {{outs: [{{path: results/one, md5: {md5}.dir}}]}}}}")
    with pytest.raises(DataError, match=f"{file}: not a list of files"):
        artifacts.verify(CACHE, LOCK, cache=True)


def _objects(path: str) -> list[Path]:
    """Where the cache has a file's bytes: the one object of the same content."""
    content = Path(path).read_bytes()
    return [file for file in CACHE.glob("files/md5/*/*") if file.read_bytes() == content]


def _overwrite(file: Path, content: bytes) -> None:
    file.chmod(0o644)
    file.write_bytes(content)
    file.chmod(0o444)


def _dvc(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
