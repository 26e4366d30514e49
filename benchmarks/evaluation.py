"""Ranks and recalls of cached embeddings, against a loop over queries and against CLIP_benchmark's functions.

    python benchmarks/evaluation.py [queries ...] [--full]          about a minute on one core

Each query has one correct item in the gallery.  Embeddings are those of benchmarks/mining.py.

evaluation        what the step does: ranks and best items of one comparison, in blocks
loop              one query at a time: its similarities, sorted; for some queries, and multiplied
CLIP_benchmark    recall at 1, 10 and 20 as its recall_at_k computes it, from the whole matrix; the package itself if it
                  is installed, or else its algorithm in our words.  Only where matrices are not too large for memory

Seconds are processor time of one thread, after the towers' work.  Memory is the peak of a process of its own.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import common
import mining
import torch
from torch import Tensor

from saferclip import io, metrics

BLOCK_SIZE = 1024  # of every configuration
GALLERY = {False: 20_000, True: 100_000}  # without and with --full
RECALLS = (1, 10, 20)
INPUTS = ("queries", "gallery", "correct")
LOOPED = 100  # queries of the loop
HELD = 256  # queries whose whole matrix is held, beside larger matrices made of it
BATCH = 64  # of CLIP_benchmark's command line


def ours(queries: Tensor, gallery: Tensor, correct: Tensor) -> Tensor:
    """Ranks, (queries,)."""
    return metrics.ranks_and_top(queries, gallery, correct, 2, BLOCK_SIZE)[0]


def loop(queries: Tensor, gallery: Tensor, correct: Tensor) -> Tensor:
    """The plain way."""
    found = []
    for query, own in zip(queries, correct.tolist(), strict=True):
        order = (gallery @ query).argsort(descending=True)
        found.append(1 + int((order == own).nonzero()))
    return torch.tensor(found)


def whole_matrix(queries: Tensor, gallery: Tensor, correct: Tensor) -> dict[int, float]:
    """Recalls in percent."""
    scores = queries @ gallery.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), correct] = True
    recall_at_k = clip_benchmark() or in_our_words
    recalls = {}
    for k in RECALLS:
        parts = zip(scores.split(BATCH), positive.split(BATCH), strict=True)
        hit = torch.cat([recall_at_k(score, mask, k) for score, mask in parts]) > 0
        recalls[k] = 100 * float(hit.double().mean())
    return recalls


def clip_benchmark() -> Callable[[Tensor, Tensor, int], Tensor] | None:
    """The package's own function, or None."""
    try:
        from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k
    except ImportError:
        return None
    return recall_at_k


def in_our_words(scores: Tensor, positive: Tensor, k: int) -> Tensor:
    """Share of each query's positives among its best k: the best as indicators over the whole gallery."""
    best = scores.topk(k, dim=1).indices
    chosen = torch.nn.functional.one_hot(best, scores.shape[1])
    return (chosen * positive[:, None, :]).sum(dim=(1, 2)) / positive.sum(dim=1)


def material(queries: int, items: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, gallery, and the correct item of each query."""
    asked, gallery = mining.embedded(items)
    correct = torch.arange(queries) % items
    return asked[correct], gallery, correct


def compare(count: int, items: int, rounds: int) -> Iterator[common.Row]:
    """Time all ways in turn; ranks and recalls have to be the same."""
    queries, gallery, correct = material(count, items)
    part = slice(0, min(LOOPED, count))
    held = slice(0, min(HELD, count))
    seconds: dict[str, list[float]] = {"evaluation": [], "evaluation of the held": [], "loop": [], "CLIP_benchmark": []}
    for _ in range(rounds):
        spent, ranks = common.timed(lambda: ours(queries, gallery, correct))
        seconds["evaluation"].append(spent)
        spent, few = common.timed(lambda: ours(queries[held], gallery, correct[held]))
        seconds["evaluation of the held"].append(spent)
        spent, looped = common.timed(lambda: loop(queries[part], gallery, correct[part]))
        seconds["loop"].append(spent * count / len(looped))
        spent, recalls = common.timed(lambda: whole_matrix(queries[held], gallery, correct[held]))
        seconds["CLIP_benchmark"].append(spent)
    agree = {
        "evaluation": float((ranks[held] == few).double().mean()),
        "loop": float((ranks[part] == looped).double().mean()),
        "CLIP_benchmark": float(all(abs(metrics.recall_at(few, k) - recalls[k]) < 1e-6 for k in RECALLS)),
    }
    reference = {"CLIP_benchmark": "evaluation of the held"}
    for name, spent in seconds.items():
        row: common.Row = {
            "queries": held.stop if "held" in name or name == "CLIP_benchmark" else count,
            "items": items,
        }
        row |= {"way": name, **common.spread(spent)}
        row["to_evaluation"] = common.median_ratio(spent, seconds[reference.get(name, "evaluation")])
        if name in agree:
            row["agree"] = round(100 * agree[name], 3)
        if name == "CLIP_benchmark":
            row["by"] = "the package" if clip_benchmark() else "our words"
        yield row
    yield memory(count, items)


def memory(count: int, items: int) -> common.Row:
    """Peak of a process that reads cached embeddings and evaluates them, and of one that only reads."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "embeddings.safetensors"
        io.write_tensors(file, dict(zip(INPUTS, material(count, items), strict=True)))
        command = [sys.executable, __file__, "--memory", str(file)]
        peaks = [common.costs([*command, work])["peak_mb"] for work in ("read", "evaluate")]
    row = {"queries": count, "items": items, "way": "memory", "inputs_mb": peaks[0], "peak_mb": peaks[1]}
    return row | {"whole_matrix_mb": round(count * items * 4 / 1e6)}


def measured(file: Path, work: str) -> None:
    """What is done in the process whose memory is measured."""
    inputs = io.read_tensors(file)
    touched = [float(rows.sum()) for rows in inputs.values()]
    if work == "evaluate" and touched:
        ours(*(inputs[name] for name in INPUTS))


def main() -> None:
    """Print one line for each number of queries and way, then write them."""
    if sys.argv[1:2] == ["--memory"]:
        measured(Path(sys.argv[2]), sys.argv[3])
        return
    chosen = common.arguments(__doc__, sizes=(1000, 5000), full=(5000, 50_000), rounds=3)
    common.one_thread()
    gallery = chosen.gallery or GALLERY[chosen.full]
    common.report(chosen.sizes, lambda count: compare(count, gallery, chosen.rounds), chosen.output)


if __name__ == "__main__":
    main()
