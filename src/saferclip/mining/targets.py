"""Targets by other rules than the paper's: what an ablation of proximity-based alignment compares with.

A *candidate* is a safe item of the training split, a caption with its image; a rule says which of them an unsafe
input is sent to.  Cosines are those of the frozen encoders: of captions, cos(T0(t*_i), T0(t_j)); of images,
cos(V0(v*_i), V0(v_j)); or the mean of both.  The paper's own targets are made by ``nearest``.

Where images are withheld: by images only candidates that have one can be compared; an unsafe input without its image is
compared by captions alone, and its difficulty is its rank among such inputs.  The search is exact whatever
``mining.approximate`` says.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saferclip import io, metrics, similarity
from saferclip.config import TargetRule, TargetsStep
from saferclip.mining import nearest

FILE = "neighbours.parquet"
# The columns that a rule compares; those of captions are compared where it has no images to compare.
COMPARED = {"random": ("caption",), "text": ("caption",), "image": ("image",), "both": ("caption", "image")}

logger = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """Targets of the unsafe inputs."""

    rows: Tensor  # int64 (unsafe, neighbours), of the safe items, nearest first
    similarity: Tensor  # float64 (unsafe, neighbours)
    difficulty: Tensor  # int64 (unsafe,), tercile of the neighbours' mean similarity
    by_captions_alone: Tensor  # bool (unsafe,), where the rule would have compared images


def mine(settings: TargetsStep, train: Path, embeddings: Path, output: Path) -> None:
    """Write ``neighbours.parquet``, a row for each neighbour of each unsafe input, and ``summary.json``.

    Raises DataError if the training table holds rows of another split or an id twice, does not match the embeddings,
    or if fewer candidates are left than neighbours are asked for.
    """
    ids = nearest.read_training_ids(train)
    frozen = _read(settings.targets, embeddings)
    for name, rows in frozen.items():
        if len(rows) != len(ids):
            raise io.DataError(f"{embeddings}: {len(rows)} rows of {name}, but {train} has {len(ids)}; embed it again")
        if not rows.sum().isfinite():
            raise io.DataError(f"{embeddings}: {name} holds values that are no numbers; embed it again")
    pool = candidates(settings.targets, frozen, len(ids))
    chosen = choose(settings.targets, frozen, pool, ids, settings.block_size)
    io.write_table(output / FILE, _rows(chosen, ids))
    own = (chosen.rows == torch.arange(len(ids))[:, None]).any(dim=1)
    summary = {
        "unsafe_inputs": len(ids),
        "candidates": len(pool),
        "different_targets": len(set(chosen.rows.flatten().tolist())),
        "own_pair_share": 100 * float(own.double().mean()),
        "mean_similarity": float(chosen.similarity.mean()),
        "by_captions_alone": int(chosen.by_captions_alone.sum()),
    }
    io.write_json(output / "summary.json", summary)
    logger.info("%s: mean similarity %.3f", settings.targets.name, summary["mean_similarity"])


def _rows(chosen: Chosen, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of the table: inputs in the training table's order, the neighbours of each nearest first."""
    for name, rows, cosines, difficulty in zip(ids, *(column.tolist() for column in chosen[:3]), strict=True):
        for row, cosine in zip(rows, cosines, strict=True):
            yield {"unsafe_id": name, "safe_id": ids[row], "similarity": cosine, "difficulty": difficulty}


def _read(rule: TargetRule, embeddings: Path) -> dict[str, Tensor]:
    """The embeddings that a rule compares, and which images are there."""
    columns = dict.fromkeys(["caption", *COMPARED[rule.rule]])
    names = [f"train.{kind}_{column}" for column in columns for kind in ("safe", "unsafe")]
    masks = [f"{name}.present" for name in names if name.endswith("_image")]
    return io.read_tensors(embeddings, [*names, *masks])


def candidates(rule: TargetRule, frozen: Mapping[str, Tensor], count: int) -> Tensor:
    """Rows of the safe items that can be targets, in ascending order: int64 (candidates,).

    Raises DataError if there are fewer than neighbours.
    """
    drawn = torch.ones(count, dtype=torch.bool)
    if rule.pool is not None:
        kept = max(1, round(rule.pool * count))
        drawn[torch.from_numpy(_random(rule, "pool").permutation(count)[kept:])] = False
    if "image" in COMPARED[rule.rule]:
        drawn &= frozen["train.safe_image.present"]
    rows = drawn.nonzero()[:, 0]
    wanted = rule.neighbours or 1
    if len(rows) < wanted:
        raise io.DataError(
            f"targets '{rule.name}': {wanted} neighbours of {len(rows)} candidates; ask for fewer, raise 'pool', or, "
            "where safe images are withheld, take the rule 'text'"
        )
    return rows


def _random(rule: TargetRule, purpose: str) -> np.random.Generator:
    """Random numbers for one purpose: a pool is the same one whatever is done with it."""
    assert rule.seed is not None  # the settings see to it
    return np.random.default_rng([rule.seed % 2**32, ("pool", "targets").index(purpose)])


def choose(rule: TargetRule, frozen: Mapping[str, Tensor], pool: Tensor, ids: Sequence[str], block_size: int) -> Chosen:
    """The targets of all unsafe inputs, of equally near ones those with the smallest id.

    ``frozen`` holds unit rows ``train.{safe,unsafe}_{caption,image}`` of shape (rows, dim) and, of images,
    ``.present``, bool (rows,); ``pool`` the rows of the candidates.
    """
    everywhere = torch.ones(len(ids), dtype=torch.bool)
    compared = COMPARED[rule.rule]
    pictured = frozen["train.unsafe_image.present"] if "image" in compared else everywhere
    groups = [(group.nonzero()[:, 0], columns) for group, columns in ((pictured, compared), (~pictured, ("caption",)))]
    rows = torch.empty(len(ids), rule.neighbours or 1, dtype=torch.int64)
    cosines = torch.empty(rows.shape, dtype=torch.float64)
    difficulty = torch.empty(len(ids), dtype=torch.int64)
    for asking, columns in groups:
        if not len(asking):
            continue
        if rule.rule == "random":
            rows[asking], cosines[asking] = _drawn(rule, frozen, pool)
        else:
            rows[asking], cosines[asking] = _nearest(frozen, asking, pool, columns, rows.shape[1], ids, block_size)
        difficulty[asking] = nearest.terciles(cosines[asking].mean(dim=1), [ids[row] for row in asking.tolist()])
    return Chosen(rows, cosines, difficulty, ~pictured)


def _drawn(rule: TargetRule, frozen: Mapping[str, Tensor], pool: Tensor) -> tuple[Tensor, Tensor]:
    """A candidate for each unsafe input, whichever, and the cosine of their captions: both (unsafe, 1)."""
    unsafe, safe = frozen["train.unsafe_caption"], frozen["train.safe_caption"]
    rows = pool[torch.from_numpy(_random(rule, "targets").integers(len(pool), size=len(unsafe)))]
    return rows[:, None], metrics.similarities(unsafe, safe[rows])[:, None]


def _nearest(
    frozen: Mapping[str, Tensor],
    asking: Tensor,
    pool: Tensor,
    columns: Sequence[str],
    neighbours: int,
    ids: Sequence[str],
    block_size: int,
) -> tuple[Tensor, Tensor]:
    """Rows of the nearest candidates, and their cosines: both (asking, neighbours).

    Rows of several columns are put behind each other: a product is then the sum of their cosines, as exact as each.
    """
    queries = torch.cat([frozen[f"train.unsafe_{column}"][asking] for column in columns], dim=1)
    gallery = torch.cat([frozen[f"train.safe_{column}"][pool] for column in columns], dim=1)
    names = [ids[row] for row in pool.tolist()]
    by_id = torch.tensor(sorted(range(len(names)), key=names.__getitem__))
    found = similarity.search(queries, gallery, block_size, neighbours, order=by_id)
    return pool[found.position], found.similarity / len(columns)
