"""Mining's exact search against the bare products, faiss, and plain ways; memory of the whole command.

    python benchmarks/mining.py [rows ...] [--full]          some minutes on one core

As many unsafe as safe captions; embeddings are made up, of 48 independent directions in 768 numbers.

bare      all products, a block after the other, of which nothing is kept: the least that exact search can take
float64   each block in float64, then the largest: the result by definition
plain     the whole matrix in float32 at once, then the largest; only where it fits
mining    what the step does: the fastest product, and exact similarities where they matter
faiss     IndexFlatIP

Of many rows, only some queries search the whole gallery, and their time is multiplied, for it grows with their number;
what mining does once for the gallery is measured apart and counted once.  The last line is the command itself, whole.
Seconds are processor time of one thread.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor

from saferclip import io, similarity
from saferclip.mining.nearest import nearest

DIM, DIRECTIONS = 768, 48
BLOCK_SIZE = 2048  # of every configuration
WHOLE = 16_000  # rows up to which the plain way is tried
FEW = 20_000  # rows up to which all queries are searched for


def embedded(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unsafe and safe captions, (rows, dim) each: pairs are similar, and many others nearly so."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn(DIRECTIONS, DIM, generator=generator) / DIRECTIONS**0.5
    meanings = torch.randn(rows, DIRECTIONS, generator=generator)
    others = meanings + 0.7 * torch.randn(rows, DIRECTIONS, generator=generator)
    return _embed(others, axes), _embed(meanings, axes)


def _embed(meanings: Tensor, axes: Tensor) -> Tensor:
    parts = [
        torch.nn.functional.normalize(torch.tanh(part @ axes) + 0.3, dim=-1) for part in meanings.split(BLOCK_SIZE)
    ]
    return torch.cat(parts)


def blocks(queries: Tensor, gallery: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Pairs of blocks, with the place of the second one's first row."""
    for asked in queries.split(BLOCK_SIZE):
        for number, items in enumerate(gallery.split(BLOCK_SIZE)):
            yield asked, items, number * BLOCK_SIZE


def bare(queries: Tensor, gallery: Tensor) -> None:
    """All products in the gallery's precision, into one block."""
    queries, block = queries.to(gallery.dtype), torch.empty(BLOCK_SIZE * BLOCK_SIZE, dtype=gallery.dtype)
    for asked, items, _ in blocks(queries, gallery):
        torch.mm(asked, items.T, out=block[: len(asked) * len(items)].view(len(asked), len(items)))


def in_float64(queries: Tensor, gallery: Tensor) -> Tensor:
    """The definition: the first of the largest exact similarities."""
    found = []
    for asked in queries.split(BLOCK_SIZE):
        exact = similarity.fixed_point(asked)
        best = torch.full((len(asked),), -torch.inf, dtype=torch.float64)
        place = torch.zeros(len(asked), dtype=torch.int64)
        for number, items in enumerate(gallery.split(BLOCK_SIZE)):
            value, position = (exact @ similarity.fixed_point(items).T).max(dim=1)
            better = value > best
            best[better], place[better] = value[better], position[better] + number * BLOCK_SIZE
        found.append(place)
    return torch.cat(found)


@dataclass(frozen=True)
class Way:
    """One way of searching, given queries."""

    name: str
    search: Callable[[Tensor], Any]
    part: int = 16  # of many queries, one of so many is searched for
    limit: int | None = None  # rows
    prepares: bool = False  # does something for the gallery, whatever the number of queries

    def seconds(self, queries: Tensor, part: int) -> tuple[float, Any]:
        """Time for all queries, by that for every ``part``-th; and what these found."""
        once = common.timed(lambda: self.search(queries[:1]))[0] if part > 1 and self.prepares else 0.0
        taken = queries[::part].contiguous()
        spent, found = common.timed(lambda: self.search(taken))
        return once + (spent - once) * len(queries) / len(taken), found


def ways(gallery: Tensor) -> list[Way]:
    """All of them; faiss if it is there."""
    ids = [f"{row:09d}" for row in range(len(gallery))]
    by_id = torch.arange(len(ids))
    fastest = similarity.fastest()
    rounded = gallery.to(fastest)

    def in_float32(queries: Tensor) -> Tensor:
        found = similarity.search(queries, gallery, BLOCK_SIZE, 1, order=by_id, precision=torch.float32)
        return found.position[:, 0]

    found = [
        Way("mining", lambda queries: nearest(queries, gallery, ids, BLOCK_SIZE)[0], prepares=True),
        Way(f"bare {_name(fastest)}", lambda queries: bare(queries, rounded)),
        Way("float64", lambda queries: in_float64(queries, gallery), part=80),
        Way("plain", lambda queries: (queries @ gallery.T).argmax(dim=1), limit=WHOLE),
    ]
    if fastest != torch.float32:
        found.append(Way("bare float32", lambda queries: bare(queries, gallery), part=80))
        found.append(Way("mining in float32", in_float32, limit=FEW))
    if (faiss := common.faiss_if_there()) is not None:
        index = faiss.IndexFlatIP(gallery.shape[1])
        index.add(gallery.numpy())
        found.append(Way("faiss", lambda queries: torch.from_numpy(index.search(queries.numpy(), 1)[1][:, 0]), part=80))
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compare(rows: int, rounds: int) -> Iterator[common.Row]:
    """Time all ways in turn, several times; mining's neighbours have to be those of exact arithmetic."""
    queries, gallery = embedded(rows)
    tried = [way for way in ways(gallery) if way.limit is None or rows <= way.limit]
    part = {way.name: 1 if rows <= FEW else way.part for way in tried}
    seconds: dict[str, list[float]] = {way.name: [] for way in tried}
    found: dict[str, Any] = {}
    for _ in range(rounds):
        for way in tried:
            spent, found[way.name] = way.seconds(queries, part[way.name])
            seconds[way.name].append(spent)
    for way in tried:
        row: common.Row = {"rows": rows, "way": way.name, "one_query_of": part[way.name]}
        row |= common.spread(seconds[way.name])
        row["to_fastest_bare"] = common.median_ratio(seconds[way.name], seconds[f"bare {_name(similarity.fastest())}"])
        row["to_bare_float32"] = common.median_ratio(seconds[way.name], seconds["bare float32"])
        if found[way.name] is not None:
            mined = found["mining"][:: part[way.name] // part["mining"]]
            row["agree"] = round(100 * float((mined == found[way.name]).double().mean()), 3)
        yield row


def command(rows: int, folder: Path) -> common.Row:
    """Seconds on the wall and memory of `saferclip mining` itself, all cores, on a table of ids and its embeddings."""
    unsafe, safe = embedded(rows)
    io.write_tensors(folder / "frozen.safetensors", {"train.safe_caption": safe, "train.unsafe_caption": unsafe})
    io.write_table(folder / "train.parquet", [{"id": f"{row:09d}", "split": "train"} for row in range(rows)])
    settings = f'{{"block_size": {BLOCK_SIZE}, "batch_size": 1}}'
    files = ["--train", str(folder / "train.parquet"), "--embeddings", str(folder / "frozen.safetensors")]
    step = [sys.executable, "-m", "saferclip", "mining"]
    command = [*step, "--settings", settings, *files, "--output", str(folder / "mining")]
    return {"rows": rows, "way": "saferclip mining", **common.costs(command)}


def measured(size: int, rounds: int) -> Iterator[common.Row]:
    """All ways, then the command."""
    yield from compare(size, rounds)
    with tempfile.TemporaryDirectory() as folder:
        yield command(size, Path(folder))


def main() -> None:
    """Print one line for each size and way, then write them."""
    chosen = common.arguments(__doc__, sizes=(1000, 4000, 16_000), full=(1000, 4000, 16_000, 40_000, 165_000), rounds=3)
    common.one_thread()
    common.report(chosen.sizes, lambda size: measured(size, chosen.rounds), chosen.output)


if __name__ == "__main__":
    main()
