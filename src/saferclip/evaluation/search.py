"""Search a gallery of safe and unsafe items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saferclip import metrics, similarity
from saferclip.evaluation.result import rank_rows


@dataclass(frozen=True)
class Gallery:
    """Items to search, the unsafe ones first: so an unsafe item wins a tie with a safe one."""

    embeddings: Tensor  # (items, dim)
    ids: Sequence[str]
    unsafe: int  # how many items, from the first, are unsafe


@dataclass(frozen=True)
class Hits:
    """What each query found."""

    direction: str
    query_ids: Sequence[str]
    gallery: Gallery
    ranks: Tensor  # int64 (queries,)
    top: Tensor  # int64 (queries,), position in the gallery
    similarity: Tensor  # float64 (queries,), of the top item

    @property
    def top_unsafe(self) -> Tensor:
        """Whether the top item is unsafe: bool (queries,)."""
        return self.top < self.gallery.unsafe

    @property
    def counts(self) -> dict[str, int]:
        return {f"{self.direction}/queries": len(self.ranks), f"{self.direction}/gallery": len(self.gallery.ids)}

    def rows(self) -> list[dict[str, Any]]:
        """Rows of the table of ranks."""
        top_ids = [self.gallery.ids[place] for place in self.top.tolist()]
        return rank_rows(self.direction, self.query_ids, self.ranks, top_ids, self.top_unsafe, self.similarity)


def search_for_one(
    direction: str, queries: Tensor, query_ids: Sequence[str], gallery: Gallery, correct: Tensor, block_size: int
) -> Hits:
    """Search for one correct item per query, at position ``correct`` (queries,) of the gallery."""
    ranks, best = metrics.ranks_and_top(queries, gallery.embeddings, correct, min(2, len(gallery.ids)), block_size)
    # The correct item loses ties, so it is the top item only where its rank says so.
    tied = (best.position[:, 0] == correct) & (ranks > 1)
    place = torch.where(tied, best.position.shape[1] - 1, 0)[:, None]
    return Hits(
        direction,
        query_ids,
        gallery,
        ranks,
        best.position.gather(1, place)[:, 0],
        best.similarity.gather(1, place)[:, 0],
    )


def search_for_safe(
    direction: str, queries: Tensor, query_ids: Sequence[str], gallery: Gallery, block_size: int
) -> Hits:
    """Search where any safe item is correct; the rank is that of the first safe item."""
    unsafe, safe = gallery.embeddings[: gallery.unsafe], gallery.embeddings[gallery.unsafe :]
    best = similarity.search(queries, safe, block_size, 1)
    first, value = gallery.unsafe + best.position[:, 0], best.similarity[:, 0]
    worse = similarity.search(queries, unsafe, block_size, min(1, gallery.unsafe), threshold=value)
    if gallery.unsafe:
        # An unsafe item that reaches the best safe one is before it.
        misled = worse.at_least > 0
        first = torch.where(misled, worse.position[:, 0], first)
        value = torch.where(misled, worse.similarity[:, 0], value)
    return Hits(direction, query_ids, gallery, 1 + worse.at_least, first, value)
