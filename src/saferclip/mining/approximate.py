"""Nearest captions through an approximate index, where comparing every pair would take days.

faiss divides the safe captions into lists around centres and keeps a byte for each number of an embedding.  A query
is compared with the lists of the nearest centres; the best candidates are compared again, exactly.  How many lists
that takes depends on the data, so it is found out: they are doubled until enough queries of a sample find what exact
search finds.  What other queries then find is measured, and recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferclip import io, similarity
from saferclip.config import ApproximateSettings

INSTALL = "an approximate index needs the package faiss: pip install 'saferclip[approximate]', or leave out"
CANDIDATES = 16  # compared exactly; the index's bytes may confuse close ones
LISTS_PER_ROOT = 4  # lists, in square roots of the number of items: faiss's own advice
TRAINING_ROWS = 39  # fewer of them for each list, and faiss warns that centres are badly placed
CHUNK = 65_536  # rows handed to faiss at once

logger = logging.getLogger(__name__)


class Approximated(NamedTuple):
    """What was found, and how well the index searches."""

    target: Tensor  # int64 (queries,), row of the gallery
    similarity: Tensor  # float64 (queries,), exact
    description: dict[str, Any]


def nearest(
    settings: ApproximateSettings, queries: Tensor, gallery: Tensor, ids: Sequence[str], block_size: int
) -> Approximated:
    """A very similar gallery item for each query, most often the most similar one.

    ``queries`` (n, dim), ``gallery`` (m, dim), ``ids`` of the m gallery items; of equally similar items that were
    found the one with the smallest id.  Raises DataError without faiss.
    """
    index = Index(gallery, ids)
    description = tuned(settings, index, queries, block_size)
    return Approximated(*index.search(queries), description)


def tuned(settings: ApproximateSettings, index: Index, queries: Tensor, block_size: int) -> dict[str, Any]:
    """Let an index probe as many lists as the recall asks for; returns what it then does for other queries."""
    count = min(2 * settings.sample, len(queries))
    sample = queries[torch.linspace(0, len(queries) - 1, count, dtype=torch.float64).round().long()]
    best = similarity.search(sample, index.gallery, block_size, 1).similarity[:, 0]
    tuning, checking = slice(0, None, 2), slice(1, None, 2) if count > 1 else slice(0, None)
    while True:
        reached = _recall(index.search(sample[tuning])[1], best[tuning])
        logger.info("%d of %d lists: %.2f%% find their nearest", index.probes, index.lists, reached)
        if reached >= 100 * settings.recall or index.probes == index.lists:
            break
        index.probes = min(2 * index.probes, index.lists)
    if reached < 100 * settings.recall:
        logger.warning("the index finds %.2f%% at most; %g%% were asked for", reached, 100 * settings.recall)
    recall = _recall(index.search(sample[checking])[1], best[checking])
    return {"lists": index.lists, "probes": index.probes, "recall": recall, "checked": len(best[checking])}


def _recall(found: Tensor, best: Tensor) -> float:
    """Percentage of queries that found an item as similar as the best."""
    return 100 * float((found >= best).double().mean())


class Index:
    """faiss's lists, and the embeddings themselves for comparing candidates."""

    def __init__(self, gallery: Tensor, ids: Sequence[str]) -> None:
        faiss = _faiss()
        faiss.omp_set_num_threads(torch.get_num_threads())
        self.gallery = gallery
        self.rank = torch.empty(len(ids), dtype=torch.int64)
        self.rank[torch.tensor(sorted(range(len(ids)), key=ids.__getitem__))] = torch.arange(len(ids))
        self.lists = max(1, min(int(LISTS_PER_ROOT * len(gallery) ** 0.5), len(gallery) // TRAINING_ROWS))
        self.index = faiss.index_factory(gallery.shape[1], f"IVF{self.lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        step = max(1, len(gallery) // (self.lists * TRAINING_ROWS))
        self.index.train(gallery[::step].numpy())
        for start in range(0, len(gallery), CHUNK):
            self.index.add(gallery[start : start + CHUNK].numpy())
        self.probes = 1

    def search(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Row of the gallery and exact similarity, both (queries,)."""
        self.index.nprobe = self.probes
        parts = [self._search(part) for part in torch.split(queries, similarity.CACHED)]
        return torch.cat([row for row, _ in parts]), torch.cat([found for _, found in parts])

    def _search(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(self.index.search(queries.numpy(), min(CANDIDATES, len(self.gallery)))[1])
        rows = rows.clamp(min=0)  # -1 where the lists held fewer; any row may be a candidate
        # Candidates in the order of their ids, so that the first of the most similar is the one to take.
        rows = rows.gather(1, self.rank[rows].argsort(dim=1))
        items = similarity.fixed_point(self.gallery[rows])
        found = torch.bmm(items, similarity.fixed_point(queries)[:, :, None])[:, :, 0]
        best, place = found.max(dim=1)
        return rows.gather(1, place[:, None])[:, 0], best


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise io.DataError(f"{INSTALL} 'mining.approximate'") from None
    return faiss
