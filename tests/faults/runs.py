"""Snakemake runs that are watched from outside and killed, and what their results are compared by."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from saferclip.training.tuner import CLOCK

POLL = 0.05  # seconds between two looks at the processes
TRAINING = "training"
REPORT = "report"
BETWEEN = "between jobs"
KILLED = "killed (signal 9)"
JOB = "SIGKILL of a job alone"
SNAKEMAKE = "SIGKILL of Snakemake alone"
ALL = "SIGKILL of Snakemake and its jobs"


@dataclass(frozen=True)
class Job:
    """The main process of a step at work."""

    pid: int
    step: str


@dataclass(frozen=True)
class Injected:
    """A fault, what it hit, and what came of it: one line of the count."""

    fault: str
    stage: str
    others: tuple[str, ...] = ()  # at work at the same time, and killed with it


class Run:
    """`snakemake` at work in a project, with its jobs in a session of their own."""

    def __init__(self, project: Any, config: str, *targets: str) -> None:
        command = (sys.executable, "-m", "snakemake", "--cores", "2", *targets, "--configfile", f"config/{config}.yaml")
        self.output = project.folder / f"{config}.{time.monotonic_ns()}.out"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=project.folder,
                env=project.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """What Snakemake has said so far."""
        return self.output.read_text(errors="replace")

    @property
    def over(self) -> bool:
        """Whether Snakemake has ended."""
        return self.process.poll() is not None

    def jobs(self) -> list[Job]:
        """The steps at work in this session; helpers that a step has forked are part of it."""
        found = {pid: (parent, _step(pid)) for pid, parent in _session(self.process.pid)}
        steps = {pid: step for pid, (_, step) in found.items() if step}
        return [Job(pid, step) for pid, step in sorted(steps.items()) if found[pid][0] not in steps]

    def wait(self, seconds: float = 600) -> int:
        """Snakemake's exit status; what is left of its session is killed if it does not end in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise

    def kill_all(self) -> None:
        """SIGKILL to Snakemake and all its jobs, as a power cut would do."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        while self.jobs():
            time.sleep(POLL)

    def kill_snakemake(self) -> None:
        """SIGKILL to Snakemake alone; its jobs live on."""
        self.process.kill()
        self.process.wait()


def _session(leader: int) -> Iterator[tuple[int, int]]:
    """Processes of a session, each with its parent; ended ones that nobody has waited for are left out."""
    for pid in [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]:
        with suppress(OSError):  # it ended meanwhile
            # First by a system call: this looks at all processes of the machine, many times a second.
            if os.getsid(pid) != leader:
                continue
            # The program's name, in brackets, may hold anything.
            state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                yield pid, int(parent)


def _step(pid: int) -> str | None:
    """The step that a process is, by its command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if len(words) > 2 and words[1].endswith("/saferclip"):
        return words[2]
    return REPORT if "--report" in words[1:4] and "snakemake" in words[1] else None


class Killer:
    """Starts a run again and again, and kills it at moments that a seed decides, until every step has been hit."""

    def __init__(
        self, project: Any, config: str, durations: dict[str, float], expected: dict[str, dict[str, Any]], seed: int
    ) -> None:
        self.project = project
        self.config = config
        self.durations = durations
        self.expected = expected  # of each folder, what an undisturbed run makes
        self.random = Random(seed)
        self.injected: list[Injected] = []
        self.orphaned: list[Run] = []  # whose Snakemake was killed, not their jobs
        self.passed: set[str] = set()  # steps that were at work once; some of them have ended unharmed
        self.left_state = False  # whether a training was killed that had a state
        self.complete = False  # whether the last run ended by itself
        self.resumed: set[tuple[str, int]] = set()  # logs, as of then, of trainings that went on from their state

    @property
    def hit(self) -> set[str]:
        """Steps that were killed; training only once it had a state from which it can go on."""
        killed = [fault for fault in self.injected if fault.fault != SNAKEMAKE]
        steps = {stage for fault in killed for stage in (fault.stage, *fault.others)} - {BETWEEN}
        return steps if self.left_state else steps - {TRAINING}

    def kill_times(self, count: int) -> None:
        """Kill the run ``count`` times: once in each step, in the order of the run, and at any other moment between.

        A few times more where a step had ended before its kill came.
        """
        steps = len(self.durations)
        anywhere = [True] * max(0, count - steps) + [False] * (steps - 1)
        self.random.shuffle(anywhere)
        for free in anywhere:
            self._run_and_kill(free)
        for _ in range(2 * steps):
            if self.hit == self.durations.keys() and len(self.injected) >= count:
                return
            self._run_and_kill(free=self.hit == self.durations.keys())

    def _run_and_kill(self, free: bool) -> None:
        """Start the run and kill it: anywhere, or in a step not hit before, which is done again if it had ended."""
        self.look_for_resumed()  # before the logs of the last run are removed or written over
        # Of a run that ended all steps have passed, also one that nobody saw: it can start while another is killed.
        missed = sorted((self.durations.keys() if self.complete else self.passed) - self.hit)
        if self.complete:
            self._undo(missed)
        again = () if free or not missed or self.complete else ("--forcerun", missed[0].replace("-", "_"))
        run = Run(self.project, self.config, *again)
        job = self._wait_anywhere(run) if free else self._wait_for_new(run)
        self.complete = run.over
        if run.over:  # before the kill came
            assert run.wait() == 0, f"after {self.injected}:\n{run.text[-2000:]}"
            return
        self._kill(run, job, [JOB, SNAKEMAKE, ALL] if free else [JOB, ALL])
        if self.injected[-1].fault != SNAKEMAKE:  # else its jobs go on writing, beside those of the next run
            self._check_halves()

    def _undo(self, missed: Sequence[str]) -> None:
        """Give a run that ended something to do: its last step, or everything, where another one is to be hit.

        Not by --forcerun: a step forced on a finished run, and killed, leaves a finished run without its files, which
        Snakemake does not miss.
        """
        if set(missed) <= {REPORT}:
            (self.project.folder / f"results/{self.config}/report.html").unlink()
            return
        for folder in self.expected:
            shutil.rmtree(self.project.folder / folder)

    def _check_halves(self) -> None:
        """What is under a final name is whole, at whatever moment the kill came."""
        while any(run.jobs() for run in self.orphaned):
            time.sleep(POLL)
        for folder, expected in self.expected.items():
            made = products(self.project.folder / folder)
            halves = [name for name, content in made.items() if content != expected.get(name)]
            assert halves == [], f"{folder}: {halves} after {self.injected}"

    def look_for_resumed(self) -> None:
        """Note which trainings have said in their log that they go on from their state."""
        for log in (self.project.folder / f"results/{self.config}/logs/training").rglob("*.log"):
            if "going on from" in log.read_text(errors="replace"):
                self.resumed.add((str(log), log.stat().st_mtime_ns))

    def _jobs(self, run: Run) -> list[Job]:
        jobs = run.jobs()
        self.passed |= {job.step for job in jobs}
        return jobs

    def _wait_anywhere(self, run: Run) -> Job | None:
        """Any moment, some before the first job, but not so late that the run ends by itself."""
        early = self.random.random() < 0.3
        while not early and not run.over and not self._jobs(run):
            time.sleep(POLL)
        end = time.monotonic() + self.random.uniform(0, 8)
        while time.monotonic() < end and not run.over and REPORT not in {job.step for job in self._jobs(run)}:
            time.sleep(POLL)
        return next(iter(self._jobs(run)), None)

    def _wait_for_new(self, run: Run) -> Job | None:
        """A moment within a step that has not been hit yet."""
        while not run.over:
            for job in self._jobs(run):
                if job.step not in self.hit:
                    return self._wait_within(run, job)
            time.sleep(POLL)
        return None

    def _wait_within(self, run: Run, job: Job) -> Job:
        """Wait a random part of the time that the step takes, and not until it is over; in training, for a state."""
        while job.step == TRAINING and not self._has_state("checkpoint.previous.pt") and job in self._jobs(run):
            time.sleep(POLL)
        part = 0.1 if job.step == TRAINING else 0.7
        end = time.monotonic() + self.random.uniform(0, part) * self.durations[job.step]
        while time.monotonic() < end and job in self._jobs(run):
            time.sleep(POLL)
        return job

    def _has_state(self, name: str) -> bool:
        return any((self.project.folder / f"results/{self.config}/state/training").rglob(name))

    def _kill(self, run: Run, job: Job | None, ways: Sequence[str]) -> None:
        """Kill in one of these ways; note what was hit."""
        way = self.random.choice(ways)
        if way == JOB and job and job.step != REPORT and self._kill_job(run, job):
            return
        alive = [at_work.step for at_work in self._jobs(run)]
        stage = job.step if job and job.step in alive else next(iter(alive), BETWEEN)
        if way == SNAKEMAKE and REPORT not in alive:  # the report's job would end the run without it
            self.orphaned.append(run)
            run.kill_snakemake()  # its jobs live on, and may write while the next run does
            self.injected.append(Injected(SNAKEMAKE, stage))
        else:
            run.kill_all()
            self.left_state |= TRAINING in alive and self._has_state("checkpoint.pt")
            self.injected.append(Injected(ALL, stage, tuple(sorted(set(alive) - {stage}))))

    def _kill_job(self, run: Run, job: Job) -> bool:
        """Kill one job, and see Snakemake stop and say so; False if it was not there any more."""
        if job not in run.jobs():
            return False
        os.kill(job.pid, signal.SIGKILL)
        assert run.wait() != 0, run.text[-3000:]
        assert KILLED in run.text, run.text[-3000:]
        self.left_state |= job.step == TRAINING and self._has_state("checkpoint.pt")
        self.injected.append(Injected(JOB, job.step))
        return True


def durations(run: Run) -> dict[str, float]:
    """Watch a run to its end; how long the shortest job of each step took, in seconds."""
    started: dict[Job, float] = {}
    took: dict[str, float] = {}
    while not run.over:
        now, alive = time.monotonic(), set(run.jobs())
        for job in alive - started.keys():
            started[job] = now
        for job in started.keys() - alive:
            seconds = now - started.pop(job)
            took[job.step] = min(seconds, took.get(job.step, seconds))
        time.sleep(POLL)
    assert run.wait() == 0, run.text[-6000:]
    return took


def products(run: Path) -> dict[str, Any]:
    """Every file that a run made, by its name, without what differs between two runs by nature. That is

    * ``logs/`` and ``*.log``, ``*.tsv``: when what was done, how long it took, how much memory it had;
    * ``seconds`` in ``record.json``, what the clock says in ``steps.csv``;
    * of ``report.html`` all but its figures and tables: the page tells dates and durations;
    * ``state/`` and ``.<name>.partial``, which are of jobs that have not ended: other tests look for these.

    Everything else is compared byte for byte.
    """
    return {
        str(file.relative_to(run)): _content(file)
        for file in sorted(run.rglob("*"))
        if file.is_file() and not _differs_by_nature(file.relative_to(run))
    }


def _differs_by_nature(name: Path) -> bool:
    unfinished = any(part.startswith(".") and part.endswith(".partial") for part in name.parts)
    return unfinished or name.parts[0] in ("logs", "state") or name.suffix in (".log", ".tsv")


def _content(file: Path) -> Any:
    if file.name == "record.json":
        record = json.loads(file.read_text())
        return {name: value for name, value in record.items() if name != "seconds"}
    if file.name == "steps.csv":
        with file.open(newline="") as rows:
            return [{**row, **dict.fromkeys(CLOCK)} for row in csv.DictReader(rows)]
    if file.name == "report.html":
        results = re.search(r"var results = (\{.*?\});\n", file.read_text(), re.DOTALL)
        assert results, f"{file} is not whole"
        return {name: result["data_uri"] for name, result in json.loads(results[1]).items()}
    return file.read_bytes()


def scratch(folder: Path) -> list[str]:
    """What killed writers have left below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*.partial"))
