"""How far tuning moved the embeddings of safe inputs, and what it did to their geometry."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from saferclip import io, metrics
from saferclip.config import EvaluationSettings
from saferclip.evaluation import handover, quadruples
from saferclip.evaluation.encoder import Encoders
from saferclip.evaluation.result import Result
from saferclip.evaluation.result import mean as mean_of
from saferclip.heads import ACROSS_ONLY

COLUMNS = quadruples.SAFE
METRICS = ("safe_text/cosine", "safe_image/cosine", "uniformity_text", "uniformity_image", "alignment")


def evaluate(path: Path, encoders: Encoders, settings: EvaluationSettings) -> Result:
    """Compare the model with the base model on the safe inputs of a table of quadruples.

    The untuned model's own drift is a cosine of 1, beside its alignment and uniformity: what the
    other methods' are to be compared with.
    """
    if encoders.model.across_only:
        return Result(left_out=dict.fromkeys(METRICS, ACROSS_ONLY))
    tuned = quadruples.embed(path, encoders.model, COLUMNS)
    before = handover.base_embeddings(path, encoders)
    result = Result(counts=tuned.counts)
    for name, column in (("text", "safe_caption"), ("image", "safe_image")):
        rows = tuned.complete([column])
        result.counts[f"{name}/inputs"] = len(rows)
        after = tuned.take(rows, column)
        if len(rows):
            cosines = metrics.similarities(after, before[column][rows])
            result.metrics[f"safe_{name}/cosine"] = mean_of(cosines, settings)
        if len(rows) > 1:
            result.metrics[f"uniformity_{name}"] = _uniformity(after, settings.block_size)
    pairs = tuned.complete(COLUMNS)
    result.counts["pairs"] = len(pairs)
    if len(pairs):
        distances = metrics.pair_distances(tuned.take(pairs, "safe_caption"), tuned.take(pairs, "safe_image"))
        result.metrics["alignment"] = mean_of(distances, settings)
    return result


def _uniformity(embeddings: Tensor, block_size: int) -> io.Metric:
    # Without an interval: a resample repeats rows, and a repeated row is a pair at distance 0.
    return io.Metric(value=metrics.uniformity(embeddings, block_size), count=len(embeddings))
