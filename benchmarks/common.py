"""What every benchmark here has: arguments, a clock, peak memory, and a table that says where it was measured."""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

Row = dict[str, Any]
Result = TypeVar("Result")


def arguments(description: str | None, sizes: Sequence[int], full: Sequence[int], rounds: int) -> argparse.Namespace:
    """Parse what all benchmarks understand; ``sizes`` are a laptop's, ``full`` those of ``--full``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, help=f"instead of {' '.join(map(str, sizes))}")
    parser.add_argument("--full", action="store_true", help=f"sizes {' '.join(map(str, full))}: an hour or more")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"repetitions, interleaved ({rounds})")
    parser.add_argument("--output", type=Path, help="the CSV (results/benchmarks/<this script>.csv)")
    parser.add_argument("--gallery", type=int, help="items of the gallery, where that is not the size itself")
    parser.add_argument("--model", help="open_clip's name of a model, where there is one")
    parser.add_argument("--fp32", action="store_true", help="leave bf16 out, where the processor has no products in it")
    chosen = parser.parse_args()
    chosen.sizes = chosen.sizes or list(full if chosen.full else sizes)
    chosen.output = chosen.output or Path("results", "benchmarks", f"{Path(sys.argv[0]).stem}.csv")
    return chosen


def one_thread() -> None:
    """Let torch and faiss compute in one thread: then the processor's time is the work, on a busy machine too."""
    import torch

    torch.set_num_threads(1)
    if (faiss := faiss_if_there()) is not None:
        faiss.omp_set_num_threads(1)


def faiss_if_there() -> Any:
    """The module faiss, or None."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Processor seconds of one call, and what it returned."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


# A process starts with its parent's peak memory for its own, so that of a command is asked of a parent that has little.
SMALL_PARENT = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
status = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([status, time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


def costs(command: Sequence[str]) -> Row:
    """Seconds on the wall and of the processor, and peak memory in MB, of a command; RuntimeError if it fails."""
    told = subprocess.run([sys.executable, "-c", SMALL_PARENT, *command], check=True, stdout=subprocess.PIPE, text=True)
    status, wall, seconds, peak = json.loads(told.stdout.splitlines()[-1])
    if status:
        raise RuntimeError(f"{command[0]} ended with status {status}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"wall": round(wall, 2), "seconds": round(seconds, 2), "peak_mb": round(peak * unit / 1e6)}


def machine() -> Row:
    """Where and when it was measured, and with which versions."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        named = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        processor = named[0].partition(": ")[2] if named else processor
    packages = {name: _version(package) for name, package in (("torch", "torch"), ("faiss", "faiss-cpu"))}
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **packages,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def spread(seconds: Sequence[float]) -> Row:
    """The least and the middle of several rounds."""
    return {"seconds": round(statistics.median(seconds), 4), "least": round(min(seconds), 4)}


def median_ratio(left: Sequence[float], right: Sequence[float]) -> float:
    """Median, over rounds, of the ratio of two ways that were timed in turn."""
    return round(statistics.median(one / other for one, other in zip(left, right, strict=True)), 3)


def show(row: Mapping[str, Any]) -> None:
    """Print one row as soon as it is known."""
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def report(sizes: Sequence[int], measure: Callable[[int], Iterable[Row]], output: Path) -> None:
    """Show each row of each size as soon as it is measured, then save all."""
    rows: list[Row] = []
    for size in sizes:
        for row in measure(size):
            show(row)
            rows.append(row)
    save(rows, output)


def save(rows: Sequence[Row], output: Path) -> None:
    """Write all rows as CSV, each with the machine, and say where."""
    described = machine()
    names = list(dict.fromkeys(name for row in rows for name in row))
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*names, *described])
        writer.writeheader()
        writer.writerows({**row, **described} for row in rows)
    show(described)
    print(output)
