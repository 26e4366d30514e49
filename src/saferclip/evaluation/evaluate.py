"""Evaluate one model on every benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from saferclip import io, provenance
from saferclip.config import EvaluationSettings
from saferclip.evaluation import (
    drift,
    gallery,
    geometry,
    handover,
    probes,
    quadruples,
    retrieval,
    robustness,
    zero_shot,
)
from saferclip.evaluation.encoder import Encoder, Encoders
from saferclip.evaluation.result import Evaluator

EVALUATORS: Mapping[str, Evaluator] = {
    "test": retrieval.evaluate,
    "nsfw_caps": retrieval.evaluate,
    "gallery": gallery.evaluate,
    "zero_shot": zero_shot.evaluate,
    "drift": drift.evaluate,
    "geometry": geometry.evaluate,
    "probes": probes.evaluate,
}
# What a row of ranks holds; there is none where all images are withheld.
NO_RANK: dict[str, Any] = {
    **{"benchmark": "", "direction": "", "query_id": "", "rank": 0},
    **{"top_id": "", "top_unsafe": False, "similarity": 0.0},
}
# What these compare with, the untuned model's evaluation hands over.
COMPARING = frozenset({"drift", "geometry", "robustness"})
EMBEDDINGS = "embeddings.safetensors"
MAPPED_QUADRUPLES = 300  # more points than that hide each other on the map


def evaluate(
    settings: EvaluationSettings,
    method: str,
    seed: int,
    model: Path,
    base_model: Path,
    files: Mapping[str, Path],
    output: Path,
    baseline: Path | None = None,
) -> None:
    """Write ``<benchmark>.json`` for each benchmark, ``ranks.parquet`` and ``embeddings.safetensors``.

    ``files`` maps benchmarks to their tables; 'test' is always needed, and serves for 'drift' and 'geometry' too if
    they have no file of their own.  ``baseline`` is the folder of the base model's own evaluation, whose embeddings
    are taken instead of made again.  Raises DataError if a table is missing, or if those embeddings are of another
    table or base model.
    """
    paths = dict(files)
    for name in ("drift", "geometry") if "test" in paths else ():
        paths.setdefault(name, paths["test"])
    missing = [name for name in dict.fromkeys(("test", *settings.benchmarks)) if name not in paths]
    if missing:
        raise io.DataError(f"no file is given for {', '.join(missing)}; write --file {missing[0]}=<table>")
    if "geometry" in settings.benchmarks and paths["geometry"] != paths["drift"]:
        raise io.DataError("drift and geometry compare the same inputs; name one file for both")
    compared = bool(COMPARING & set(settings.benchmarks))
    variants = paths["robustness"] if "robustness" in settings.benchmarks else None
    embedded = baseline / EMBEDDINGS if baseline and compared else None
    if embedded:
        handover.check(embedded, paths["drift"], base_model, variants)
    encoders = Encoders.load(model, base_model, settings.batch_size, embedded)
    origin = provenance.provenance({"method": method, **settings.model_dump(mode="json")}, seed)
    evaluators = {**EVALUATORS, "robustness": partial(robustness.evaluate, test=paths["test"])}
    ranks: list[dict[str, Any]] = []
    for benchmark in settings.benchmarks:
        result = evaluators[benchmark](paths[benchmark], encoders, settings)
        record = io.EvaluationRecord(
            method=method,
            seed=seed,
            benchmark=benchmark,
            counts=result.counts,
            metrics=result.metrics,
            provenance=origin,
            left_out=result.left_out,
        )
        io.write_evaluation(output / f"{benchmark}.json", record)
        ranks.extend({"benchmark": benchmark, **row} for row in result.ranks)
    io.write_table(output / "ranks.parquet", ranks, NO_RANK)
    tensors, made_of = map_points(paths["test"], encoders.model), None
    if encoders.untuned and compared:
        tensors |= handover.tensors(paths["drift"], encoders.model)
        tensors |= handover.of_captions(robustness.captions(variants)[0], encoders.model) if variants else {}
        made_of = handover.origin(paths["drift"], base_model, variants)
    io.write_tensors(output / EMBEDDINGS, tensors, made_of)


def map_points(path: Path, encoder: Encoder) -> dict[str, torch.Tensor]:
    """Embeddings of the first complete quadruples, for a map: column to fp16 (rows, dim).

    Those of captions alone if no quadruple is complete; none of a model whose embeddings have no place on it.
    """
    if encoder.across_only:
        return {}
    data = quadruples.embed(path, encoder)
    columns = list(data.embeddings) if len(data.complete(data.embeddings)) else quadruples.CAPTIONS
    rows = data.complete(columns)[:MAPPED_QUADRUPLES]
    return {column: data.take(rows, column).half() for column in columns}
