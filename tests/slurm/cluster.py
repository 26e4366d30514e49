"""A real SLURM cluster of one node on this machine, with fake GPUs: its own daemons, in a folder of their own.

    python tests/slurm/cluster.py install                     # Debian's slurm-wlm and munge, as root
    python tests/slurm/cluster.py run -- snakemake ...        # start, run a command in it, stop

Nothing outside the folder is touched, and every port is a free one, so several clusters can run side by side. Commands
find theirs by the variable SLURM_CONF. The node claims more processors and memory than the machine may have.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

PACKAGES = ("slurm-wlm", "munge")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
# Daemons live in sbin, which a user's PATH may lack.
SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
# Snakemake's plugin clears all SLURM_ variables for the srun inside of a job, and with them the way to this cluster.
SRUN = """#!/bin/sh
SLURM_CONF={folder}/slurm.conf exec {srun} "$@"
"""
START_SECONDS = 60
STOP_SECONDS = 20

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its credential has expired: two minutes by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5

StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed
MinJobAge=86400

# No control groups, which a container may lack. A job that takes more memory than it asked for is killed all the same.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
MpiDefault=none
KillWait=10
# A job of `urgent` takes the place of one of `normal`, which is told half a minute before.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE

GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:{gpu_model}:{gpus} State=UNKNOWN
PartitionName=normal Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=gpu Nodes={host} MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


class Failed(Exception):
    """The cluster cannot be had, or its daemons do not do what they should."""


@dataclass(frozen=True)
class Node:
    """What the one node claims to have; memory in MB."""

    cpus: int = 64
    memory: int = 512_000
    gpus: int = 12
    gpu_model: str = "a100"


@dataclass(frozen=True)
class Cluster:
    """A running cluster: the folder of its files and the environment in which commands find it."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: str) -> str:
        """What one of SLURM's commands prints."""
        done = subprocess.run(
            command, env=dict(self.environment), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise Failed(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """What the controller knows of every job, finished ones too: one dictionary of scontrol's fields each."""
        text = self.run("scontrol", "--details", "--oneliner", "show", "job")
        return [fields(line) for line in text.splitlines() if line.startswith("JobId=")]

    def completed(self) -> list[dict[str, str]]:
        """The completion log: one dictionary a finished attempt of a job, in order of their ends."""
        log = self.folder / "completed"
        return [fields(line) for line in log.read_text().splitlines()] if log.exists() else []


def fields(line: str) -> dict[str, str]:
    """The ``Key=value`` pairs of a line of scontrol or of the completion log; values may hold blanks."""
    return dict(re.findall(r"(?:^|\s)([A-Z][\w:/]*)=(.*?)(?=\s+[A-Z][\w:/]*=|\s*$)", line))


def unavailable() -> str:
    """Why no cluster can be started here; empty where one can."""
    missing = [program for program in PROGRAMS if not shutil.which(program, path=SEARCH)]
    if not missing:
        return ""
    if shutil.which("apt-get") is None:
        return f"SLURM ({', '.join(missing)}) is not installed, and there is no apt-get to install it"
    if os.geteuid() != 0:
        return f"SLURM ({', '.join(missing)}) is not installed, and only root may install it"
    return ""


def install() -> None:
    """Install Debian's packages where a program is missing; Failed where that cannot be done."""
    if all(shutil.which(program, path=SEARCH) for program in PROGRAMS):
        return
    if reason := unavailable():
        raise Failed(reason)
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(
            ["apt-get", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Failed(f"apt-get {' '.join(command)} failed:\n{done.stdout[-2000:]}")


@contextmanager
def cluster(node: Node | None = None) -> Iterator[Cluster]:
    """A cluster whose node is idle; however the block ends, all processes that belong to it are gone afterwards."""
    install()
    # Not below a test's folder: a socket's path may have 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    path = os.pathsep.join([f"{folder}/bin", SEARCH])
    started = Cluster(folder, os.environ | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": path})
    try:
        _configure(folder, node or Node())
        _start(started)
        yield started
    finally:
        _stop(started)
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path, node: Node) -> None:
    for name in ("bin", "state", "spool", "gpus"):
        (folder / name).mkdir()
    srun = folder / "bin/srun"
    srun.write_text(SRUN.format(folder=folder, srun=shutil.which("srun", path=SEARCH)))
    srun.chmod(0o755)
    # munged asks that nobody but its user can write there.
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    text = CONFIGURATION.format(
        host=socket.gethostname().split(".")[0],
        user=getpass.getuser(),
        folder=folder,
        controller_port=_free_port(),
        node_port=_free_port(),
        cpus=node.cpus,
        memory=node.memory,
        gpus=node.gpus,
        gpu_model=node.gpu_model,
    )
    (folder / "slurm.conf").write_text(text)
    # SLURM numbers a GPU by the end of its file's name, and asks no more of it than to be a device.
    for number in range(node.gpus):
        (folder / f"gpus/gpu{number}").symlink_to("/dev/null")
    files = f"{folder}/gpus/gpu[0-{node.gpus - 1}]"
    (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu Type={node.gpu_model} File={files}\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(made: Cluster) -> None:
    folder = made.folder
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    munged = ("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
    daemons = {"munged": _daemon(made, *munged)}
    _wait("munged", folder, daemons, (folder / "munge.socket").exists)
    daemons["slurmctld"] = _daemon(made, "slurmctld", "-D")
    daemons["slurmd"] = _daemon(made, "slurmd", "-D")
    _wait("the node", folder, daemons, lambda: _idle(made))


def _daemon(made: Cluster, *command: str) -> subprocess.Popen[bytes]:
    """Start a daemon in the foreground, in a session of its own, so that Ctrl-C does not reach it before its jobs."""
    output = (made.folder / f"{command[0]}.output").open("wb")
    with output:
        program = shutil.which(command[0], path=SEARCH)
        return subprocess.Popen(
            [str(program), *command[1:]],
            env=dict(made.environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _idle(made: Cluster) -> bool:
    try:
        return made.run("sinfo", "--noheader", "--format=%T").split()[:1] == ["idle"]
    except Failed:
        return False  # the controller does not answer yet


def _wait(what: str, folder: Path, daemons: Mapping[str, subprocess.Popen[bytes]], ready: Callable[[], bool]) -> None:
    """Wait until something is ready; Failed with the ends of all logs if it does not become so, or a daemon dies."""
    for _ in range(START_SECONDS * 5):
        if ready():
            return
        if dead := [name for name, daemon in daemons.items() if daemon.poll() is not None]:
            raise Failed(f"{', '.join(dead)} ended at once\n{_logs(folder)}")
        time.sleep(0.2)
    raise Failed(f"{what} was not ready after {START_SECONDS} s\n{_logs(folder)}")


def _logs(folder: Path) -> str:
    """The ends of the daemons' logs."""
    files = [file for pattern in ("*.output", "*.log") for file in sorted(folder.glob(pattern)) if file.stat().st_size]
    return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-2000:]}" for file in files)


def _stop(made: Cluster) -> None:
    """End jobs, then daemons, then whatever else has this cluster in its environment."""
    with suppress(Failed):
        made.run("scontrol", "ping")  # without a controller, scancel would ask for minutes
        made.run("scancel", "--full", "--user", getpass.getuser())
        for _ in range(STOP_SECONDS * 5):
            if not made.run("squeue", "--noheader").strip():
                break
            time.sleep(0.2)
    for number, seconds in ((signal.SIGTERM, 3), (signal.SIGKILL, STOP_SECONDS)):
        for _ in range(seconds * 5):
            found = _members(made)
            for process in found:
                with suppress(ProcessLookupError):
                    os.kill(process, number)
            if not found:
                return
            time.sleep(0.2)


def _members(made: Cluster) -> list[int]:
    """Processes that were started with this cluster's SLURM_CONF, but this one."""
    mark = f"SLURM_CONF={made.environment['SLURM_CONF']}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with suppress(OSError):
            living = b"\nState:\tZ" not in (folder / "status").read_bytes()
            if living and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _run(command: Sequence[str]) -> int:
    """Run a command in a cluster; a signal that ends this program ends the cluster, too."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    with cluster() as made:
        return subprocess.run(command, env=dict(made.environment), check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subcommands = parser.add_subparsers(dest="action", required=True)
    subcommands.add_parser("install", help="install Debian's slurm-wlm and munge where they are missing")
    run = subcommands.add_parser("run", help="run a command in a cluster of its own")
    run.add_argument("command", nargs="+", help="after --")
    arguments = parser.parse_args()
    try:
        if arguments.action == "install":
            install()
            return 0
        return _run(arguments.command)
    except Failed as error:
        print(f"cluster.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
