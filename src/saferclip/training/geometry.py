"""SAGE's two regularisers (ECCV 2026, arXiv 2607.00402): the geometry of safe embeddings survives safety tuning.

Pure functions of unit embeddings of shape (rows, dim), of one modality; rows are those of a micro-batch, so spread and
neighbourhoods are within it.  SAGE has them for the text encoder; here they are applied to either one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST = 1e-12  # lengths below it are those of no vector


def spread(rows: Tensor) -> Tensor:
    """Mean squared distance of rows to their mean: S = 1/n sum_i |z_i - mean(z)|^2, between 0 and 1 for unit rows."""
    return (rows - rows.mean(dim=0)).square().sum(dim=1).mean()


def contraction(tuned: Tensor, base: Tensor) -> Tensor:
    """By how much the tuned embeddings spread less than those of the base model: max(0, S_base - S_tuned).

    Spreading more costs nothing, so that the model may reorganise its space.
    """
    return functional.relu(spread(base) - spread(tuned))


def distortion(tuned: Tensor, base: Tensor, unsafe: Tensor, neighbours: int, shift: float) -> Tensor:
    """1 - correlation of tuned and base similarities over the base model's nearest pairs; between 0 and 2.

    Pairs are each row with its ``neighbours`` most similar ones in the base model (all others where there are fewer).
    Cosines of both models are standardised over these pairs; the loss is 1 minus the mean of their products.  Tuned
    rows are first moved by ``shift`` along ``unsafe``, the unit vector (dim,) of the unsafe concept: the neighbourhoods
    have to hold where an unsafe prompt would take them, so that what made them unsafe is not restored with them.

    0 where it says nothing: below three rows, or if all pairs of a model are equally similar.
    """
    if len(tuned) < 3:
        return tuned.new_zeros(())
    first, second = nearest_pairs(base, neighbours)
    moved = functional.normalize(tuned + shift * unsafe, dim=1)
    ours, theirs = ((rows[first] * rows[second]).sum(dim=1) for rows in (moved, base))
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    if min(ours.norm(), theirs.norm()) < SMALLEST**0.5:
        return tuned.new_zeros(())
    return 1 - functional.cosine_similarity(ours, theirs, dim=0)


def nearest_pairs(base: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Each row with its most similar other ones: two tensors of rows, (rows * min(neighbours, rows - 1),).

    Of equally similar ones the first, whatever the device.
    """
    others = nearest_others(base, neighbours)
    first = torch.arange(len(base), device=base.device)[:, None].expand_as(others)
    return first.flatten(), others.flatten()


def nearest_others(base: Tensor, neighbours: int) -> Tensor:
    """The most similar other rows of each row, best first: (rows, min(neighbours, rows - 1))."""
    similarity = (base @ base.T).fill_diagonal_(-torch.inf)
    order = similarity.argsort(dim=1, descending=True, stable=True)
    return order[:, : min(neighbours, len(base) - 1)]


def unsafe_direction(safe: Tensor, unsafe: Tensor) -> Tensor:
    """From safe to unsafe inputs under the frozen model: the unit vector (dim,) between their means.

    Both are (rows, dim), of the whole training split, so that the direction is the same in every step.  Zero if there
    are no rows, or nothing lies between the means.
    """
    if not len(safe):
        return safe.new_zeros(safe.shape[1])
    # In float64, so that the number of threads that add up does not matter.
    between = unsafe.double().mean(dim=0) - safe.double().mean(dim=0)
    return functional.normalize(between, dim=0, eps=SMALLEST).to(safe.dtype)
