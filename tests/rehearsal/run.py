"""Rehearse the run at paper scale: every rule, from download to report, on small stand-ins and a CPU.

    python tests/rehearsal/run.py             # as `make rehearse` does, in the project that this file belongs to

First the rules that may use a network, with a hub and a web server on loopback; then everything else with nothing but
a language model to talk to. A run that was stopped goes on. At the end: what was made, and how long each rule took.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import llm
import server

PROJECT = Path(__file__).parents[2]
WORLD = Path("downloads/rehearsal")  # as config/rehearsal.yaml says
RESULTS = Path("results/rehearsal")
RELEASE = Path("results/rehearsal-release")
CONFIGURATION = ("config/paper.yaml", "config/generation.yaml", "config/rehearsal.yaml")
RELEASE_CONFIGURATION = (*CONFIGURATION, "config/rehearsal-release.yaml")
# What of the run with the public release is made: enough to have read all of it.
RELEASE_TARGETS = (f"{RELEASE}/evaluation/safer-clip/seed-0/nsfw_caps.json",)
NETWORKED = ("download", "benchmark_images")
TOKEN = "hf_rehearsal"  # ViSU is gated here as it is on the hub
# Nobody listens there, and nobody may: names that end so never exist.
NOWHERE = "http://nowhere.invalid"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
MADE = (
    "report.html",
    "config.yaml",
    "data/train.parquet",
    "benchmark/nsfw_caps.parquet",
    "test_sets/gallery.parquet",
    "test_sets/zero_shot.parquet",
    "robustness/variants.parquet",
    "evaluation/safer-clip/seed-0/zero_shot.json",
    "evaluation/safe-clip-published/seed-0/test.json",
    "export/safer-clip/seed-0/open_clip/open_clip_model.safetensors",
    "export/safer-clip/seed-0/transformers/model.safetensors",
    "export/safer-clip/seed-0/diffusers_text_encoder/text_encoder/model.safetensors",
    "text_to_image/safer-clip/seed-0/sld-strong.json",
    "image_to_text/safer-clip/seed-0/record.json",
)


class Failed(Exception):
    """The rehearsal did not do what it should; the message says what."""


def main() -> None:
    """Rehearse, and say what was made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="2", help="as Snakemake's; default: 2")
    arguments = parser.parse_args()
    os.chdir(PROJECT)
    signal.signal(signal.SIGTERM, _stop)
    start = time.monotonic()
    try:
        rehearse(arguments.cores)
    except Failed as error:
        sys.exit(f"error: {error}")
    print_times(RESULTS, WORLD)
    print(f"\nThe rehearsal took {(time.monotonic() - start) / 60:.1f} minutes; its report is {RESULTS}/report.html")


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def rehearse(cores: str) -> None:
    """Make the stand-ins if they are not there, fetch, run, and check; raises Failed."""
    prepare()
    fetch(cores)
    work(cores)
    missing = [name for name in MADE if not (RESULTS / name).is_file()]
    missing += [name for name in RELEASE_TARGETS if not Path(name).is_file()]
    if missing:
        raise Failed(f"these were not made: {', '.join(missing)}")


def prepare() -> None:
    """Write the stand-ins; anew, with all that came of them, if the code that writes them has changed."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    stamp = WORLD / "made-by.txt"
    if stamp.is_file() and stamp.read_text() == digest:
        return
    for folder in (WORLD, RESULTS, RELEASE):
        shutil.rmtree(folder, ignore_errors=True)
    script = str(Path(__file__).with_name("fixtures.py"))
    if run([sys.executable, script, str(WORLD)], environment({})):
        raise Failed("the stand-ins could not be made")
    stamp.write_text(digest)


def fetch(cores: str) -> None:
    """Run the rules that use a network, against the loopback server; real pins name commits that it does not have."""
    with server.Hub(WORLD / "served", any_revision=True) as hub:
        told = {"HF_ENDPOINT": hub.address, "http_proxy": hub.address, "no_proxy": "127.0.0.1", "HF_TOKEN": TOKEN}
        for files in (CONFIGURATION, RELEASE_CONFIGURATION):
            snakemake(["--cores", cores, "downloads", "benchmark_images"], files, told)


def work(cores: str) -> None:
    """Run everything else, with the hub gone; raises Failed if anything but the language model was asked for."""
    with llm.LanguageModel() as model:
        proxy = model.address.removesuffix("/v1")  # which notes whatever else it is asked for
        told = {"HF_ENDPOINT": NOWHERE, "http_proxy": proxy, "https_proxy": proxy}
        snakemake(["--cores", cores, "all", "exports"], CONFIGURATION, told)
        snakemake(["--cores", cores, *RELEASE_TARGETS], RELEASE_CONFIGURATION, told)
        strays = model.strays
    if strays:
        raise Failed(f"a step other than {' and '.join(NETWORKED)} used the network: {', '.join(strays)}")


def snakemake(arguments: Sequence[str], files: Sequence[str], told: Mapping[str, str]) -> None:
    """Run Snakemake with this Python; raises Failed."""
    command = [sys.executable, "-m", "snakemake", *arguments, "--quiet", "rules", "--configfile", *files]
    if code := run(command, environment(told)):
        raise Failed(f"snakemake ended with {code}; its messages are above, and logs in {RESULTS}/logs")


def environment(told: Mapping[str, str]) -> dict[str, str]:
    """The environment of every command: this project's code, nobody's own proxies, tokens or caches."""
    kept = {name: value for name, value in os.environ.items() if name.lower() not in PROXIES}
    kept = {name: value for name, value in kept.items() if not name.startswith(("HF_", "HUGGING"))}
    paths = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT / "src"),
        "HF_HOME": str((WORLD / "hub-cache").absolute()),
    }
    return kept | paths | dict(told)


def run(command: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run a command and return its status; whatever happens, none of its processes is left behind."""
    with group(subprocess.Popen(command, env=dict(variables), start_new_session=True)) as process:
        return process.wait()


@contextmanager
def group(process: subprocess.Popen[Any], grace: float = 10) -> Iterator[subprocess.Popen[Any]]:
    """Context at whose end a process is gone, and all of its session with it: first asked, then made to."""
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            # Not only for the process itself: Snakemake may end before its jobs do, and what was killed still takes a
            # moment to disappear.
            end = time.monotonic() + grace
            while (process.poll() is None or living(process.pid)) and time.monotonic() < end:
                time.sleep(0.05)


def living(session: int) -> list[int]:
    """Processes of a session, by Linux's /proc; without those that have ended and that nobody has waited for yet."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            # The program's name, in brackets, may hold anything.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(folder.name))
    return found


def print_times(*folders: Path) -> None:
    """Jobs and seconds of each rule, the longest first, from Snakemake's benchmark files."""
    print(f"\n{'rule':<24}{'jobs':>6}{'seconds':>10}")
    for rule, seconds in sorted(times(*folders).items(), key=lambda item: -sum(item[1])):
        print(f"{rule:<24}{len(seconds):>6}{sum(seconds):>10.1f}")


def times(*folders: Path) -> dict[str, list[float]]:
    """Seconds of each job, by rule: the first part of the benchmark file's name below 'logs'."""
    found: dict[str, list[float]] = defaultdict(list)
    for folder in folders:
        for file in sorted(folder.glob("**/logs/**/*.tsv")):
            parts = file.relative_to(folder).parts
            rule = "download" if parts[0] == "fetched" else Path(parts[parts.index("logs") + 1]).stem
            with file.open(newline="") as rows:
                found[rule] += [float(row["s"]) for row in csv.DictReader(rows, delimiter="\t")]
    return found


if __name__ == "__main__":
    main()
