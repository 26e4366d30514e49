"""Embed training and validation quadruples with the frozen model, once for all that follows.

The frozen encoders' outputs never change, so mining and training look them up here instead of
computing them again.  Rows may lack images: captions are all that mining needs, and training uses a
row wherever it has what a term of the loss asks for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from saferclip import io, models
from saferclip.config import MiningSettings
from saferclip.models import Clip

CAPTIONS = ("safe_caption", "unsafe_caption")
IMAGES = ("safe_image", "unsafe_image")
FILE = "frozen.safetensors"
SUMMARY = "summary.json"
READ_ROWS = 64  # encoded images held in memory at once

logger = logging.getLogger(__name__)


def embed(settings: MiningSettings, base_model: Path, train: Path, validation: Path, output: Path) -> None:
    """Write ``frozen.safetensors`` and ``summary.json``, which counts what was embedded.

    Tensors are ``{split}.{column}``, fp32 unit rows in the table's order, and zero where an image is withheld;
    ``{split}.{column}.present``, of the two image columns, is bool (rows,) and says where that is not so.
    Raises DataError if a table has no usable caption somewhere, or an image that cannot be decoded.
    """
    clip = models.load(base_model, models.default_device())
    tables = {"train": train, "validation": validation}
    embedded = {split: embed_table(clip, path, settings.batch_size) for split, path in tables.items()}
    masks = {f"{split}.{column}.present": present(path, column) for split, path in tables.items() for column in IMAGES}
    columns = {f"{split}.{column}": rows for split, table in embedded.items() for column, rows in table.items()}
    io.write_tensors(output / FILE, columns | masks)
    io.write_json(output / SUMMARY, {split: _counts(split, columns, masks) for split in tables})


def embed_table(clip: Clip, path: Path, batch_size: int) -> dict[str, Tensor]:
    """Embed the four inputs of each quadruple: column to unit rows of shape (quadruples, dim).

    Where an image is withheld, its row is zero.
    """
    captions = io.read_table(path, CAPTIONS)
    embedded = {
        column: embed_captions(clip, captions[column].to_pylist(), batch_size, f"{path.stem} {column}")
        for column in CAPTIONS
    }
    dim = embedded[CAPTIONS[0]].shape[1]
    for column in IMAGES:
        there = present(path, column)
        embedded[column] = spread(_embed_images(clip, path, column, there, batch_size), there, dim)
        logger.info("%s: embedded %d of %d in %s", path, int(there.sum()), len(there), column)
    return embedded


def _embed_images(clip: Clip, path: Path, column: str, there: Tensor, batch_size: int) -> Tensor:
    """Unit rows of the images that are there, (images, dim)."""
    if not there.any():
        return torch.empty(0)
    images = (image for image in read_images(path, column) if image is not None)
    return models.encode_images(clip, images, batch_size, int(there.sum()), f"{path.stem} {column}")


def spread(rows: Tensor, there: Tensor, dim: int) -> Tensor:
    """Put each of some rows, (images, dim), where ``there``, bool (n,), is true: (n, dim), else zero."""
    if there.all():
        return rows
    result = rows.new_zeros(len(there), dim)
    return result.index_put((there.to(rows.device).nonzero()[:, 0],), rows) if len(rows) else result


def present(path: Path, column: str) -> Tensor:
    """Which rows of a table have an image in this column: bool (rows,)."""
    return torch.tensor(io.present(path, column), dtype=torch.bool)


def _counts(split: str, columns: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, int]:
    images = {column: int(masks[f"{split}.{column}.present"].sum()) for column in IMAGES}
    rows = len(columns[f"{split}.{CAPTIONS[0]}"])
    return {"rows": rows, **images, **{f"without_{column}": rows - count for column, count in images.items()}}


def embed_captions(clip: Clip, captions: Sequence[str], batch_size: int, progress: str | None = None) -> Tensor:
    """Embed each different caption once, so that equal captions have equal embeddings to the last bit."""
    places = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    embedded = models.encode_texts(clip, list(places), batch_size, progress)
    return embedded[torch.tensor([places[caption] for caption in captions])]


def read_images(path: Path, column: str) -> Iterator[Image.Image | None]:
    """Decode an image column, in the table's order, None where an image is withheld.

    Only a few rows are in memory at once.
    """
    row = 0
    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(READ_ROWS, columns=[column]):
            for cell in batch[column].to_pylist():
                yield None if cell is None else decode(cell, f"{path}: row {row}, {column}")
                row += 1


def decode(cell: Mapping[str, Any], origin: str) -> Image.Image:
    """Decode one image cell, or raise DataError that starts with ``origin``."""
    if cell["bytes"] is None:
        raise io.DataError(f"{origin}: the image has no bytes; make the table again")
    try:
        return io.decode_image(cell)
    except io.ImageError as error:
        raise io.DataError(f"{origin}: the image cannot be decoded: {error}") from error
