"""Compositional probes: an image, the caption that fits it, and a foil that says the same words of it wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from saferclip import io, metrics
from saferclip.config import EvaluationSettings
from saferclip.evaluation.encoder import Encoders
from saferclip.evaluation.result import Result, rank_rows, share

COLUMNS = ("probe", "id", "caption", "foil")


def evaluate(path: Path, encoders: Encoders, settings: EvaluationSettings) -> Result:
    """Share of images that are more similar to their caption than to their foil, for each probe of a table.

    A JSON beside the table names the probes.  A tie is an error, so that chance is below one half where captions
    and foils are embedded alike.  Rows without an image are left out.
    """
    rows: list[dict[str, Any]] = io.read_table(path, COLUMNS).to_pylist()
    there = io.present(path, "image")
    result = Result(counts={"rows": len(rows), "without_image": there.count(False)})
    for name in _names(path, rows):
        places = [place for place, row in enumerate(rows) if row["probe"] == name and there[place]]
        result.counts[f"{name}/images"] = len(places)
        if not places:
            continue
        images = encoders.model.images(io.read_cells(path, "image", places), len(places))
        captions, foils = (
            metrics.similarities(images, encoders.model.texts([rows[place][column] for place in places]))
            for column in ("caption", "foil")
        )
        right = captions > foils
        result.metrics[f"{name}/accuracy"] = share(right, settings)
        result.ranks.extend(
            rank_rows(
                name,
                [rows[place]["id"] for place in places],
                torch.where(right, 1, 2),
                ["caption" if hit else "foil" for hit in right.tolist()],
                torch.zeros(len(places), dtype=torch.bool),
                torch.maximum(captions, foils),
            )
        )
    return result


def _names(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Probes of the JSON beside the table, which has to name all that the table holds."""
    beside = path.with_suffix(".json")
    names = list(io.read_json(beside))
    for place, row in enumerate(rows):
        if row["probe"] not in names:
            raise io.DataError(
                f"{path}: row {place} belongs to probe '{row['probe']}', which {beside.name} does not name"
            )
    return names
