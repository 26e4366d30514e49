"""Proximity-based alignment: each unsafe caption's target is the nearest safe caption of the training split.

SaFeR-CLIP: j*(i) = argmax_j cos(T0(t*_i), T0(t_j)) over all safe training captions t_j, with T0
the frozen text encoder.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saferclip import io, metrics, similarity
from saferclip.config import MiningSettings
from saferclip.mining import approximate

DIFFICULTIES = ("easy", "medium", "hard")
SAFE, UNSAFE = "train.safe_caption", "train.unsafe_caption"
UNSAFE_ROWS = 65_536  # in memory at once; for each part the safe ones are rounded again
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

logger = logging.getLogger(__name__)


def mine(settings: MiningSettings, train: Path, embeddings: Path, output: Path) -> None:
    """Write ``neighbours.parquet`` (one row for each unsafe caption) and ``summary.json``.

    Only the training table is read, and only training rows' embeddings.  Raises DataError if the
    table holds rows of another split, an id twice, or does not match the embeddings, or these hold
    values that are no numbers.
    """
    ids = read_training_ids(train)
    target, cosines, paired, described = _search(settings, ids, train, embeddings)
    difficulty = terciles(cosines, ids)
    rows = [
        {
            "unsafe_id": ids[row],
            "safe_id": ids[target[row]],
            "similarity": float(cosines[row]),
            "paired_similarity": float(paired[row]),
            "difficulty": int(difficulty[row]),
        }
        for row in range(len(ids))
    ]
    io.write_table(output / "neighbours.parquet", rows)
    summary = summarise(rows) | described
    io.write_json(output / "summary.json", summary)
    logger.info("mean similarity: nearest %.3f, paired %.3f", summary["nearest"]["mean"], summary["paired"]["mean"])


def _search(
    settings: MiningSettings, ids: Sequence[str], train: Path, embeddings: Path
) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Targets, their similarity and that of the pair, each (rows,), and what the summary says of the search.

    Embeddings are in memory for this long only, and of the unsafe ones a part at a time if the search is exact.
    """
    safe = io.read_tensors(embeddings, [SAFE])[SAFE]
    if len(ids) != len(safe):
        raise io.DataError(f"{embeddings}: {len(safe)} embedded rows, but {train} has {len(ids)}; embed it again")
    _check_numbers(SAFE, safe, embeddings)
    uneven = f"{embeddings}: not as many unsafe captions as safe ones; embed it again"
    size = UNSAFE_ROWS if settings.approximate is None else max(1, len(safe))
    described: dict[str, Any] = {}
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    done = 0
    for unsafe in io.read_rows(embeddings, UNSAFE, size):
        paired = safe[done : done + len(unsafe)]
        done += len(unsafe)
        if len(paired) != len(unsafe):
            raise io.DataError(uneven)
        _check_numbers(UNSAFE, unsafe, embeddings)
        if settings.approximate is None:
            target, cosines = nearest(unsafe, safe, ids, settings.block_size)
        else:
            found = approximate.nearest(settings.approximate, unsafe, safe, ids, settings.block_size)
            target, cosines, described = found.target, found.similarity, {"approximate": found.description}
        columns.append((target, cosines, metrics.similarities(unsafe, paired)))
    if done != len(safe):
        raise io.DataError(uneven)
    target, cosines, own = (torch.cat(column) for column in zip(*columns, strict=True))
    return target, cosines, own, described


def _check_numbers(name: str, rows: Tensor, embeddings: Path) -> None:
    # A sum is no number if one of its terms is none, and needs no memory.
    if not rows.sum().isfinite():
        raise io.DataError(f"{embeddings}: {name} holds values that are no numbers; embed it again")


def read_training_ids(train: Path) -> list[str]:
    """Ids of the training quadruples, in the table's order."""
    table = io.read_table(train, ("id", "split"))
    splits = set(table["split"].to_pylist())
    if splits != {"train"}:
        raise io.DataError(f"{train}: only training rows may be mined, but its splits are {sorted(splits)}")
    ids: list[str] = table["id"].to_pylist()
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise io.DataError(f"{train}: ids must differ, but {twice[0]!r} and {len(twice) - 1} more occur twice")
    return ids


def nearest(queries: Tensor, gallery: Tensor, ids: Sequence[str], block_size: int) -> tuple[Tensor, Tensor]:
    """Row of the most similar gallery item for each query, and their cosine, in float64.

    ``queries`` (n, dim), ``gallery`` (m, dim), ``ids`` of the m gallery items; of equally similar
    items the one with the smallest id.  Memory is that of a few blocks and of one copy of the gallery.
    """
    by_id = torch.tensor(sorted(range(len(ids)), key=ids.__getitem__))
    best = similarity.search(queries, gallery, block_size, 1, order=by_id)
    return best.position[:, 0], best.similarity[:, 0]


def terciles(cosines: Tensor, ids: Sequence[str]) -> Tensor:
    """Difficulty by rank of similarity: 0 the most similar third, then 1, then 2; ties by id.  Shape (n,)."""
    order = sorted(range(len(ids)), key=lambda row: (-float(cosines[row]), ids[row]))
    difficulty = torch.empty(len(ids), dtype=torch.int64)
    difficulty[torch.tensor(order)] = torch.arange(len(ids)) * 3 // len(ids)
    return difficulty


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What mining changed: similarities of paired and nearest targets, and how often they are the same."""
    cosines = np.array([row["similarity"] for row in rows])
    difficulty = np.array([row["difficulty"] for row in rows])
    own = [row["safe_id"] == row["unsafe_id"] for row in rows]
    return {
        "unsafe_captions": len(rows),
        "different_targets": len({row["safe_id"] for row in rows}),
        "nearest_is_pair_share": 100 * sum(own) / len(rows),
        "nearest": _distribution(cosines),
        "paired": _distribution(np.array([row["paired_similarity"] for row in rows])),
        "difficulty": {
            name: {"count": int((difficulty == level).sum()), **_range(cosines[difficulty == level])}
            for level, name in enumerate(DIFFICULTIES)
        },
    }


def _distribution(values: NDArray[np.float64]) -> dict[str, Any]:
    quantiles = {f"{quantile:g}": float(np.quantile(values, quantile)) for quantile in QUANTILES}
    return {"mean": float(values.mean()), "quantiles": quantiles}


def _range(values: NDArray[np.float64]) -> dict[str, float]:
    """Empty for an empty tercile, which a table of one or two rows has."""
    return {"lowest": float(values.min()), "highest": float(values.max())} if len(values) else {}
