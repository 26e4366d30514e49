"""Faults of whole runs: two at once, signals, memory, a full disk, divergence, a damaged state.

Every one is named, costs nothing that was finished, and the run that follows ends as an undisturbed one, byte for byte.
The runs go as far as one training, on a base model that is there; its tests share a project, so belong on one worker.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="jobs are found through Linux's /proc")

TRAINING = "training/safer-clip/seed-0"
TARGETS = {"given": f"{TRAINING}/record.json", "other": "mining/summary.json"}
CGROUPS = Path("/sys/fs/cgroup")
EPOCHS = 12  # long enough to be hit in one of the later ones

Note = Callable[[str, str, str], None]


class Started:
    """What starts runs in one project, and what an undisturbed run of each configuration made there."""

    def __init__(self, project: Any, runs: ModuleType, model: Path) -> None:
        self.project, self.runs = project, runs
        self.model = model
        self.expected: dict[str, Any] = {}

    def variant(self, project: Any, name: str, file: str | None = None, **changes: Any) -> str:
        """Write a configuration of tiny's, with one method and a base model that is there."""
        values = {
            "name": name,
            "base_model.source": f"local-dir:{self.model}",
            "base_model_training": None,
            "optimisation.epochs": EPOCHS,
        }
        return str(project.smaller(file or name, values | changes))

    def run(self, config: str = "given", *options: str, project: Any = None) -> Any:
        """Start a run as far as its targets: one training of the first configuration, mining of the other."""
        name = yaml.safe_load((self.project.folder / f"config/{config}.yaml").read_text())["name"]
        return self.runs.Run(project or self.project, config, f"results/{name}/{TARGETS[name]}", *options)

    def succeed(self, config: str = "given", *options: str, project: Any = None) -> None:
        """Run without trouble."""
        run = self.run(config, *options, project=project)
        assert run.wait() == 0, run.text[-6000:]

    def as_undisturbed(self, name: str = "given", project: Any = None) -> bool:
        """Whether what a run has made is what an undisturbed one makes, and nothing else."""
        folder = (project or self.project).folder / f"results/{name}"
        return bool(self.runs.products(folder) == self.expected[name]) and self.runs.scratch(folder) == []

    def log(self) -> str:
        """The log of the last training."""
        return (self.project.folder / f"results/given/logs/{TRAINING}.log").read_text()

    def stop_late(self, run: Any, number: int) -> None:
        """Send a signal to everything of a run, in a later epoch of its training."""
        state = self.project.folder / f"results/given/state/{TRAINING}"
        while not (state / "checkpoint.previous.pt").exists():  # from the second epoch's end on
            assert not run.over, run.text[-6000:]
            time.sleep(self.runs.POLL)
        if number == signal.SIGKILL:
            run.kill_all()
        else:
            os.killpg(run.process.pid, number)
            assert run.wait() != 0


@pytest.fixture(scope="module")
def started(project_copy: Callable[[str], Any], runs: ModuleType, tiny_resnet_clip_folder: Path) -> Started:
    """A project in which two configurations were run, one after the other."""
    started = Started(project_copy("solo"), runs, tiny_resnet_clip_folder)
    changes = {"given": {}, "other": {"data.embedded.seed": 8}}
    for name, others in changes.items():
        started.variant(started.project, name, **others)
        started.succeed(name)
        started.expected[name] = runs.products(started.project.folder / f"results/{name}")
    return started


def test_two_runs_in_one_folder(started: Started, project_copy: Callable[[str], Any], note: Note) -> None:
    """One that would make the same files is refused; one of another configuration goes on beside the first."""
    project = project_copy("together")
    for name in ("given", "other"):
        shutil.copy(started.project.folder / f"config/{name}.yaml", project.folder / f"config/{name}.yaml")
    first = started.run("given", project=project)
    while not first.jobs():
        assert not first.over, first.text
        time.sleep(started.runs.POLL)
    second, other = started.run("given", project=project), started.run("other", project=project)
    assert second.wait() != 0
    assert "Directory cannot be locked" in second.text
    assert other.wait() == 0, other.text[-6000:]
    assert first.wait() == 0, first.text[-6000:]
    for name in ("given", "other"):
        assert started.as_undisturbed(name, project)
    note("second run of the same files in one folder", "whole run", "refused, the first unharmed")
    note("run of another configuration in the same folder", "whole run", "both end, same results, byte for byte")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_training_goes_on_where_it_was_stopped(number: signal.Signals, started: Started, note: Note) -> None:
    started.stop_late(started.run("given", "--forcerun", "training"), number)
    started.succeed()
    assert "going on from" in started.log()
    assert started.as_undisturbed()
    note(f"{number.name} of the whole run", "training, epoch 3 or later", "goes on from its state, same results")


def test_after_a_kill_and_with_a_truncated_state_training_goes_on_from_the_one_before(
    started: Started, note: Note
) -> None:
    started.stop_late(started.run("given", "--forcerun", "training"), signal.SIGKILL)
    folder = started.project.folder / f"results/given/state/{TRAINING}"
    whole = (folder / "checkpoint.previous.pt").read_bytes()
    (folder / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    started.succeed()
    assert f"{TRAINING}/checkpoint.pt cannot be read" in started.log()
    assert "going on from" in started.log()
    assert started.as_undisturbed()
    note(
        "SIGKILL of the whole run, and a truncated state",
        "training, epoch 3 or later",
        "named, the state before is used, same results",
    )


def test_divergence_is_named(started: Started, note: Note) -> None:
    methods = yaml.safe_load((started.project.folder / "config/given.yaml").read_text())["methods"]
    methods["safer-clip"]["learning_rate"] = 1e30
    started.variant(started.project, "given", "diverging", methods=methods)
    run = started.run("diverging")
    assert run.wait() != 0
    assert "training diverged at step" in run.text and "learning_rate" in run.text
    assert "Traceback" not in started.log()
    kept = [name for name in started.expected["given"] if not name.startswith("training/")]
    folder = started.project.folder / "results/given"
    found = started.runs.products(folder)
    assert {name: found[name] for name in kept} == {name: started.expected["given"][name] for name in kept}
    assert not (folder / TRAINING).exists() or list((folder / TRAINING).iterdir()) == []
    started.succeed()
    assert started.as_undisturbed()
    note("a loss that is not a number", "training", "named with its step, other results kept, run goes on")


def test_a_job_without_memory_is_named(started: Started, memory: Callable[[int], None], note: Note) -> None:
    """A real lack of memory: the kernel kills the job, which cannot say so itself."""
    run = started.run("given", "--forcerun", "training")
    while not (jobs := run.jobs()):
        time.sleep(started.runs.POLL)
    memory(jobs[0].pid)
    assert run.wait() != 0
    assert started.runs.KILLED in run.text and "memory" in run.text
    started.succeed()
    assert started.as_undisturbed()
    note("killed by the kernel for memory", "training", "named, other results kept, run goes on")


def test_a_full_disk_stops_a_run_and_nothing_more(
    started: Started, project_copy: Callable[[str], Any], disk: Callable[[Path, str], None], note: Note
) -> None:
    """All results on a disk that becomes full; then there is room."""
    project = project_copy("full")
    shutil.copy(started.project.folder / "config/other.yaml", project.folder / "config/other.yaml")
    (project.folder / "results").mkdir()
    disk(project.folder / "results", "2m")
    run = started.run("other", project=project)
    assert run.wait() != 0
    assert "No space left on device" in run.text and "make room and start again" in run.text
    assert started.runs.scratch(project.folder / "results") == []
    made = started.runs.products(project.folder / "results/other")
    assert made == {name: started.expected["other"][name] for name in made}
    disk(project.folder / "results", "256m")
    started.succeed("other", project=project)
    assert started.as_undisturbed("other", project=project)
    note("full disk under all results", "run as far as mining", "named, finished results kept, run goes on")


@pytest.fixture
def disk() -> Iterator[Callable[[Path, str], None]]:
    """A function (folder, size) that mounts a disk there, or changes its size."""
    mounted: set[Path] = set()

    def mount(folder: Path, size: str) -> None:
        options = f"remount,size={size}" if folder in mounted else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a disk can be mounted by the administrator only")
        mounted.add(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def memory() -> Iterator[Callable[[int], None]]:
    """A function that leaves a process 100 MB more than nothing, by a control group of the kernel."""
    old = CGROUPS / "memory/memory.limit_in_bytes"
    parent, limit = (CGROUPS / "memory", old.name) if old.exists() else (CGROUPS, "memory.max")
    group = parent / f"saferclip-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(100 << 20))
    except OSError:
        pytest.skip("memory can be limited by the administrator only, where the kernel has control groups")
    yield lambda pid: (group / "cgroup.procs").write_text(str(pid)) and None
    group.rmdir()
