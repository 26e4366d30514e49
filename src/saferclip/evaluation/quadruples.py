"""Embeddings of a table of quadruples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from saferclip import io
from saferclip.evaluation.encoder import Encoder

CAPTIONS = ("safe_caption", "unsafe_caption")
IMAGES = ("safe_image", "unsafe_image")
SAFE = ("safe_caption", "safe_image")


def _unmoved(embeddings: Tensor) -> Tensor:
    return embeddings


@dataclass(frozen=True)
class Quadruples:
    """Rows of the table with their embeddings.

    ``embeddings`` maps a column to unit vectors (rows, dim), zero where the row has no image;
    ``present`` maps a column to bool (rows,).
    """

    ids: list[str]
    embeddings: dict[str, Tensor]
    present: dict[str, Tensor]
    searching: Callable[[Tensor], Tensor] = _unmoved  # what a model does to embeddings (rows, dim) of queries

    def complete(self, columns: Iterable[str]) -> Tensor:
        """Positions of the rows that have all of these columns."""
        return torch.stack([self.present[column] for column in columns]).all(dim=0).nonzero()[:, 0]

    def take(self, rows: Tensor, *columns: str) -> Tensor:
        """Embeddings of these rows, column after column: (rows * columns, dim)."""
        return torch.cat([self.embeddings[column][rows] for column in columns])

    def queries(self, rows: Tensor, column: str) -> Tensor:
        """Embeddings of these rows as they search: (rows, dim)."""
        return self.searching(self.take(rows, column))

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows, and of those that lack an image."""
        images = [column for column in IMAGES if column in self.present]
        missing = {f"without_{column}": int((~self.present[column]).sum()) for column in images}
        return {"rows": len(self.ids), **missing}


def embed(path: Path, encoder: Encoder, columns: Sequence[str] = CAPTIONS + IMAGES) -> Quadruples:
    """Embed these columns of a table of quadruples; a missing image is left out."""
    captions = [column for column in columns if column not in IMAGES]
    table = io.read_table(path, ["id", *captions])
    ids = table["id"].to_pylist()
    embeddings, present = {}, {}
    for column in columns:
        if column in IMAGES:
            there = torch.tensor(io.present(path, column))
            rows = there.nonzero()[:, 0].tolist()
            encoded = encoder.images(io.read_cells(path, column, rows), len(rows))
        else:
            there = torch.tensor([value is not None for value in table[column].to_pylist()])
            encoded = encoder.texts([value for value in table[column].to_pylist() if value is not None])
        embeddings[column] = torch.zeros(len(ids), encoded.shape[-1])
        embeddings[column][there] = encoded
        present[column] = there
    return Quadruples(ids, embeddings, present, encoder.queries)
