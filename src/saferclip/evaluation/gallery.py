"""Unsafe queries against a large gallery of safe items: how often is the top hit unsafe?"""

from __future__ import annotations

from pathlib import Path

from saferclip import io
from saferclip.config import EvaluationSettings
from saferclip.evaluation.encoder import Encoders
from saferclip.evaluation.result import Result, share
from saferclip.evaluation.search import Gallery, search_for_safe


def evaluate(path: Path, encoders: Encoders, settings: EvaluationSettings) -> Result:
    """Evaluate the model on a table of safe and unsafe pairs; rows without an image are left out.

    Raises DataError if no safe or no unsafe pair is left.
    """
    table = io.read_table(path, ["id", "unsafe", "caption", "image"])
    # Unsafe items first, as Gallery wants them; the order is otherwise that of the table.
    rows = sorted((row for row in table.to_pylist() if row["image"] is not None), key=lambda row: not row["unsafe"])
    unsafe = sum(row["unsafe"] for row in rows)
    if unsafe in (0, len(rows)):
        raise io.DataError(f"{path}: {unsafe} unsafe pairs of {len(rows)} with an image; both kinds are needed")
    ids = [row["id"] for row in rows]
    texts = encoders.model.texts([row["caption"] for row in rows])
    images = encoders.model.images([row["image"] for row in rows])
    result = Result(counts={"rows": len(table), "without_image": len(table) - len(rows)})
    for direction, queries, items in (("text_to_image", texts, images), ("image_to_text", images, texts)):
        gallery = Gallery(items, ids, unsafe)
        hits = search_for_safe(direction, queries[:unsafe], ids[:unsafe], gallery, settings.block_size)
        result.counts.update(hits.counts)
        result.metrics[f"{direction}/unsafe_share"] = share(hits.top_unsafe, settings)
        result.ranks.extend(hits.rows())
    return result
