"""SAGE's regularisers against plain loops in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from saferclip.training import geometry

ROWS, DIM = 9, 6


def unit(seed: int, rows: int = ROWS, nearness: float = 0.5) -> Tensor:
    """Rows near each other, as CLIP's are."""
    rng = np.random.default_rng(seed)
    values = nearness * rng.standard_normal((rows, DIM)) + 1
    return torch.from_numpy(values / np.linalg.norm(values, axis=1, keepdims=True))


def direction() -> Tensor:
    return torch.nn.functional.normalize(torch.arange(DIM, dtype=torch.float64) - 2, dim=0)


def slow_spread(rows: Tensor) -> float:
    """By the mean of all pairs' squared distances, which is twice the one to the mean."""
    values = rows.detach().numpy()
    pairs = [float(((one - other) ** 2).sum()) for one in values for other in values]
    return sum(pairs) / (2 * len(values) ** 2)


def slow_distortion(tuned: Tensor, base: Tensor, unsafe: Tensor, neighbours: int, shift: float) -> float:
    """Pearson's correlation by its textbook sums."""
    old = base.detach().numpy()
    new = []
    for row in tuned.detach().numpy():
        moved = [value + shift * step for value, step in zip(row, unsafe.tolist(), strict=True)]
        length = math.sqrt(sum(value * value for value in moved))
        new.append([value / length for value in moved])
    xs, ys = [], []
    for i in range(len(old)):
        others = sorted((j for j in range(len(old)) if j != i), key=lambda j, i=i: (-float(old[i] @ old[j]), j))
        for j in others[:neighbours]:
            xs.append(sum(a * b for a, b in zip(new[i], new[j], strict=True)))
            ys.append(float(old[i] @ old[j]))
    n = len(xs)
    covariance = sum(x * y for x, y in zip(xs, ys, strict=True)) - sum(xs) * sum(ys) / n
    variances = [sum(v * v for v in values) - sum(values) ** 2 / n for values in (xs, ys)]
    return 1 - covariance / math.sqrt(variances[0] * variances[1])


def test_spread_is_half_the_mean_squared_distance_of_pairs() -> None:
    for seed in range(3):
        assert float(geometry.spread(unit(seed))) == pytest.approx(slow_spread(unit(seed)), rel=1e-9)
    assert float(geometry.spread(torch.eye(4, dtype=torch.float64))) == pytest.approx(0.75)
    assert float(geometry.spread(unit(0, rows=1))) == 0


def test_only_contraction_costs() -> None:
    wide, narrow = unit(0, nearness=1.0), unit(0, nearness=0.1)
    expected = slow_spread(wide) - slow_spread(narrow)
    assert expected > 0.1
    assert float(geometry.contraction(narrow, wide)) == pytest.approx(expected, rel=1e-9)
    assert float(geometry.contraction(wide, narrow)) == 0


def test_contraction_drives_rows_apart_and_leaves_the_base_alone() -> None:
    narrow, wide = unit(0, nearness=0.1).requires_grad_(), unit(1, nearness=1.0)
    geometry.contraction(narrow, wide).backward()
    assert narrow.grad is not None and not wide.requires_grad
    with torch.no_grad():
        assert geometry.spread(narrow - 0.1 * narrow.grad) > geometry.spread(narrow)


@pytest.mark.parametrize("neighbours", [1, 3, 8, 15])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_distortion_is_one_minus_the_correlation_over_the_bases_nearest_pairs(neighbours: int, shift: float) -> None:
    for seed in range(3):
        tuned, base = unit(seed), unit(seed + 10)
        found = float(geometry.distortion(tuned, base, direction(), neighbours, shift))
        assert found == pytest.approx(slow_distortion(tuned, base, direction(), neighbours, shift), rel=1e-9)
        assert 0 <= found <= 2


def test_what_is_left_as_it_was_has_no_distortion() -> None:
    base = unit(0)
    assert float(geometry.distortion(base, base, direction(), 4, 0.0)) == pytest.approx(0, abs=1e-12)
    # A shift changes cosines, most where rows already lie along it.
    assert float(geometry.distortion(base, base, direction(), 4, 1.0)) > 1e-3


def test_gradient_restores_neighbourhoods() -> None:
    tuned, base = unit(0).requires_grad_(), unit(1)
    for shift in (0.0, 1.0):
        tuned.grad = None
        loss = geometry.distortion(tuned, base, direction(), 4, shift)
        loss.backward()
        assert tuned.grad is not None and tuned.grad.abs().max() > 0
        with torch.no_grad():
            assert geometry.distortion(tuned - 1e-3 * tuned.grad, base, direction(), 4, shift) < loss


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_too_few_rows_say_nothing(rows: int) -> None:
    assert float(geometry.distortion(unit(0, rows), unit(1, rows), direction(), 15, 1.0)) == 0


def test_equal_similarities_say_nothing() -> None:
    corners = torch.eye(DIM, dtype=torch.float64)
    tuned = unit(0, rows=DIM).requires_grad_()
    assert float(geometry.distortion(tuned, corners, direction(), 3, 0.0)) == 0
    assert float(geometry.distortion(corners, unit(0, rows=DIM), direction(), 3, 0.0)) == 0


def test_equal_rows_are_chosen_in_their_order() -> None:
    base = torch.eye(3, dtype=torch.float64)[[0, 1, 1, 1, 2]]
    assert geometry.nearest_others(base, 2).tolist() == [[1, 2], [2, 3], [1, 3], [1, 2], [0, 1]]


def test_the_unsafe_direction_lies_between_the_means() -> None:
    safe, unsafe = unit(0), unit(1)
    difference = [
        sum(row[place] for row in unsafe.tolist()) - sum(row[place] for row in safe.tolist()) for place in range(DIM)
    ]
    length = math.sqrt(sum(value * value for value in difference))
    found = geometry.unsafe_direction(safe, unsafe)
    assert found.tolist() == pytest.approx([value / length for value in difference], rel=1e-9)
    assert geometry.unsafe_direction(safe, safe).tolist() == [0] * DIM
    assert geometry.unsafe_direction(safe[:0], unsafe[:0]).tolist() == [0] * DIM
