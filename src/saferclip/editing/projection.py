"""Projection: remove from all embeddings the directions in which unsafe inputs differ from their safe partners.

With the frozen embeddings of the training split, D holds a row (unsafe - safe) for each pair; U, its first r right
singular vectors, spans the subspace that is removed: an embedding e becomes (I - U U^T) e before it is normalised.
That is linear in e, so it is folded into the output projection, and the model stays an ordinary CLIP.
The differences are not centred: their mean is the first thing to remove.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saferclip import io
from saferclip.config import ConfigError, ProjectionSettings
from saferclip.mining import embedding
from saferclip.mining.pixels import IMAGES
from saferclip.models import Clip

logger = logging.getLogger(__name__)


def edit(clip: Clip, settings: ProjectionSettings, embeddings: Path) -> dict[str, Any]:
    """Fold the projection into the model's weights in place; what there is to record.

    Raises ConfigError for a rank that leaves no direction, or a model without output projections, DataError if the
    embeddings are not those of the training split, or lack images where each modality has its own directions.
    """
    found = {"text": _differences(embeddings, *embedding.CAPTIONS), "image": _differences(embeddings, *IMAGES)}
    if settings.subspace == "own" and not len(found["image"]):
        raise io.DataError(f"{embeddings}: no row has both images; set edit.subspace to 'shared'")
    spaces = found if settings.subspace == "own" else dict.fromkeys(found, torch.cat(list(found.values())))
    removed = {encoder: directions(rows, settings.rank) for encoder, rows in spaces.items()}
    fold_text(clip.model, removed["text"])
    fold_image(clip.model, removed["image"])
    shares = {encoder: explained(found[encoder], removed[encoder]) for encoder in found if len(found[encoder])}
    logger.info("share of the differences' squared length that is removed: %s", shares)
    return {"pairs": {encoder: len(rows) for encoder, rows in found.items()}, "removed_share": shares}


def directions(differences: Tensor, rank: int) -> Tensor:
    """The first right singular vectors of (pairs, dim) differences: float64 (dim, rank), orthonormal columns.

    Raises ConfigError if the rank leaves no direction of the embedding.
    """
    dim = differences.shape[1]
    if rank >= dim:
        raise ConfigError(f"edit.rank: {rank} directions of {dim} would leave none; lower it")
    # Of the smaller Gram matrix, whose eigenvalues ascend.
    _, vectors = torch.linalg.eigh(differences.double().T @ differences.double())
    return vectors[:, -rank:].flip(dims=(1,))


def explained(differences: Tensor, removed: Tensor) -> float:
    """Share of the differences' squared length that lies in the removed directions."""
    inside = (differences.double() @ removed).square().sum() / differences.double().square().sum()
    return inside.item()


def fold_text(model: nn.Module, removed: Tensor) -> None:
    """Remove directions (dim, rank) from a text encoder's output, in place.

    Raises ConfigError if it has no projection.
    """
    projection = getattr(model, "text_projection", None)
    if isinstance(projection, nn.Linear):
        _fold_linear(projection, removed)
    elif isinstance(projection, nn.Parameter):
        _fold_matrix(projection, removed)
    else:
        raise ConfigError(f"edit: no text_projection in a {type(model).__name__}, into which a projection could go")


def fold_image(model: nn.Module, removed: Tensor) -> None:
    """The same for the image encoder: ``visual.proj`` of a ViT, ``visual.attnpool.c_proj`` of a ResNet."""
    visual: Any = getattr(model, "visual", None)
    pooling = getattr(getattr(visual, "attnpool", None), "c_proj", None)
    if isinstance(getattr(visual, "proj", None), nn.Parameter):
        _fold_matrix(visual.proj, removed)
    elif isinstance(pooling, nn.Linear):
        _fold_linear(pooling, removed)
    else:
        raise ConfigError(
            f"edit: neither visual.proj nor visual.attnpool.c_proj in a {type(visual).__name__}, into which a "
            "projection could go"
        )


@torch.no_grad()
def _fold_matrix(weight: nn.Parameter, removed: Tensor) -> None:
    """For a weight of shape (width, dim), which features are multiplied by."""
    weight.copy_(_without(weight, removed))


@torch.no_grad()
def _fold_linear(layer: nn.Linear, removed: Tensor) -> None:
    layer.weight.copy_(_without(layer.weight.T, removed).T)
    if layer.bias is not None:
        layer.bias.copy_(_without(layer.bias, removed))


def _without(rows: Tensor, removed: Tensor) -> Tensor:
    """Rows (..., dim) without their parts along orthonormal directions (dim, rank)."""
    removed = removed.to(rows.device)
    exact = rows.double()
    return exact - (exact @ removed) @ removed.T


def _differences(embeddings: Path, safe: str, unsafe: str) -> Tensor:
    """Unsafe minus safe frozen embedding of each training pair that is there: (pairs, dim)."""
    names = [f"train.{column}" for column in (safe, unsafe)]
    masks = [f"{name}.present" for name in names] if safe in IMAGES else []
    tensors = io.read_tensors(embeddings, [*names, *masks])
    rows = tensors[names[1]] - tensors[names[0]]
    if masks:
        rows = rows[tensors[masks[0]] & tensors[masks[1]]]
    return rows
