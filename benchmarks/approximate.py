"""Mining through an approximate index against exact search: time, recall, and from which size on it pays.

    python benchmarks/approximate.py [rows ...] [--full]          some minutes on one core

A thousand queries search the whole gallery; embeddings are those of benchmarks/mining.py. The index is made once, its
probes are tuned until 95% of a sample find their nearest, and recall is measured with other queries. Times for as many
queries as rows are those of the thousand, multiplied, and the index's making. Seconds are processor time of one thread.
"""

from __future__ import annotations

from collections.abc import Iterator

import common
import mining
from torch import Tensor

from saferclip import similarity
from saferclip.config import ApproximateSettings
from saferclip.mining import approximate

QUERIES = 1000
SETTINGS = ApproximateSettings(recall=0.95, sample=250)


def compare(rows: int, rounds: int) -> Iterator[common.Row]:
    """One line for each repetition."""
    queries, gallery = mining.embedded(rows)
    queries = queries[:: max(1, rows // QUERIES)][:QUERIES].contiguous()
    ids = [f"{row:09d}" for row in range(rows)]
    for _ in range(rounds):
        yield {"rows": rows, **once(queries, gallery, ids)}


def once(queries: Tensor, gallery: Tensor, ids: list[str]) -> common.Row:
    """Both searches, one after the other."""
    rounding, _ = common.timed(lambda: similarity.search(queries[:1], gallery, mining.BLOCK_SIZE, 1))
    exact, best = common.timed(lambda: similarity.search(queries, gallery, mining.BLOCK_SIZE, 1))
    making, index = common.timed(lambda: approximate.Index(gallery, ids))
    tuning, found = common.timed(lambda: approximate.tuned(SETTINGS, index, queries, mining.BLOCK_SIZE))
    searching, (row, _) = common.timed(lambda: index.search(queries))
    each = len(gallery) / len(queries)
    whole = {
        "exact": rounding + (exact - rounding) * each,
        "approximate": making + tuning + searching * each,
        "making": making,
    }
    return {
        **{f"{name}_seconds": round(value, 2) for name, value in whole.items()},
        "to_exact": round(whole["approximate"] / whole["exact"], 3),
        "recall": found["recall"],
        "agree": round(100 * float((row == best.position[:, 0]).double().mean()), 2),
        "probes": found["probes"],
        "lists": found["lists"],
        "index_mb": round((len(gallery) * (gallery.shape[1] + 8) + index.lists * gallery.shape[1] * 4) / 1e6, 1),
    }


def main() -> None:
    """Print one line for each size and repetition, then write them."""
    chosen = common.arguments(__doc__, sizes=(4000, 16_000), full=(16_000, 165_000, 1_000_000), rounds=1)
    if common.faiss_if_there() is None:
        print("faiss is not installed: pip install 'saferclip[approximate]'")
        return
    common.one_thread()
    common.report(chosen.sizes, lambda size: compare(size, chosen.rounds), chosen.output)


if __name__ == "__main__":
    main()
