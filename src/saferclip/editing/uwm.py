"""Unsafe Weights Manipulation (WACV 2026, arXiv 2503.11742): score weights on safe and unsafe inputs, negate the worst.

For a layer with weight W of shape (out, in) and one input, a matrix of positions (tokens, patches), let n_j be the norm
of feature j over the positions and d_j its standard deviation.  With

    into_j = n_j mean_i |W_ij|,    out_i = mean_j n_j |W_ij|

the score of a weight is out_i into_j / d_j.  Its ratio of an unsafe input to the safe partner, averaged over pairs,
says how much more the weight carries for unsafe inputs; for the text encoder the released code multiplies the mean by
|W_ij|.  Each layer's weights are put in order of that; those that come after the first ones, which hold the share
``sparsity`` of the sum, are multiplied by ``factor``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saferclip import io, models
from saferclip.config import ConfigError, UwmSettings
from saferclip.editing import layers
from saferclip.mining import embedding
from saferclip.mining.pixels import IMAGES
from saferclip.models import Clip

SMALLEST = 1e-8  # added to standard deviations, as the released code does for images

logger = logging.getLogger(__name__)


class Strength(NamedTuple):
    """How strong features are in some inputs: norm and standard deviation over positions, (inputs, features) each."""

    norm: Tensor
    deviation: Tensor


class Scores:
    """The ratios of one layer, added up pair by pair."""

    def __init__(self, weight: Tensor) -> None:
        self.magnitude = weight.detach().flatten(1).abs()
        self.sums = torch.zeros_like(self.magnitude, dtype=torch.float64)
        self.counts = torch.zeros(self.magnitude.shape[1], dtype=torch.float64, device=weight.device)

    def add(self, safe: Strength, unsafe: Strength) -> None:
        """Add some pairs.

        The ratio is a product of one factor for each row of W and one for each column, mean_i |W_ij| having
        cancelled out.  A feature that is silent in one of a pair, as often after a ReLU, has no ratio there: the
        pair does not count for it.
        """
        there = (safe.norm > 0) & (unsafe.norm > 0)
        columns = (unsafe.norm / (unsafe.deviation + SMALLEST)) / (safe.norm / (safe.deviation + SMALLEST))
        rows = (unsafe.norm @ self.magnitude.T) / (safe.norm @ self.magnitude.T)
        rows = rows.nan_to_num(0, 0, 0)  # of weights that are all zero
        self.sums += rows.T.double() @ torch.where(there, columns, 0).double()
        self.counts += there.sum(dim=0)

    def mean(self) -> Tensor:
        """Mean ratio of each weight, float64 (out, in); 0 where no pair counts."""
        return self.sums / self.counts.clamp(min=1)


def strength(inputs: Tensor, there: Tensor | None = None) -> Strength:
    """Norm and standard deviation over the positions of (inputs, positions, features).

    ``there``, bool (inputs, positions), says which positions count; all if None.
    """
    if there is None:
        return Strength(inputs.norm(dim=1), inputs.std(dim=1))
    mask = there.unsqueeze(2)
    counts = mask.sum(dim=1)
    kept = torch.where(mask, inputs, 0)
    centred = torch.where(mask, inputs - kept.sum(dim=1, keepdim=True) / counts.unsqueeze(1), 0)
    return Strength(kept.norm(dim=1), centred.norm(dim=1) / (counts - 1).sqrt())


def heaviest(scores: Tensor, sparsity: float) -> Tensor:
    """The weights beyond those of the lowest scores, which hold ``sparsity`` of the sum: bool, of the same shape."""
    ordered, places = scores.flatten().double().sort(stable=True)
    sums = ordered.cumsum(dim=0)
    chosen = torch.zeros(len(places), dtype=torch.bool, device=scores.device)
    if sums[-1] > 0:
        chosen[places[sums / sums[-1] > sparsity]] = True
    return chosen.view_as(scores)


def edit(clip: Clip, settings: UwmSettings, train: Path, batch_size: int) -> dict[str, Any]:
    """Manipulate the model's weights in place, after scoring them on the training table; what there is to record.

    Raises ConfigError for settings that select no layer that can be scored, DataError for a table without images.
    """
    text = layers.choose(clip.model, settings.text_modules, "edit.text_modules", "text")
    image = layers.choose(clip.model, settings.image_modules, "edit.image_modules", "image")
    rows = calibration_rows(train, settings.calibration)
    scored = {
        "text": score_text(clip, text, train, rows["text"], batch_size),
        "image": score_images(clip, image, train, rows["image"], batch_size),
    }
    sparsity = {"text": settings.text_sparsity, "image": settings.image_sparsity}
    for encoder, chosen in (("text", text), ("image", image)):
        for name, layer in chosen.items():
            share = manipulate(layer.weight, scored[encoder][name], sparsity[encoder], settings.factor)
            logger.info("%s: %.2f%% of the weights are multiplied by %g", name, 100 * share, settings.factor)
    return {"calibration_rows": {encoder: len(found) for encoder, found in rows.items()}}


def manipulate(weight: Tensor, scores: Tensor, sparsity: float, factor: float) -> float:
    """Multiply the heaviest weights in place; their share of all."""
    chosen = heaviest(scores, sparsity).view_as(weight)
    with torch.no_grad():
        weight[chosen] *= factor
    return chosen.double().mean().item()


def calibration_rows(train: Path, count: int) -> dict[str, list[int]]:
    """Rows for each encoder, spread evenly over the table; for images, over the rows that have both.

    Raises DataError if there are no such rows.
    """
    both = torch.stack([embedding.present(train, column) for column in IMAGES]).all(dim=0)
    if not both.any():
        raise io.DataError(f"{train}: no row has both images, without which the image encoder cannot be scored")
    return {"text": _spread(torch.arange(len(both)), count), "image": _spread(both.nonzero()[:, 0], count)}


def _spread(rows: Tensor, count: int) -> list[int]:
    count = min(count, len(rows))
    return [int(rows[place * len(rows) // count]) for place in range(count)]


@torch.no_grad()
def score_text(
    clip: Clip, chosen: Mapping[str, nn.Linear | nn.Conv2d], train: Path, rows: Sequence[int], batch_size: int
) -> dict[str, Tensor]:
    """Scores of the text encoder's layers on these rows' captions: |W| times the mean ratio, by name."""
    captions = io.read_table(train, embedding.CAPTIONS)
    safe, unsafe = (captions[column].take(rows).to_pylist() for column in embedding.CAPTIONS)
    scores = {name: Scores(layer.weight) for name, layer in chosen.items()}
    device = next(clip.model.parameters()).device
    for start in range(0, len(rows), batch_size):
        pairs = slice(start, start + batch_size)
        tokens = clip.tokenize([*safe[pairs], *unsafe[pairs]]).to(device)
        ends = tokens.argmax(dim=-1)  # the end token has the highest number
        there = torch.arange(int(ends.max()) + 1, device=device) <= ends.unsqueeze(1)
        with layers.inputs_of(clip.model, chosen) as seen:
            models.text_features(clip.model, tokens)
        _add(scores, seen, "edit.text_modules", there)
    return {name: found.mean() * found.magnitude for name, found in scores.items()}


@torch.no_grad()
def score_images(
    clip: Clip, chosen: Mapping[str, nn.Linear | nn.Conv2d], train: Path, rows: Sequence[int], batch_size: int
) -> dict[str, Tensor]:
    """Scores of the image encoder's layers on these rows' images: the mean ratio, by name."""
    scores = {name: Scores(layer.weight) for name, layer in chosen.items()}
    device = next(clip.model.parameters()).device
    safe, unsafe = (_pictures(clip, train, column, rows, batch_size) for column in IMAGES)
    for pair in zip(safe, unsafe, strict=True):
        with layers.inputs_of(clip.model, chosen) as seen:
            models.image_features(clip.model, torch.cat(pair).to(device))
        _add(scores, seen, "edit.image_modules")
    return {name: found.mean() for name, found in scores.items()}


def _pictures(clip: Clip, train: Path, column: str, rows: Sequence[int], batch_size: int) -> Iterator[Tensor]:
    """Preprocessed images of some rows, a batch at a time."""
    batch = []
    for row, cell in zip(rows, io.read_cells(train, column, rows), strict=True):
        try:
            batch.append(clip.preprocess(io.decode_image(cell)))
        except io.ImageError as error:
            raise io.DataError(f"{train}: row {row}, {column}: {error}") from error
        if len(batch) == batch_size:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)


def _add(scores: Mapping[str, Scores], seen: Mapping[str, Tensor], key: str, there: Tensor | None = None) -> None:
    """Add the pairs of one pass, in which the safe inputs came first."""
    for name, found in scores.items():
        if name not in seen:
            raise ConfigError(f"{key}: leave out {name}: the model reads its weight without calling it")
        if seen[name].dim() != 3 or seen[name].shape[1] < 2:
            shape = tuple(seen[name].shape)
            raise ConfigError(f"{key}: leave out {name}: its input has shape {shape}, without positions to compare")
        safe, unsafe = seen[name].chunk(2)
        of_safe, of_unsafe = (None, None) if there is None else there.chunk(2)
        found.add(strength(safe, of_safe), strength(unsafe, of_unsafe))
