"""A model at several scales of what tuning changed: base weights + scale x (tuned - base weights).

What a low-rank adapter adds to a weight is linear in the adapter's scale, so these are the models that other scales of
an adapter give; for weights that were changed in another way, or published, the same line is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferclip import io, models
from saferclip.evaluation.encoder import Cache, Encoder, look_up


class ScaledModel:
    """One model in memory, set to one scale at a time; statistics of normalisation layers are on the line too."""

    def __init__(self, base: Path, tuned: Path, device: torch.device) -> None:
        """Load both; raises DataError unless they have the same weights, by name and shape."""
        self.clip = models.load(base, device)
        start = self.clip.model.state_dict()
        end = start if tuned.resolve() == base.resolve() else models.load(tuned, device).model.state_dict()
        if {name: rows.shape for name, rows in start.items()} != {name: rows.shape for name, rows in end.items()}:
            raise io.DataError(
                f"{tuned}: has other weights than {base}, so nothing lies between the two; leave its method out of "
                "tradeoff.methods"
            )
        self._moving = [
            (rows, rows.clone(), end[name])
            for name, rows in start.items()
            if rows.is_floating_point() and not torch.equal(rows, end[name])
        ]

    @torch.no_grad()
    def set(self, scale: float) -> None:
        """Give the model the weights of this scale; 0 and 1 give those of the two models exactly."""
        for weight, base, tuned in self._moving:
            # In double precision, so that base + (tuned - base) is tuned.
            weight.copy_(base.double() + scale * (tuned.double() - base.double()))


@dataclass
class Sweep:
    """Encoders of one model at several scales: each picture is read and decoded once for all of them."""

    model: ScaledModel
    scales: Sequence[float]
    batch_size: int
    # Item to embeddings (scales, dim).
    captions: Cache = field(default_factory=dict, repr=False)
    pictures: Cache = field(default_factory=dict, repr=False)

    def encoders(self) -> dict[float, Encoder]:
        """One for each scale."""
        return {
            scale: _EncoderAtScale(
                clip=self.model.clip, batch_size=self.batch_size, name=f"scale {scale:g}", sweep=self, place=place
            )
            for place, scale in enumerate(self.scales)
        }

    def encode_texts(self, captions: Sequence[str]) -> Tensor:
        """Embed captions at every scale: (captions, scales, dim)."""
        return torch.stack(list(self._at_scales(models.encode_texts, captions)), dim=1)

    def encode_images(self, cells: Iterator[Mapping[str, Any]]) -> Tensor:
        """Embed pictures at every scale, in the batches of an ordinary evaluation: (pictures, scales, dim)."""
        encoded = []
        while batch := [self.model.clip.preprocess(io.decode_image(cell)) for cell in islice(cells, self.batch_size)]:
            encoded.append(torch.stack(list(self._at_scales(_encode_pixels, batch)), dim=1))
        return torch.cat(encoded)

    def _at_scales(self, encode: Any, items: Sequence[Any]) -> Iterator[Tensor]:
        for scale in self.scales:
            self.model.set(scale)
            yield encode(self.model.clip, items, self.batch_size)


@dataclass(kw_only=True)
class _EncoderAtScale(Encoder):
    """An encoder whose items are embedded at every scale when they are asked for at the first."""

    sweep: Sweep
    place: int

    def texts(self, captions: Sequence[str]) -> Tensor:
        pairs = zip(captions, captions, strict=True)
        return self._own(look_up(self.sweep.captions, pairs, lambda new: self.sweep.encode_texts(list(new))))

    def images(self, cells: Iterable[Mapping[str, Any]], total: int | None = None) -> Tensor:  # noqa: ARG002
        pairs = ((sha256(cell["bytes"]).digest(), cell) for cell in cells)
        return self._own(look_up(self.sweep.pictures, pairs, self.sweep.encode_images))

    def _own(self, encoded: Tensor) -> Tensor:
        return self._numbers(encoded[:, self.place]) if len(encoded) else encoded


def _encode_pixels(clip: models.Clip, pixels: Sequence[Tensor], batch_size: int) -> Tensor:
    """Embed pictures that are preprocessed already."""
    ready: Any = pixels  # where encode_images expects pictures
    return models.encode_images(replace(clip, preprocess=_unchanged), ready, batch_size)


def _unchanged(pixels: Any) -> Tensor:
    return pixels
