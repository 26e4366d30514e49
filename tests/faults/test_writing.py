"""io.atomic_path, killed before every single thing it does to the disk: the old content or the new, never half."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from saferclip import io
from saferclip.io import atomic_path

OLD, NEW = "old " * 50_000, "new " * 50_000
TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "fcntl.flock", "os.chmod"}

fork = get_context("fork")


def write_file(target: Path, content: str, step: Callable[[], None] = lambda: None) -> None:
    """Write a file in two halves; ``step`` is called between them."""
    with atomic_path(target) as path, path.open("w") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        step()
        file.write(content[len(content) // 2 :])


def write_folder(target: Path, content: str, step: Callable[[], None] = lambda: None) -> None:
    """Write a folder of two files; ``step`` is called between them."""
    with atomic_path(target) as path:
        path.mkdir()
        (path / "first").write_text(content)
        step()
        (path / "second").write_text(content)


def read(target: Path) -> str | None:
    """What is under the target's name: a whole content, or None; half of one is an error."""
    if not target.exists():
        return None
    parts = [target] if target.is_file() else [target / "first", target / "second"]
    contents = {part.read_text() for part in parts}
    assert len(contents) == 1, f"{target} is of two writers"
    content = contents.pop()
    assert content in (OLD, NEW), f"{target} is half: {len(content)} bytes"
    return content


def entries(folder: Path) -> list[str]:
    """Names of all that is in a folder."""
    return sorted(path.name for path in folder.iterdir())


class Fuse:
    """Kills its process at one of the things that it does to the disk; counts them."""

    def __init__(self, number: int) -> None:
        self.left = number

    def step(self) -> None:
        """One more thing is about to happen."""
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def light(self) -> None:
        """From now on, everything that Python reports to its auditors counts, and waiting for the disk."""
        fsync = os.fsync
        os.fsync = lambda descriptor: (self.step(), fsync(descriptor))[1]  # type: ignore[assignment]
        sys.addaudithook(lambda event, _arguments: self.step() if event in TOUCHES else None)


def survives(write: Callable[..., None], target: Path, number: int) -> bool:
    """Write in a process of its own, killed at its ``number``-th touch of the disk; whether it came to its end."""

    def body() -> None:
        fuse = Fuse(number)
        fuse.light()
        write(target, NEW, fuse.step)
        os._exit(0)

    process = fork.Process(target=body)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


@pytest.mark.parametrize("there", [True, False], ids=["old content", "nothing"])
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_kill_anywhere_leaves_the_old_or_the_new(
    write: Callable[..., None], there: bool, tmp_path: Path, note: Callable[[str, str, str], None]
) -> None:
    target = tmp_path / "target"
    found: list[str | None] = []
    for number in range(1000):
        _start_anew(write, target, there)
        if survives(write, target, number):
            break
        found.append(read(target))
        write(target, NEW)  # the next writer has no trouble, and tidies up
        assert read(target) == NEW
        assert entries(tmp_path) == ["target"], number
    assert number > 10
    # A folder that replaces one has a moment without a name, between two renames; Snakemake does such a step again.
    unnamed = found.count(None) if there else 0
    assert unnamed == (1 if there and write is write_folder else 0)
    assert found == sorted(found, key=[OLD, None, NEW].index if there else [None, NEW].index)
    what = f"writing a {write.__name__.removeprefix('write_')} over {'an old one' if there else 'nothing'}"
    for content in found:
        name = "nothing under the name" if content is None else f"{content.split()[0]} content, whole"
        note("SIGKILL of a writer, at each touch of the disk", what, name)


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_two_writers_and_killed_ones_never_disturb_each_other(write: Callable[..., None], tmp_path: Path) -> None:
    """Writers of one target at the same time, some of them killed: what is there is of one of them, and whole."""
    target = tmp_path / "target"

    def repeat(content: str, times: int) -> None:
        for _ in range(times):
            write(target, content)
        os._exit(0)

    def killed() -> None:
        for number in range(2, 60, 5):
            survives(write, target, number)
        os._exit(0)

    writers = [fork.Process(target=repeat, args=(content, 40)) for content in (OLD, NEW)] + [
        fork.Process(target=killed)
    ]
    for writer in writers:
        writer.start()
    looked = 0
    while any(writer.is_alive() for writer in writers):
        # A folder may be replaced between the reading of its two files: each has to be whole, not both of one writer.
        with suppress(FileNotFoundError, NotADirectoryError, AssertionError if write is write_folder else ()):
            read(target)
        looked += 1
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert looked > 10
    write(target, NEW)
    assert read(target) == NEW
    assert entries(tmp_path) == ["target"]


def test_a_living_writers_scratch_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with atomic_path(target) as first:
        first.write_text("first")
        write_file(target, NEW)
        assert first.read_text() == "first"
    assert target.read_text() == "first"
    assert entries(tmp_path) == ["a.txt"]


def test_threads_of_one_process_are_writers_too(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    threads = [threading.Thread(target=write_file, args=(target, content)) for content in (OLD, NEW) * 10]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(target) in (OLD, NEW)
    assert entries(tmp_path) == ["a.txt"]


def test_without_locks_of_the_file_system_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none: who lives cannot be told from who is dead there."""
    target = tmp_path / "a.txt"

    def unsupported(*_arguments: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with atomic_path(target) as first:
        first.write_text("first")
        io.write_json(target, 2)
        assert first.exists()
    assert target.read_text() == "first"


def _start_anew(write: Callable[..., None], target: Path, there: bool) -> None:
    """The old content, or nothing, under the target's name."""
    if there:
        write(target, OLD)
    elif target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
