"""Evaluate one model at several scales of what tuning changed, for its trade-off curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from saferclip import curves, io, models, provenance
from saferclip.config import TradeoffStep
from saferclip.evaluation import retrieval, zero_shot
from saferclip.evaluation.encoder import Encoders
from saferclip.evaluation.result import Result, prefixed
from saferclip.evaluation.scaled import ScaledModel, Sweep

ZERO_SHOT = "zero_shot"
UNSAFE = [direction for direction, (query, _) in retrieval.DIRECTIONS.items() if query.startswith("unsafe_")]


def tradeoff(
    settings: TradeoffStep,
    method: str,
    seed: int,
    model: Path,
    base_model: Path,
    files: Mapping[str, Path],
    output: Path,
) -> None:
    """Write ``<benchmark>.json`` for each table, with all metrics at each scale, and ``outcomes.parquet``.

    ``files`` maps names of benchmarks to their tables: 'zero_shot' to labelled images, others to quadruples.  The base
    model itself is evaluated at scale 0, a tuned one at the scales of the settings.  Raises DataError if a table is
    missing, or if there are no models between the two.
    """
    if ZERO_SHOT not in files or len(files) < 2:
        raise io.DataError("needs zero-shot sets and quadruples; write --file zero_shot=<table> --file test=<table>")
    untuned = model.resolve() == base_model.resolve()
    scales = (0.0,) if untuned else settings.scales
    sweep = Sweep(
        ScaledModel(base_model, model, models.default_device()), scales, settings.evaluation.batch_size
    ).encoders()
    origin = provenance.provenance({"method": method, **settings.model_dump(mode="json")}, seed)
    rows: list[dict[str, Any]] = []
    for benchmark, path in files.items():
        evaluate = zero_shot.evaluate if benchmark == ZERO_SHOT else retrieval.evaluate
        results: dict[float, Result] = {}
        for scale, encoder in tqdm(sweep.items(), desc=benchmark, disable=None):
            results[scale] = evaluate(path, Encoders(encoder, encoder), settings.evaluation)
        record = io.EvaluationRecord(
            method=method,
            seed=seed,
            benchmark=benchmark,
            counts=next(iter(results.values())).counts,
            metrics={
                name: metric
                for scale, result in results.items()
                for name, metric in prefixed(f"{scale:g}", result.metrics).items()
            },
            provenance=origin,
        )
        io.write_evaluation(output / f"{benchmark}.json", record)
        groups = _classes(path) if benchmark == ZERO_SHOT else {}
        rows += _rows(benchmark, results, groups)
    io.write_table(output / curves.OUTCOMES, rows, {**curves.NO_OUTCOME, **_outcomes([], scales)})


def _rows(benchmark: str, results: Mapping[float, Result], groups: Mapping[str, int]) -> list[dict[str, Any]]:
    """A row for each query, with its outcome at each scale."""
    queries: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results.values():
        for row in result.ranks:
            if benchmark == ZERO_SHOT or row["direction"] in UNSAFE:
                queries.setdefault((row["direction"], row["query_id"]), []).append(row)
    return [
        {
            "benchmark": benchmark,
            "direction": direction,
            "query_id": query,
            "group": groups.get(query, curves.NO_GROUP),
            **_outcomes(found, list(results)),
        }
        for (direction, query), found in queries.items()
    ]


def _outcomes(found: Sequence[Mapping[str, Any]], scales: Sequence[float]) -> dict[str, Any]:
    """One query's ranks and whether its first hits were unsafe, by scale."""
    found = found or [{"rank": 0, "top_unsafe": False}] * len(scales)
    columns = {curves.column(scale, "rank"): row["rank"] for scale, row in zip(scales, found, strict=True)}
    unsafe = {curves.column(scale, "top_unsafe"): row["top_unsafe"] for scale, row in zip(scales, found, strict=True)}
    return columns | unsafe


def _classes(path: Path) -> dict[str, int]:
    """Class of each image whose set is measured by the mean over classes, by query id."""
    table = zero_shot.Table.open(path)
    return {
        str(row): table.labels[row]
        for name, rows in table.rows.items()
        if table.sets[name].get("metric", "mean_per_class") == "mean_per_class"
        for row in rows
    }
