"""Whether tuning drew safe inputs together, and whether it kept their neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saferclip import io, metrics, statistics
from saferclip.config import EvaluationSettings
from saferclip.evaluation import handover, quadruples
from saferclip.evaluation.encoder import Encoders
from saferclip.evaluation.result import Result
from saferclip.evaluation.result import mean as mean_of
from saferclip.heads import ACROSS_ONLY

METRICS = tuple(
    f"{name}/{measure}" for name in ("text", "image") for measure in ("spread", "spread_ratio", "neighbour_overlap")
)
DRAWN_AT_ONCE = 4_000_000  # counts of resampled inputs; 32 MB


def evaluate(path: Path, encoders: Encoders, settings: EvaluationSettings) -> Result:
    """Compare spread and neighbours of the safe inputs of a table of quadruples with those under the base model.

    Each different input counts once, or copies would be each other's neighbours under every model.  What cannot
    differ is left out: the spread of one input, and neighbours that are all the others.
    """
    if encoders.model.across_only:
        return Result(left_out=dict.fromkeys(METRICS, ACROSS_ONLY))
    tuned = quadruples.embed(path, encoders.model, quadruples.SAFE)
    base = handover.base_embeddings(path, encoders)
    result = Result(counts=tuned.counts)
    for name, column in (("text", "safe_caption"), ("image", "safe_image")):
        rows = tuned.complete([column])
        rows = rows[first_of_each(base[column][rows])]
        result.counts[f"{name}/inputs"] = len(rows)
        after, before = tuned.take(rows, column), base[column][rows]
        if len(rows) > 1 and metrics.spread(before) > 0:
            result.metrics[f"{name}/spread"] = io.Metric(value=metrics.spread(after), count=len(rows))
            result.metrics[f"{name}/spread_ratio"] = spread_ratio(after, before, settings)
        k = settings.neighbours
        if k and len(rows) > k + 1:
            near = [metrics.neighbours(embeddings, k, settings.block_size) for embeddings in (before, after)]
            result.metrics[f"{name}/neighbour_overlap"] = mean_of(metrics.neighbour_overlap(*near), settings)
    return result


def first_of_each(embeddings: Tensor) -> Tensor:
    """Positions of rows (n, dim) that equal none before them, ascending."""
    if not len(embeddings):
        return torch.empty(0, dtype=torch.int64)
    _, first = np.unique(embeddings.numpy(), axis=0, return_index=True)
    return torch.from_numpy(np.sort(first))


def spread_ratio(after: Tensor, before: Tensor, settings: EvaluationSettings) -> io.Metric:
    """Spread of the tuned embeddings over that of the base model's, both (inputs, dim), with its interval.

    A paired bootstrap of the ratio itself: inputs are drawn once for both spreads, each of which is taken about the
    mean of what was drawn.  That a resample is narrower, by (n - 1) / n, holds for both and cancels.
    """
    ratios = [
        metrics.resampled_spreads(after, counts) / metrics.resampled_spreads(before, counts)
        for counts in resampled_counts(len(after), settings.bootstrap, settings.bootstrap_seed)
    ]
    value = metrics.spread(after) / metrics.spread(before)
    found = torch.cat(ratios)  # of very few inputs, a resample may be copies of one: that has no ratio
    interval = statistics.percentile_interval(value, found[found.isfinite()].numpy())
    return io.Metric(**interval._asdict(), count=len(after))


def resampled_counts(inputs: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each input is drawn in each resample, in parts of shape (resamples of the part, inputs)."""
    random = np.random.default_rng(seed)
    piece = max(1, DRAWN_AT_ONCE // inputs)
    for start in range(0, resamples, piece):
        size = min(piece, resamples - start)
        drawn = random.integers(inputs, size=(size, inputs)) + inputs * np.arange(size)[:, None]
        yield torch.from_numpy(np.bincount(drawn.ravel(), minlength=size * inputs).reshape(size, inputs))
