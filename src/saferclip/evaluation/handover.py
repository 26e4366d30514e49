"""What the untuned model's evaluation hands over to others: its embeddings of safe inputs, for their drift."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from saferclip import io, models, provenance
from saferclip.evaluation import quadruples
from saferclip.evaluation.encoder import Encoder

PREFIX = "drift."  # of the tensors' names; beside them are the points of a map
ORIGIN = "made_of"  # one entry for all, since safetensors keeps several in no order


def tensors(table: Path, encoder: Encoder) -> dict[str, Tensor]:
    """What is handed over: column to fp32 (rows, dim), zero where the row has no image."""
    embedded = quadruples.embed(table, encoder, quadruples.SAFE).embeddings
    return {f"{PREFIX}{column}": rows for column, rows in embedded.items()}


def origin(table: Path, base_model: Path) -> dict[str, str]:
    """What it was made of, so that nothing else is compared with it."""
    files = {"table": table, "base_model": base_model / models.WEIGHTS}
    return {ORIGIN: json.dumps({name: provenance.file_digest(path) for name, path in files.items()})}


def check(file: Path, table: Path, base_model: Path) -> None:
    """Raise DataError unless the file was made of this table, by this base model."""
    told = io.read_metadata(file)
    if ORIGIN not in told:
        raise io.DataError(f"{file}: nothing to compare with; name the untuned model's evaluation, made with 'drift'")
    if told != origin(table, base_model):
        raise io.DataError(f"{file}: was not made of {table} by {base_model}; evaluate the untuned model anew")


def read(file: Path) -> dict[str, Tensor]:
    """What ``tensors`` gave, by column; raises DataError if it is not there."""
    names = [f"{PREFIX}{column}" for column in quadruples.SAFE]
    return dict(zip(quadruples.SAFE, io.read_tensors(file, names).values(), strict=True))
