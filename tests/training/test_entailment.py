"""HySAC's terms against plain loops in double precision, and which of them are computed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from saferclip import hyperbolic
from saferclip.config import HyperbolicWeights
from saferclip.training import losses
from saferclip.training.entailment import entailment, lorentz_contrast
from saferclip.training.losses import HYPERBOLIC, Embeddings, Present, References, Space

BATCH, DIM = 6, 4
CURVATURE, SCALE, APERTURE = 0.6, 3.0, 0.8
# Columns that each term compares, the general one first.
COLUMNS = {
    "contrast_safe": ("safe_text", "safe_image"),
    "contrast_unsafe": ("unsafe_text", "unsafe_image"),
    "contrast_safe_text": ("safe_text", "unsafe_image"),
    "contrast_safe_image": ("unsafe_text", "safe_image"),
    "entailment_safe": ("safe_text", "safe_image"),
    "entailment_unsafe": ("unsafe_text", "unsafe_image"),
    "entailment_safety": ("safe_image", "unsafe_text"),
}


def points(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return hyperbolic.exponential(torch.randn(BATCH, DIM, dtype=torch.float64, generator=generator), CURVATURE)


@pytest.fixture
def tuned() -> Embeddings:
    return Embeddings(*(points(seed) for seed in range(4)))


@pytest.fixture
def frozen() -> References:
    return References(*(torch.zeros(BATCH, DIM) for _ in range(6)))


@pytest.fixture
def space() -> Space:
    values = (torch.tensor(value, dtype=torch.float64) for value in (CURVATURE, SCALE))
    return Space(*values, APERTURE)


def time(point: list[float]) -> float:
    return math.sqrt(1 / CURVATURE + sum(value**2 for value in point))


def distance(left: list[float], right: list[float]) -> float:
    inner = sum(a * b for a, b in zip(left, right, strict=True)) - time(left) * time(right)
    return math.acosh(-CURVATURE * inner) / math.sqrt(CURVATURE)


def slow_contrast(left: Tensor, right: Tensor) -> float:
    logits = [[-SCALE * distance(one, other) for other in right.tolist()] for one in left.tolist()]
    total = 0.0
    for here in range(len(logits)):
        row = sum(math.exp(value) for value in logits[here])
        column = sum(math.exp(other[here]) for other in logits)
        total += 2 * -logits[here][here] + math.log(row) + math.log(column)
    return total / (2 * len(logits))


def slow_entailment(general: Tensor, special: Tensor) -> float:
    root, total = math.sqrt(CURVATURE), 0.0
    for apex, point in zip(general.tolist(), special.tolist(), strict=True):
        near, across, far = (
            root * distance(*pair) for pair in (([0.0] * DIM, apex), (apex, point), ([0.0] * DIM, point))
        )
        cosine = (math.cosh(near) * math.cosh(across) - math.cosh(far)) / (math.sinh(near) * math.sinh(across))
        half = math.asin(2 * hyperbolic.CONE_RADIUS / math.sinh(near))
        total += max(0.0, math.pi - math.acos(cosine) - APERTURE * half)
    return total / len(general)


@pytest.mark.parametrize("name", list(HYPERBOLIC))
def test_every_term_equals_plain_loops(name: str, tuned: Embeddings, frozen: References, space: Space) -> None:
    slow = slow_contrast if name.startswith("contrast") else slow_entailment
    columns = (getattr(tuned, column) for column in COLUMNS[name])
    found = losses.terms(tuned, frozen, "infonce", 1.0, (name,), space=space)
    assert {key: float(value) for key, value in found.items()} == {name: pytest.approx(slow(*columns), rel=1e-6)}


def test_there_is_a_weight_for_each_term() -> None:
    assert tuple(HYPERBOLIC) == tuple(HyperbolicWeights.model_fields) == tuple(COLUMNS)


def test_only_terms_with_a_weight_are_computed_and_weights_are_divided_by_their_sum(
    tuned: Embeddings, frozen: References, space: Space
) -> None:
    weights = HyperbolicWeights(**{**dict.fromkeys(HYPERBOLIC, 0.0), "contrast_safe": 3.0, "entailment_safety": 1.0})
    assert losses.active(weights) == ("contrast_safe", "entailment_safety")
    found = losses.terms(tuned, frozen, "infonce", 1.0, losses.active(weights), space=space)
    expected = 0.75 * slow_contrast(tuned.safe_text, tuned.safe_image)
    expected += 0.25 * slow_entailment(tuned.safe_image, tuned.unsafe_text)
    assert float(losses.total(found, weights)) == pytest.approx(expected, rel=1e-6)


def test_rows_without_an_image_take_no_part_in_what_compares_it(
    tuned: Embeddings, frozen: References, space: Space
) -> None:
    safe, unsafe = torch.tensor([True, False, True, True, True, True]), torch.tensor([True] * 4 + [False] * 2)
    gaps = frozen._replace(present=Present(safe, unsafe, safe))
    zeroed = tuned._replace(
        safe_image=tuned.safe_image * safe[:, None], unsafe_image=tuned.unsafe_image * unsafe[:, None]
    )
    found = losses.terms(zeroed, gaps, "infonce", 1.0, tuple(HYPERBOLIC), space=space)
    taking_part = gaps.taking_part("infonce", tuple(HYPERBOLIC))
    for name, columns in COLUMNS.items():
        rows = safe if "safe_image" in columns else unsafe
        assert torch.equal(taking_part[name], rows)
        slow = slow_contrast if name.startswith("contrast") else slow_entailment
        assert float(found[name]) == pytest.approx(
            slow(*(getattr(tuned, column)[rows] for column in columns)), rel=1e-6
        )


def test_what_is_in_its_cone_costs_nothing_and_is_not_moved(space: Space) -> None:
    vectors = hyperbolic.logarithm(points(9), CURVATURE)
    behind = (2 * vectors).requires_grad_()
    apexes = hyperbolic.exponential(vectors, CURVATURE)
    value = entailment(apexes, hyperbolic.exponential(behind, CURVATURE), space.curvature, 1.0)
    value.backward()
    assert value.item() == 0 and behind.grad is not None and not behind.grad.any()


def test_perfect_partners_far_from_all_others_cost_nothing_in_the_contrast(space: Space) -> None:
    corners = 4 * torch.eye(DIM, dtype=torch.float64)
    apart = hyperbolic.exponential(corners, CURVATURE)
    assert float(lorentz_contrast(apart, apart, space.curvature, torch.tensor(100.0))) == pytest.approx(0, abs=1e-6)
