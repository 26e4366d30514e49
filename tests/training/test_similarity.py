"""Preservation by similarities, against loops in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from saferclip.training import similarity

SCALE = 7.0


def unit(seed: int, rows: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, 4, generator=random, dtype=torch.float64), dim=-1)


def slow(tuned: Tensor, frozen: Tensor, items: Tensor) -> float:
    total = 0.0
    for new, old in zip(tuned.tolist(), frozen.tolist(), strict=True):
        powers = [
            [math.exp(SCALE * sum(a * b for a, b in zip(row, item, strict=True))) for item in items.tolist()]
            for row in (old, new)
        ]
        before, after = ([power / sum(row) for power in row] for row in powers)
        total += sum(p * math.log(p / q) for p, q in zip(before, after, strict=True))
    return total / len(tuned)


def test_divergence_equals_plain_loops() -> None:
    tuned, frozen, items = unit(1, 5), unit(2, 5), unit(3, 6)
    assert float(similarity.divergence(tuned, frozen, items, SCALE)) == pytest.approx(slow(tuned, frozen, items))


def test_what_resembles_the_same_costs_nothing_wherever_it_lies() -> None:
    """Moved at right angles to all items, an embedding has the same similarities up to a common factor of none."""
    items = functional.pad(unit(3, 6)[:, :3], (0, 2))
    frozen = functional.pad(unit(2, 5)[:, :3], (0, 2))
    moved = frozen.clone()
    moved[:, 4] = 2.0
    assert float(similarity.divergence(moved, frozen, items, SCALE)) == pytest.approx(0, abs=1e-12)
    assert float(similarity.divergence(-frozen, frozen, items, SCALE)) > 0.1


def test_gradient_flows_into_the_tuned_rows_alone() -> None:
    tuned, frozen, items = (unit(seed, 4).requires_grad_() for seed in (1, 2, 3))
    similarity.divergence(tuned, frozen.detach(), items.detach(), SCALE).backward()
    assert tuned.grad is not None and frozen.grad is None and items.grad is None
