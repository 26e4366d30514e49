"""Full and read-only disks: steps say so by the name of what they could not write, and lose nothing."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner, Result

from saferclip import cli
from saferclip.config import load

ROOT = Path(__file__).parents[2]
SETTINGS = load(ROOT / "config/tiny.yaml")
OLD = b"what was there before"
STAGES = ("data", "base-model", "embedding", "mining", "training")

Note = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Steps:
    """Steps of a small run whose inputs are ready; ``reference`` is what they write."""

    reference: Path
    model: Path

    def command(self, step: str, output: Path, state: Path) -> list[str]:
        """A step's command line, writing to another place."""
        tables, frozen = self.reference / "data", self.reference / "embedding/frozen.safetensors"
        inputs = [f"--train={tables}/train.parquet", f"--validation={tables}/validation.parquet"]
        options = {
            "data": [],
            "base-model": [f"--cache={state}"],
            "embedding": [f"--base-model={self.model}", *inputs],
            "mining": [inputs[0], f"--embeddings={frozen}"],
            "training": [
                f"--base-model={self.model}",
                *inputs,
                f"--embeddings={frozen}",
                f"--neighbours={self.reference}/mining/neighbours.parquet",
                "--seed=0",
                f"--state={state}",
            ],
        }
        settings = SETTINGS.settings_of(step.replace("-", "_"), "safer-clip")
        if step == "base-model":
            settings = settings.replace(SETTINGS.base_model.name, str(self.model))
        return [step, "--settings", settings, *options[step], "--output", str(output)]

    def run(self, step: str, output: Path, state: Path) -> Result:
        """Run a step in this process, by its command line."""
        return CliRunner().invoke(cli.main, self.command(step, output, state))


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory, tiny_resnet_clip_folder: Path) -> Steps:
    """Everything that an undisturbed run writes."""
    folder = tmp_path_factory.mktemp("reference")
    steps = Steps(folder, tiny_resnet_clip_folder)
    for step in STAGES:
        done = steps.run(step, folder / step, folder / "state")
        assert done.exit_code == 0, done.output
    return steps


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted by the administrator only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def full(disk: Path, left: int) -> Iterator[None]:
    """Fill a disk up to some bytes."""
    filler = disk / "filler"
    space = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - left)
    yield
    filler.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write to a folder: a mounted one for the administrator, whom rights do not bind."""
    administrator = os.geteuid() == 0
    for way in ("ro", "rw"):
        if administrator:
            subprocess.run(["mount", "-o", f"remount,{way}", str(folder)], check=True)
        else:
            folder.chmod(0o555 if way == "ro" else 0o755)
        if way == "ro":
            yield


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(map(len, contents(folder).values()))


def comparable(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without the two files that tell how long it took."""
    return {name: content for name, content in files.items() if name not in ("record.json", "steps.csv")}


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("step", STAGES)
def test_a_full_disk_is_named_and_costs_nothing(step: str, share: float, steps: Steps, disk: Path, note: Note) -> None:
    """There is room for a share of what the step writes; its earlier results are there."""
    output, state = disk / "output", disk / "state"
    expected = contents(steps.reference / step)
    for name in expected:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(OLD)
    needed = size(steps.reference / step)
    with full(disk, int(share * needed)):
        failed = steps.run(step, output, state)
        assert failed.exit_code == 1
        error = next(line for line in failed.output.splitlines() if line.startswith("error: "))
        assert "No space left on device" in error and "make room and start again" in error
        assert str(disk) in error and ".partial" not in error
        assert "Traceback" not in failed.output
        _old_or_new(contents(output), expected)
        assert list(disk.rglob(".*.partial")) == []
    again = steps.run(step, output, state)
    assert again.exit_code == 0, again.output
    assert comparable(contents(output)) == comparable(expected)
    note(f"full disk, room for {share:.0%} of the output", step, "named, old output kept, run goes on")


@pytest.mark.parametrize("step", STAGES)
def test_a_read_only_folder_is_named_and_costs_nothing(step: str, steps: Steps, disk: Path, note: Note) -> None:
    output, state = disk / "output", disk / "state"
    shutil.copytree(steps.reference / step, output)
    before = contents(output)
    with read_only(disk):
        failed = steps.run(step, output, state)
        assert failed.exit_code == 1
        error = next(line for line in failed.output.splitlines() if line.startswith("error: "))
        # Embedding first removes pixels of earlier settings, of which the system says what is wrong.
        assert str(disk) in error and ("Read-only file system" if step == "embedding" else "write elsewhere") in error
        assert "Traceback" not in failed.output
        assert contents(output) == before
    again = steps.run(step, output, state)
    assert again.exit_code == 0, again.output
    assert comparable(contents(output)) == comparable(before)
    note("read-only output folder", step, "named, old output kept, run goes on")


@pytest.mark.parametrize("step", ["data", "base-model"])
def test_a_limit_on_the_size_of_files_is_named(step: str, steps: Steps, tmp_path: Path, note: Note) -> None:
    """Also where nobody may mount a disk."""
    output = tmp_path / "output"
    largest = max(map(len, contents(steps.reference / step).values()))
    limit = Random(step).randrange(1000, largest)
    done = subprocess.run(
        [sys.executable, "-m", "saferclip", *steps.command(step, output, tmp_path / "state")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr and str(output) in done.stderr and "Traceback" not in done.stderr
    expected = contents(steps.reference / step)
    made = contents(output) if output.exists() else {}
    assert all(expected[name] == content for name, content in made.items())
    note("limit on the size of files", step, "named, nothing half written")


def _old_or_new(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Every file under its name is the one that was there or the one to come."""
    assert found.keys() == expected.keys()
    new = comparable(expected)
    halves = [name for name, content in found.items() if content not in (OLD, new.get(name, content))]
    assert halves == []
