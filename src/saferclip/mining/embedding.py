"""Embed training and validation quadruples with the frozen model, once for all that follows.

The frozen encoders' outputs never change, so mining and training look them up here instead of
computing them again.
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
READ_ROWS = 64  # encoded images held in memory at once

logger = logging.getLogger(__name__)


def embed(settings: MiningSettings, base_model: Path, train: Path, validation: Path, output: Path) -> None:
    """Write ``frozen.safetensors`` with tensors ``{split}.{column}``: fp32 unit rows in the table's order.

    Raises DataError if a table has no usable caption or image somewhere.
    """
    clip = models.load(base_model, models.default_device())
    tensors = {
        f"{split}.{column}": embedded
        for split, path in (("train", train), ("validation", validation))
        for column, embedded in embed_table(clip, path, settings.batch_size).items()
    }
    io.write_tensors(output / FILE, tensors)


def embed_table(clip: Clip, path: Path, batch_size: int) -> dict[str, Tensor]:
    """Embed the four inputs of each quadruple: column to unit rows of shape (quadruples, dim)."""
    captions = io.read_table(path, CAPTIONS)
    embedded = {
        column: embed_captions(clip, captions[column].to_pylist(), batch_size, f"{path.stem} {column}")
        for column in CAPTIONS
    }
    for column in IMAGES:
        images = read_images(path, column)
        embedded[column] = models.encode_images(clip, images, batch_size, len(captions), f"{path.stem} {column}")
    logger.info("%s: embedded %d quadruples", path, len(captions))
    return embedded


def embed_captions(clip: Clip, captions: Sequence[str], batch_size: int, progress: str | None = None) -> Tensor:
    """Embed each different caption once, so that equal captions have equal embeddings to the last bit."""
    places = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    embedded = models.encode_texts(clip, list(places), batch_size, progress)
    return embedded[torch.tensor([places[caption] for caption in captions])]


def read_images(path: Path, column: str) -> Iterator[Image.Image]:
    """Decode an image column, in the table's order; only a few rows are in memory at once."""
    row = 0
    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(READ_ROWS, columns=[column]):
            for cell in batch[column].to_pylist():
                yield decode(cell, f"{path}: row {row}, {column}")
                row += 1


def decode(cell: Mapping[str, Any] | None, origin: str) -> Image.Image:
    """Decode one image cell, or raise DataError that starts with ``origin``."""
    if cell is None or cell["bytes"] is None:
        raise io.DataError(f"{origin}: the image is withheld; make it, or leave the quadruple out")
    try:
        return io.decode_image(cell)
    except OSError as error:
        raise io.DataError(f"{origin}: the image cannot be decoded: {error}") from error
