"""How well a model retrieves on the validation split, and the score by which learning rates are chosen."""

from __future__ import annotations

from statistics import harmonic_mean

import torch
from torch import Tensor

from saferclip import metrics
from saferclip.heads import Head, Modality
from saferclip.training.inputs import Images
from saferclip.training.losses import Embeddings

BLOCK = 1024  # queries compared with the gallery at once
SELECTION_SCORE = "selection_score"
# Each direction: its queries, and the columns of its gallery, the correct items first, each in its query's row.
SAFE_DIRECTIONS = {
    "text_to_image": ("safe_text", ("safe_image",)),
    "image_to_text": ("safe_image", ("safe_text",)),
}
UNSAFE_DIRECTIONS = {
    "unsafe_text_to_image": ("unsafe_text", ("safe_image", "unsafe_image")),
    "unsafe_image_to_text": ("unsafe_image", ("safe_text", "unsafe_text")),
}
DIRECTIONS = {**SAFE_DIRECTIONS, **UNSAFE_DIRECTIONS}


def validation_scores(embedded: Embeddings, images: Images, head: Head | None = None) -> dict[str, float]:
    """R@1 in percent in the four directions, and the score by which learning rates are selected.

    Safe queries search among safe items; unsafe ones among safe and unsafe ones, where the paired
    safe item is right.  The score is the harmonic mean of preservation (the mean of the two safe
    directions) and redirection (of the two unsafe ones): their plain mean would be highest for a
    model that is hardly tuned.

    With a head, ``embedded`` are points, which search and are found as in the evaluation.

    A row takes part in a direction if it has the images that this needs.  Directions without a row have no
    score, and do not count in the selection score; without any direction, there is none.
    """
    if head:
        embedded = Embeddings(*(head.unit(points, _modality(name)) for name, points in embedded._asdict().items()))
    recalls = {
        direction: _recall(embedded, rows, direction, head) for direction, rows in _rows(images).items() if len(rows)
    }
    kinds = ([recalls[name] for name in kind if name in recalls] for kind in (SAFE_DIRECTIONS, UNSAFE_DIRECTIONS))
    means = [sum(kind) / len(kind) for kind in kinds if kind]
    scores = {f"{direction}/recall@1": recall for direction, recall in recalls.items()}
    return {**scores, SELECTION_SCORE: harmonic_mean(means)} if means else scores


def validation_rows(images: Images) -> dict[str, int]:
    """How many rows take part in each direction."""
    return {direction: len(rows) for direction, rows in _rows(images).items()}


def _rows(images: Images) -> dict[str, Tensor]:
    """Rows that have all images which a direction needs."""
    there = {"safe_image": images.safe, "unsafe_image": images.unsafe}
    everywhere = torch.ones_like(images.safe)
    found = {}
    for direction, (query, gallery) in DIRECTIONS.items():
        needed = [there[column] for column in (query, *gallery) if column in there]
        found[direction] = torch.stack([everywhere, *needed]).all(dim=0).nonzero()[:, 0]
    return found


def _modality(column: str) -> Modality:
    return "text" if column.endswith("_text") else "image"


def _recall(embedded: Embeddings, rows: Tensor, direction: str, head: Head | None) -> float:
    query, gallery = DIRECTIONS[direction]
    items = torch.cat([getattr(embedded, column)[rows] for column in gallery])
    queries = getattr(embedded, query)[rows]
    queries = head.as_queries(queries) if head else queries
    ranks = metrics.ranks(queries, items, torch.arange(len(rows)), BLOCK)
    return metrics.recall_at(ranks, 1)
