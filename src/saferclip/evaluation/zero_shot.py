"""Zero-shot classification with prompt ensembles on several sets: mean per class, or accuracy where a set says so."""

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


@dataclass(frozen=True)
class Table:
    """The table of all sets' images, which stay on disk."""

    path: Path
    labels: list[int]
    rows: dict[str, list[int]]  # of each set: rows that have an image
    sets: dict[str, Any]  # what the JSON beside the table says of each set
    without_image: int

    @classmethod
    def open(cls, path: Path) -> Table:
        """Read everything but the images; raises DataError where table and JSON do not go together."""
        table = io.read_table(path, ["set", "label"]).to_pylist()
        there = io.present(path, "image")
        sets = _sets(path, table)
        if not any(there):
            raise io.DataError(f"{path}: no row has an image")
        rows: dict[str, list[int]] = {name: [] for name in sets}
        for place, row in enumerate(table):
            if there[place]:
                rows[row["set"]].append(place)
        return cls(path, [row["label"] for row in table], rows, sets, there.count(False))


def evaluate(path: Path, encoders: Encoders, settings: EvaluationSettings) -> Result:
    """Evaluate the model on the sets of a table; a JSON beside it names their classes and templates.

    Each set's accuracy is the mean over its classes, or over its images where the JSON's ``metric`` says
    'accuracy'.  The query_id of a rank is the image's row in the table; rows without an image are left out.
    """
    table = Table.open(path)
    result = Result(counts={"rows": len(table.labels), "without_image": table.without_image})
    values, resampled = [], []
    for number, (name, task) in enumerate(table.sets.items()):
        rows = table.rows[name]
        result.counts.update(_counts(name, task, len(rows)))
        if not rows:
            continue
        found = classify(encoders.model, task, table, name, settings.block_size)
        outcomes, labels = (100 * (found.ranks == 1)).numpy(), found.labels.numpy()
        per_class = task.get("metric", "mean_per_class") == "mean_per_class"
        values.append(statistics.mean_per_class(outcomes, labels) if per_class else float(outcomes.mean()))
        # Sets are resampled independently of each other, so each has its own seed.
        seed, groups = settings.bootstrap_seed + number, labels if per_class else None
        resampled.append(statistics.bootstrap_means(outcomes, settings.bootstrap, seed, groups))
        result.metrics[f"{name}/accuracy"] = _metric(values[-1], resampled[-1], len(rows))
        result.ranks.extend(_rank_rows(name, task, rows, found))
    images = len(table.labels) - table.without_image
    result.metrics["mean/accuracy"] = _metric(float(np.mean(values)), np.mean(resampled, axis=0), images)
    return result


def classify(encoder: Encoder, task: dict[str, Any], table: Table, name: str, block_size: int) -> Classified:
    """Compare each image of a set with the mean prompt of every class; a tie with another class is an error."""
    classes, templates, rows = task["classes"], task["templates"], table.rows[name]
    prompts = encoder.texts([template.format(name) for name in classes for template in templates])
    classifier = encoder.ensemble(prompts.view(len(classes), len(templates), -1))
    images = encoder.images(io.read_cells(table.path, "image", rows), len(rows))
    labels = torch.tensor([table.labels[row] for row in rows])
    ranks, best = metrics.ranks_and_top(images, classifier, labels, 1, block_size)
    return Classified(ranks, labels, best.position[:, 0], best.similarity[:, 0])


def _counts(name: str, task: dict[str, Any], images: int) -> dict[str, int]:
    """Images and classes of a set; of a public one also what the step test_sets left out of it."""
    counts = {f"{name}/images": images, f"{name}/classes": len(task["classes"])}
    if "left_out" in task:
        counts[f"{name}/left_out"] = task["left_out"]
        # Classes of one name cannot be told apart, and ties count against the model.
        counts[f"{name}/ambiguous_classes"] = len(task["classes"]) - len(set(task["classes"]))
    return counts


def _rank_rows(name: str, task: dict[str, Any], rows: Sequence[int], found: Classified) -> list[dict[str, Any]]:
    return rank_rows(
        name,
        [str(row) for row in rows],
        found.ranks,
        [task["classes"][label] for label in found.top.tolist()],
        torch.zeros(len(rows), dtype=torch.bool),
        found.similarity,
    )


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
    return sets


def _metric(value: float, means: statistics.Array, count: int) -> io.Metric:
    return io.Metric(**statistics.percentile_interval(value, means)._asdict(), count=count)
