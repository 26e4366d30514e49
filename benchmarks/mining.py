"""Time and memory of mining in blocks, against the whole matrix of similarities at once.

    python benchmarks/mining.py [rows ...]          about 2 min on one core with the default 4000 8000 16000

The plain way is one float32 matrix product and argmax; its memory grows with the square of the rows,
and equal captions may be told apart by rounding.  Mining computes similarities exactly, in float64.
Each measurement runs in a process of its own; memory is the process's peak above its start.
"""

import resource
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context

import torch
from torch import Tensor

from saferclip.mining.nearest import nearest

DIM = 768  # of ViT-L/14
BLOCK_SIZE = 2048  # of config/mini.yaml
THREADS = 1


def plain(queries: Tensor, gallery: Tensor) -> Tensor:
    """The whole matrix."""
    return (queries @ gallery.T).argmax(dim=1)


def blocked(queries: Tensor, gallery: Tensor) -> Tensor:
    """What the mining step does."""
    return nearest(queries, gallery, [f"{row:09d}" for row in range(len(gallery))], BLOCK_SIZE)[0]


def measure(find: Callable[[Tensor, Tensor], Tensor], rows: int) -> tuple[float, float, Tensor]:
    """Seconds, megabytes, and the neighbours found among random unit rows."""
    torch.set_num_threads(THREADS)
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.nn.functional.normalize(torch.randn(2, rows, DIM, generator=generator), dim=-1)
    find(queries[:64], gallery[:64])
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.process_time()
    found = find(queries, gallery)
    seconds = time.process_time() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    return seconds, (after.ru_maxrss - before.ru_maxrss) / 1024, found


def main() -> None:
    """Print one line for each size."""
    sizes = [int(argument) for argument in sys.argv[1:]] or [4000, 8000, 16000]
    print(
        f"{'rows':>7} {'plain s':>9} {'blocks s':>9} {'time ratio':>11} {'plain MB':>9} {'blocks MB':>10} {'agree':>7}"
    )
    for rows in sizes:
        results = []
        for find in (plain, blocked):
            with get_context("spawn").Pool(1) as pool:
                results.append(pool.apply(measure, (find, rows)))
        (plain_seconds, plain_memory, expected), (seconds, memory, found) = results
        ratio, agree = seconds / plain_seconds, 100 * float((found == expected).double().mean())
        times = f"{plain_seconds:9.2f} {seconds:9.2f} {ratio:11.2f}"
        print(f"{rows:7d} {times} {plain_memory:9.0f} {memory:10.0f} {agree:6.2f}%", flush=True)


if __name__ == "__main__":
    main()
