"""Retrieval in four directions, and SafeGround, on a table of quadruples."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from saferclip import io, metrics
from saferclip.config import EvaluationSettings
from saferclip.evaluation import quadruples
from saferclip.evaluation.encoder import Encoders
from saferclip.evaluation.quadruples import Quadruples
from saferclip.evaluation.result import Result, prefixed, share
from saferclip.evaluation.result import mean as mean_of
from saferclip.evaluation.search import Gallery, Hits, search_for_one
from saferclip.heads import ACROSS_ONLY

# Direction: column of the queries, columns of the gallery.  The last one holds the correct items,
# each in its query's row.
DIRECTIONS = {
    "text_to_image": ("safe_caption", ("safe_image",)),
    "image_to_text": ("safe_image", ("safe_caption",)),
    "unsafe_text_to_image": ("unsafe_caption", ("unsafe_image", "safe_image")),
    "unsafe_image_to_text": ("unsafe_image", ("unsafe_caption", "safe_caption")),
}
RECALLS = (1, 10, 20)


def evaluate(path: Path, encoders: Encoders, settings: EvaluationSettings) -> Result:
    """Evaluate the model on quadruples.

    A row takes part in a direction if it has what the direction needs, as query and in the gallery.
    """
    data = quadruples.embed(path, encoders.model)
    result = Result(counts=data.counts)
    if encoders.model.across_only:
        result.left_out["paired_caption_similarity"] = ACROSS_ONLY
    else:
        captions = data.embeddings["safe_caption"], data.embeddings["unsafe_caption"]
        result.metrics["paired_caption_similarity"] = mean_of(metrics.similarities(*captions), settings)
    for direction, (query, items) in DIRECTIONS.items():
        rows = data.complete((query, *items))
        result.counts[f"{direction}/left_out"] = len(data.ids) - len(rows)
        if len(rows):
            hits = search(data, rows, direction, settings.block_size)
            result.counts.update(hits.counts)
            result.metrics.update(prefixed(direction, _measures(hits, settings)))
            result.ranks.extend(hits.rows())
    complete = data.complete(quadruples.IMAGES)
    result.counts["safeground/quadruples"] = len(complete)
    if len(complete):
        columns = (*quadruples.CAPTIONS, *quadruples.IMAGES)
        outcomes = metrics.safeground(*(data.take(complete, column) for column in columns))
        result.metrics.update({name: share(outcome, settings) for name, outcome in outcomes.items()})
    return result


def search(data: Quadruples, rows: Tensor, direction: str, block_size: int) -> Hits:
    """Let the query of each of these rows search the gallery of the same rows."""
    query, items = DIRECTIONS[direction]
    ids = [data.ids[row] for row in rows.tolist()]
    unsafe = len(rows) * (len(items) - 1)
    return search_for_one(
        direction,
        queries=data.queries(rows, query),
        query_ids=ids,
        gallery=Gallery(data.take(rows, *items), ids * len(items), unsafe),
        correct=unsafe + torch.arange(len(rows)),
        block_size=block_size,
    )


def _measures(hits: Hits, settings: EvaluationSettings) -> dict[str, io.Metric]:
    measures = {f"recall@{k}": share(hits.ranks <= k, settings) for k in RECALLS}
    if hits.gallery.unsafe:
        measures["unsafe_share"] = share(hits.top_unsafe, settings)
    return measures
