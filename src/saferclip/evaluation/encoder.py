"""Embed captions and pictures, each distinct one once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferclip import io, metrics, models

Cache = dict[Hashable, Tensor]


@dataclass
class Encoder:
    """A model that remembers what it has embedded, whichever benchmark asked for it.

    Equal captions and equal pictures have equal embeddings, bit by bit; so equal items tie.
    Raises DataError if the model makes embeddings that are no numbers.
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

    def anew(self) -> Encoder:
        """The same model, which remembers nothing."""
        return Encoder(self.clip, self.batch_size, self.name)

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors of captions: fp32, shape (captions, dim), on the CPU."""
        return look_up(
            self._captions,
            zip(captions, captions, strict=True),
            lambda new: self._numbers(
                models.encode_texts(self.clip, list(new), self.batch_size, f"{self.name}: captions")
            ),
        )

    def images(self, cells: Iterable[Mapping[str, Any]], total: int | None = None) -> Tensor:
        """Unit vectors of pictures, given as cells of an image column: fp32, shape (pictures, dim), on the CPU.

        Cells are taken a batch at a time, so that they need not be in memory together; ``total`` is
        how many there are, for the progress bar.
        """
        return look_up(
            self._pictures,
            ((sha256(cell["bytes"]).digest(), cell) for cell in cells),
            lambda new: self._numbers(
                models.encode_images(
                    self.clip, map(io.decode_image, new), self.batch_size, total, f"{self.name}: pictures"
                )
            ),
        )

    @property
    def across_only(self) -> bool:
        """Whether embeddings may be compared across the modalities alone, and not with another model's."""
        return self.clip.head is not None

    def queries(self, embeddings: Tensor) -> Tensor:
        """Embeddings (rows, dim) as they search: moved where the model's head moves queries."""
        return self.clip.head.as_queries(embeddings) if self.clip.head else embeddings

    def ensemble(self, prompts: Tensor) -> Tensor:
        """Class embeddings from those of prompts: (classes, templates, dim) to unit rows (classes, dim)."""
        return self.clip.head.ensemble(prompts) if self.clip.head else metrics.ensemble_classifier(prompts)

    def _numbers(self, encoded: Tensor) -> Tensor:
        if not encoded.isfinite().all():
            raise io.DataError(f"{self.name}: embeds inputs as values that are no numbers; its weights are damaged")
        return encoded


@dataclass(frozen=True)
class Encoders:
    """The model that is evaluated and the base model it came from; one and the same if untuned.

    Instead of the base model there may be a file that holds its embeddings, as ``handover`` reads it.
    """

    model: Encoder
    base: Encoder | Path

    @classmethod
    def load(cls, model: Path, base_model: Path, batch_size: int, embedded: Path | None = None) -> Encoders:
        """Load both models, but the base model only if nothing says how it embeds."""
        encoder = Encoder.load(model, batch_size, "model")
        if model.resolve() == base_model.resolve():
            return cls(encoder, encoder)
        return cls(encoder, embedded or Encoder.load(base_model, batch_size, "base model"))

    @property
    def untuned(self) -> bool:
        """Whether the model is the base model itself."""
        return self.model is self.base


def look_up(cache: Cache, items: Iterable[tuple[Hashable, Any]], encode: Callable[[Iterator[Any]], Tensor]) -> Tensor:
    """Rows of the cache in the order of the (key, item) pairs, after embedding what is not there yet."""
    keys: list[Hashable] = []
    new: dict[Hashable, None] = {}  # in the order in which they are embedded

    def missing() -> Iterator[Any]:
        for key, item in items:
            keys.append(key)
            if key not in cache and key not in new:
                new[key] = None
                yield item

    unseen = missing()
    for first in unseen:  # the encoder takes the rest; without a first one there is nothing to embed
        encoded = encode(chain([first], unseen))
        cache.update(zip(new, encoded, strict=True))
    return torch.stack([cache[key] for key in keys]) if keys else torch.empty(0)
