"""Where the minutes of a whole run go, and how long small requests take.

    python benchmarks/whole_run.py [run] [--full]          two minutes on two cores; with --full, the run itself first

Of results/<run>, which was made before or fetched by `dvc pull`, it reads what Snakemake noted down of every job.  With
--full the run is made anew.  Everything happens in a copy, in a folder for a while: nothing of the project changes.

rules       jobs of each rule, seconds on the wall and of the processor (cpu), peak memory, and start-up: what
            Python takes to import the step's code, times the jobs
requests    `saferclip --help`; `snakemake` where there is nothing to do; one figure anew, alone and with the report

Goals are seconds on two cores that have nothing else to do.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import sys
import tempfile
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import common

ROOT = Path(__file__).parents[1]
# What the workflow needs in a copy of the project, the delivered base model among it.
PARTS = ("Snakefile", "workflow", "profiles", "config", "src", "environment.yml", "dvc.lock", "results/iconworld-clip")
REMEMBERED = ".snakemake/metadata"
FIGURE = "figures/similarity.png"
GOALS = {"whole run": 480, "saferclip --help": 0.5, "nothing to do": 8, "one figure": 10}
# What a job of each rule imports, at its beginning or on its way.
CODE = {
    "data": ("data.build", "data.iconworld"),
    "test_sets": ("data.test_sets", "data.iconworld"),
    "robustness": ("data.robustness.build", "data.iconworld"),
    "base_model": ("base_model.fetch",),
    "benchmark": ("benchmark.build", "models"),
    "embedding": ("mining.embedding",),
    "mining": ("mining.nearest",),
    "training": ("training.train",),
    "evaluation": ("evaluation.evaluate",),
    "tradeoff": ("evaluation.tradeoff",),
    "figures": ("figures.figure", "figures.style"),
    "tables": ("figures.table",),
}


class Job(NamedTuple):
    """What Snakemake measured of one job."""

    seconds: float
    cpu: float
    peak_mb: float


def jobs_of(run: Path) -> dict[str, list[Job]]:
    """Jobs by rule, which is the first part of a benchmark file's name below the run's logs."""
    found: dict[str, list[Job]] = defaultdict(list)
    for path in sorted((run / "logs").glob("**/*.tsv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                # There are no other numbers of a job that was over at once.
                numbers = (float(row[name]) if row[name].strip("NA-") else 0.0 for name in ("cpu_time", "max_rss"))
                found[path.relative_to(run / "logs").with_suffix("").parts[0]].append(Job(float(row["s"]), *numbers))
    return found


def duration(project: Path, run: str) -> float:
    """Seconds from the beginning of the run's first job to the end of its last, as Snakemake remembers them."""
    spans = []
    for path in (project / REMEMBERED).iterdir():
        if b64decode(path.name).decode().startswith(f"results/{run}/"):
            told = json.loads(path.read_text(encoding="utf-8"))
            spans.append((told["starttime"], told["endtime"]))
    return max(end for _, end in spans) - min(start for start, _ in spans)


def rules(run: Path, rounds: int) -> Iterator[common.Row]:
    """A line for each rule, the longest first, and their sum."""
    sums = dict.fromkeys(("jobs", "seconds", "cpu", "start_up"), 0.0)
    for rule, jobs in sorted(jobs_of(run).items(), key=lambda item: -sum(job.seconds for job in item[1])):
        seconds, cpu, peaks = zip(*jobs, strict=True)
        line: common.Row = {"jobs": len(jobs), "seconds": sum(seconds), "cpu": sum(cpu)}
        line["start_up"] = len(jobs) * start_up(CODE.get(rule, ()), rounds)
        sums = {name: sums[name] + line[name] for name in sums}
        yield {"what": rule, **_rounded(line), "peak_mb": round(max(peaks))}
    yield {"what": "all rules", **_rounded(sums)}


def _rounded(line: common.Row) -> common.Row:
    return {name: round(value, 1) for name, value in line.items()}


def start_up(modules: Sequence[str], rounds: int) -> float:
    """Processor seconds until Python has imported these modules of the package; none for a rule without any."""
    if not modules:
        return 0.0
    command = [sys.executable, "-c", f"import {', '.join(f'saferclip.{name}' for name in modules)}"]
    return statistics.median(common.costs(command)["seconds"] for _ in range(rounds))


def requests(run: str, rounds: int) -> Iterator[common.Row]:
    """A line for each request, in the folder of a copy with the finished run."""
    figure = f"results/{run}/{FIGURE}"
    options = ["--cores", "2", "--quiet", "all", "--configfile", f"config/{run}.yaml"]
    # Whatever was edited since, nothing is to be done.
    common.costs(["snakemake", "--touch", *options])
    commands = {
        "saferclip --help": ["saferclip", "--help"],
        "nothing to do": ["snakemake", *options],
        "one figure": ["snakemake", figure, "--force", *options],
        "one figure and the report": ["snakemake", "--forcerun", figure, *options],
    }
    for what, command in commands.items():
        spent = [common.costs(command) for _ in range(rounds)]
        row: common.Row = {"what": what, "jobs": ""}
        for measured, name in {"wall": "seconds", "seconds": "cpu", "peak_mb": "peak_mb"}.items():
            row[name] = statistics.median(costs[measured] for costs in spent)
        yield row | ({"goal": GOALS[what]} if what in GOALS else {})


def copy(run: str, folder: Path, finished: bool) -> None:
    """Copy the project, and the run if it is finished."""
    for name in (*PARTS, *((f"results/{run}", REMEMBERED) if finished else ())):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=(ROOT / name).is_symlink())
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)


def measured(run: str, full: bool, rounds: int) -> Iterator[common.Row]:
    """All lines, in the folder of a copy."""
    whole: common.Row = {"what": "whole run", "jobs": "", "goal": GOALS["whole run"]}
    if full:
        costs = common.costs(["snakemake", "--cores", "2", "--quiet", "all", "--configfile", f"config/{run}.yaml"])
        yield whole | {"seconds": costs["wall"], "cpu": costs["seconds"]}
    else:
        yield whole | {"seconds": round(duration(Path(), run), 1)}
    yield from rules(Path("results", run), rounds)
    yield from requests(run, rounds)


def main() -> None:
    """Print one line for each rule and request, then write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="mini", help="a name in results/ (mini)")
    parser.add_argument("--full", action="store_true", help="make the run anew: minutes")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions (3)")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/whole_run.csv"), help="the CSV")
    chosen = parser.parse_args()
    output = chosen.output.absolute()
    if not chosen.full and not (ROOT / f"results/{chosen.run}/report.html").is_file():
        sys.exit(f"results/{chosen.run} is not finished: make it, fetch it by `dvc pull`, or say --full")
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        copy(chosen.run, Path(folder), finished=not chosen.full)
        os.chdir(folder)
        try:
            os.environ["PYTHONPATH"] = str(Path(folder, "src"))
            rows = []
            for row in measured(chosen.run, chosen.full, chosen.rounds):
                common.show(row)
                rows.append(row)
        finally:
            os.chdir(before)
    common.save(rows, output)


if __name__ == "__main__":
    main()
