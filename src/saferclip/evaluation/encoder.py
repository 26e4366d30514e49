"""Embed captions and pictures, each distinct one once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferclip import io, models

Cache = dict[Hashable, Tensor]


@dataclass
class Encoder:
    """A model that remembers what it has embedded, whichever benchmark asked for it.

    Equal captions and equal pictures have equal embeddings, bit by bit; so equal items tie.
    """

    clip: models.Clip
    batch_size: int
    name: str  # for progress bars
    _captions: Cache = field(default_factory=dict, repr=False)
    _pictures: Cache = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, folder: Path, batch_size: int, name: str) -> Encoder:
        """Load the model of a folder in open_clip's local-dir format."""
        return cls(models.load(folder, models.default_device()), batch_size, name)

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors of captions: fp32, shape (captions, dim), on the CPU."""
        return _look_up(
            self._captions,
            captions,
            captions,
            lambda new: models.encode_texts(self.clip, new, self.batch_size, f"{self.name}: captions"),
        )

    def images(self, cells: Sequence[Mapping[str, Any]]) -> Tensor:
        """Unit vectors of pictures, given as cells of an image column: fp32, shape (pictures, dim), on the CPU."""
        return _look_up(
            self._pictures,
            [sha256(cell["bytes"]).digest() for cell in cells],
            cells,
            lambda new: models.encode_images(
                self.clip, map(io.decode_image, new), self.batch_size, len(new), f"{self.name}: pictures"
            ),
        )


@dataclass(frozen=True)
class Encoders:
    """The model that is evaluated and the base model it came from; one and the same if untuned."""

    model: Encoder
    base: Encoder

    @classmethod
    def load(cls, model: Path, base_model: Path, batch_size: int) -> Encoders:
        encoder = Encoder.load(model, batch_size, "model")
        untuned = model.resolve() == base_model.resolve()
        return cls(encoder, encoder if untuned else Encoder.load(base_model, batch_size, "base model"))


def _look_up(
    cache: Cache, keys: Sequence[Hashable], items: Sequence[Any], encode: Callable[[list[Any]], Tensor]
) -> Tensor:
    """Rows of the cache in the order of the keys, after embedding what is not there yet."""
    new = {key: item for key, item in zip(keys, items, strict=True) if key not in cache}
    if new:
        cache.update(zip(new, encode(list(new.values())), strict=True))
    return torch.stack([cache[key] for key in keys]) if keys else torch.empty(0)
