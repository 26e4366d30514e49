"""What the untuned model's evaluation hands over to others: its embeddings of what they are compared with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from saferclip import io, models, provenance
from saferclip.evaluation import quadruples
from saferclip.evaluation.encoder import Encoder, Encoders

PREFIX = "drift."  # of the tensors' names; beside them are the points of a map
CAPTIONS = "robustness.captions"
ORIGIN = "made_of"  # one entry for all, since safetensors keeps several in no order


def tensors(table: Path, encoder: Encoder) -> dict[str, Tensor]:
    """What is handed over: column to fp32 (rows, dim), zero where the row has no image."""
    embedded = quadruples.embed(table, encoder, quadruples.SAFE).embeddings
    return {f"{PREFIX}{column}": rows for column, rows in embedded.items()}


def of_captions(captions: Sequence[str], encoder: Encoder) -> dict[str, Tensor]:
    """The captions that robustness compares with, as one more tensor to hand over: fp32 (captions, dim).

    Embedded by themselves, whatever the encoder remembers: in other batches they would differ in the last bits.
    """
    return {CAPTIONS: encoder.anew().texts(captions)}


def origin(table: Path, base_model: Path, variants: Path | None = None) -> dict[str, str]:
    """What it was made of, so that nothing else is compared with it; ``variants`` are those of robustness."""
    files = {"table": table, "base_model": base_model / models.WEIGHTS}
    if variants is not None:
        files["variants"] = variants
    return {ORIGIN: json.dumps({name: provenance.file_digest(path) for name, path in files.items()})}


def check(file: Path, table: Path, base_model: Path, variants: Path | None = None) -> None:
    """Raise DataError unless the file was made of this table, and these variants, by this base model."""
    told = io.read_metadata(file)
    if ORIGIN not in told:
        raise io.DataError(f"{file}: nothing to compare with; name the untuned model's evaluation, made with 'drift'")
    if told != origin(table, base_model, variants):
        raise io.DataError(f"{file}: was not made of {table} by {base_model}; evaluate the untuned model anew")


def read(file: Path) -> dict[str, Tensor]:
    """What ``tensors`` gave, by column; raises DataError if it is not there."""
    names = [f"{PREFIX}{column}" for column in quadruples.SAFE]
    return dict(zip(quadruples.SAFE, io.read_tensors(file, names).values(), strict=True))


def read_captions(file: Path) -> Tensor:
    """What ``of_captions`` gave; raises DataError if it is not there."""
    return io.read_tensors(file, [CAPTIONS])[CAPTIONS]


def base_embeddings(table: Path, encoders: Encoders) -> dict[str, Tensor]:
    """How the base model embeds the safe inputs of a table: as it handed over, or by itself.

    Column to fp32 (rows, dim), zero where the row has no image.
    """
    if isinstance(encoders.base, Path):
        return read(encoders.base)
    return quadruples.embed(table, encoders.base, quadruples.SAFE).embeddings
