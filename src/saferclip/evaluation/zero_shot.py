"""Zero-shot classification with prompt ensembles, mean per class, on several sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saferclip import io, metrics, statistics
from saferclip.config import EvaluationSettings
from saferclip.evaluation.encoder import Encoder, Encoders
from saferclip.evaluation.result import Result, rank_rows


@dataclass(frozen=True)
class Classified:
    """One set's images with the rank that the model gives to their class."""

    ranks: Tensor  # int64 (images,)
    labels: Tensor  # int64 (images,)
    top: Tensor  # int64 (images,), the class that the model names
    similarity: Tensor  # float64 (images,)


def evaluate(path: Path, encoders: Encoders, settings: EvaluationSettings) -> Result:
    """Evaluate the model on the sets of a table; a JSON beside it names their classes and templates.

    The query_id of a rank is the image's row in the table; rows without an image are left out.
    """
    table = io.read_table(path, ["set", "label", "image"]).to_pylist()
    sets = _sets(path, table)
    result = Result(counts={"rows": len(table), "without_image": sum(row["image"] is None for row in table)})
    values, resampled = [], []
    for number, (name, task) in enumerate(sets.items()):
        rows = [place for place, row in enumerate(table) if row["set"] == name and row["image"] is not None]
        result.counts.update({f"{name}/images": len(rows), f"{name}/classes": len(task["classes"])})
        if not rows:
            continue
        found = classify(encoders.model, task, [table[row] for row in rows], settings.block_size)
        outcomes, labels = (100 * (found.ranks == 1)).numpy(), found.labels.numpy()
        values.append(statistics.mean_per_class(outcomes, labels))
        # Sets are resampled independently of each other, so each has its own seed.
        seed = settings.bootstrap_seed + number
        resampled.append(statistics.bootstrap_means(outcomes, settings.bootstrap, seed, groups=labels))
        result.metrics[f"{name}/accuracy"] = _metric(values[-1], resampled[-1], len(rows))
        result.ranks.extend(
            rank_rows(
                name,
                [str(row) for row in rows],
                found.ranks,
                [task["classes"][label] for label in found.top.tolist()],
                torch.zeros(len(rows), dtype=torch.bool),
                found.similarity,
            )
        )
    result.metrics["mean/accuracy"] = _metric(
        float(np.mean(values)), np.mean(resampled, axis=0), len(table) - result.counts["without_image"]
    )
    return result


def classify(encoder: Encoder, task: dict[str, Any], rows: Sequence[dict[str, Any]], block_size: int) -> Classified:
    """Compare each image with the mean prompt of every class; a tie with another class is an error."""
    classes, templates = task["classes"], task["templates"]
    prompts = encoder.texts([template.format(name) for name in classes for template in templates])
    classifier = metrics.ensemble_classifier(prompts.view(len(classes), len(templates), -1))
    images = encoder.images([row["image"] for row in rows])
    labels = torch.tensor([row["label"] for row in rows])
    best = metrics.top_k(images, classifier, 1, block_size)
    ranks = metrics.ranks(images, classifier, labels, block_size)
    return Classified(ranks, labels, best.position[:, 0], best.similarity[:, 0])


def _sets(path: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sets of the JSON beside the table, checked against the table."""
    beside = path.with_suffix(".json")
    sets: dict[str, Any] = io.read_json(beside)
    for place, row in enumerate(rows):
        if row["set"] not in sets:
            raise io.DataError(f"{path}: row {place} belongs to set '{row['set']}', which {beside.name} does not name")
        known = len(sets[row["set"]]["classes"])
        if not 0 <= row["label"] < known:
            raise io.DataError(f"{path}: row {place} has label {row['label']}; set '{row['set']}' has {known} classes")
    if all(row["image"] is None for row in rows):
        raise io.DataError(f"{path}: no row has an image")
    return sets


def _metric(value: float, means: statistics.Array, count: int) -> io.Metric:
    return io.Metric(**statistics.percentile_interval(value, means)._asdict(), count=count)
