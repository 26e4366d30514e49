"""Hyperbolic space against slow computations by other ways: plain loops, the Poincaré ball, the law of cosines."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from saferclip import hyperbolic
from saferclip.hyperbolic import CONE_RADIUS

DIM = 6
Vector = list[float]


def tangents(count: int, seed: int = 0, length: float = 1.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, DIM, dtype=torch.float64, generator=generator)
    return vectors * length / DIM**0.5


def points(count: int, curvature: float, seed: int = 0, length: float = 1.5) -> Tensor:
    return hyperbolic.exponential(tangents(count, seed, length), curvature)


def dot(left: Vector, right: Vector) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def slow_time(point: Vector, curvature: float) -> float:
    return math.sqrt(1 / curvature + dot(point, point))


def slow_inner(left: Vector, right: Vector, curvature: float) -> float:
    return dot(left, right) - slow_time(left, curvature) * slow_time(right, curvature)


def poincare(point: Vector, curvature: float) -> Vector:
    """The same point in the ball of radius 1/sqrt(c)."""
    return [value / (1 + math.sqrt(1 + curvature * dot(point, point))) for value in point]


def slow_distance(left: Vector, right: Vector, curvature: float) -> float:
    """By the Poincaré ball's formula, which the Lorentz inner product has no part in."""
    one, other = poincare(left, curvature), poincare(right, curvature)
    apart = [a - b for a, b in zip(one, other, strict=True)]
    shrunk = (1 - curvature * dot(one, one)) * (1 - curvature * dot(other, other))
    return math.acosh(1 + 2 * curvature * dot(apart, apart) / shrunk) / math.sqrt(curvature)


@pytest.fixture(params=[0.3, 1.0, 2.5])
def curvature(request: pytest.FixtureRequest) -> float:
    return float(request.param)


def test_points_lie_on_the_hyperboloid_as_far_from_the_root_as_their_vector_is_long(curvature: float) -> None:
    vectors = tangents(20)
    found = hyperbolic.exponential(vectors, curvature)
    root = [0.0] * DIM
    times, radii = hyperbolic.time(found, curvature), hyperbolic.radius(found, curvature)
    for vector, point, time, radius in zip(vectors.tolist(), found.tolist(), times, radii, strict=True):
        assert dot(point, point) - float(time) ** 2 == pytest.approx(-1 / curvature)
        assert slow_distance(root, point, curvature) == pytest.approx(math.hypot(*vector))
        assert float(radius) == pytest.approx(math.hypot(*vector))
        assert dot(vector, point) == pytest.approx(math.hypot(*vector) * math.hypot(*point)), "the same direction"


def test_logarithm_undoes_the_exponential(curvature: float) -> None:
    vectors = torch.cat([tangents(20), tangents(5, length=1e-9), torch.zeros(1, DIM, dtype=torch.float64)])
    found = hyperbolic.logarithm(hyperbolic.exponential(vectors, curvature), curvature)
    torch.testing.assert_close(found, vectors, rtol=1e-9, atol=0)


def test_no_point_is_beyond_the_largest_distance(curvature: float) -> None:
    vectors = tangents(20, length=4.0)
    found = hyperbolic.exponential(vectors, curvature, largest=2.0)
    farthest = 2.0 / curvature**0.5
    for vector, radius in zip(vectors.tolist(), hyperbolic.radius(found, curvature), strict=True):
        assert float(radius) == pytest.approx(min(math.hypot(*vector), farthest))


def test_inner_products_and_distances_of_all_pairs(curvature: float) -> None:
    left, right = points(7, curvature, 1), points(5, curvature, 2)
    inner = hyperbolic.inner(left, right, curvature)
    distance = hyperbolic.distance(left, right, curvature)
    for row, one in enumerate(left.tolist()):
        for column, other in enumerate(right.tolist()):
            assert float(inner[row, column]) == pytest.approx(slow_inner(one, other, curvature))
            assert float(distance[row, column]) == pytest.approx(slow_distance(one, other, curvature))
    torch.testing.assert_close(distance, hyperbolic.distance(right, left, curvature).T)


def test_distance_is_that_of_a_metric(curvature: float) -> None:
    some = points(12, curvature, 3)
    distance = hyperbolic.distance(some, some, curvature)
    assert distance.diagonal().max() < 1e-6
    assert (distance[:, :, None] <= distance[:, None, :] + distance[None, :, :].transpose(1, 2) + 1e-6).all()


def test_exterior_angle_obeys_the_law_of_cosines(curvature: float) -> None:
    apexes, others = points(20, curvature, 4), points(20, curvature, 5)
    found = hyperbolic.exterior_angle(apexes, others, curvature)
    root = math.sqrt(curvature)
    for apex, other, angle in zip(apexes.tolist(), others.tolist(), found, strict=True):
        origin = [0.0] * DIM
        near, across, far = (
            root * slow_distance(one, two, curvature) for one, two in ((origin, apex), (apex, other), (origin, other))
        )
        cosine = (math.cosh(near) * math.cosh(across) - math.cosh(far)) / (math.sinh(near) * math.sinh(across))
        assert float(angle) == pytest.approx(math.pi - math.acos(cosine), abs=1e-6)


def test_what_lies_straight_behind_the_apex_is_at_angle_0_and_what_lies_before_it_at_pi(curvature: float) -> None:
    vectors = tangents(5, 6)
    apexes, behind, before = (hyperbolic.exponential(factor * vectors, curvature) for factor in (1.0, 1.4, 0.6))
    assert hyperbolic.exterior_angle(apexes, behind, curvature).max() < 1e-5
    assert hyperbolic.exterior_angle(apexes, before, curvature).min() > math.pi - 1e-5


def test_aperture_is_that_of_cones_in_the_ball(curvature: float) -> None:
    """Ganea et al. 2018: arcsin(K (1 - c|p|^2) / (sqrt(c) |p|)) for a point p of the ball."""
    apexes = points(20, curvature, 7)
    for apex, found in zip(apexes.tolist(), hyperbolic.half_aperture(apexes, curvature), strict=True):
        ball = poincare(apex, curvature)
        sine = CONE_RADIUS * (1 - curvature * dot(ball, ball)) / math.sqrt(curvature * dot(ball, ball))
        assert float(found) == pytest.approx(math.asin(sine))
    near = points(3, curvature, 7, length=1e-3)
    assert hyperbolic.half_aperture(near, curvature).tolist() == pytest.approx([math.pi / 2] * 3, abs=1e-6)


def test_cones_are_nested(curvature: float) -> None:
    """Whatever is in the cone of a point is in that of all that entail the point (Ganea et al., section 3.2)."""
    # In units in which the curvature is -1, where cones of points half a unit away are wide.
    unit = curvature**-0.5
    vectors = tangents(3000, 8, 0.5 * unit)
    first, second, third = (
        hyperbolic.exponential(factor * vectors + tangents(3000, seed, noise * unit), curvature)
        for factor, seed, noise in ((1.0, 8, 0.0), (1.7, 9, 0.07), (2.6, 10, 0.14))
    )

    def inside(general: Tensor, special: Tensor, spare: float = 0.0) -> Tensor:
        angle = hyperbolic.exterior_angle(general, special, curvature)
        return angle <= hyperbolic.half_aperture(general, curvature) + spare

    chain = inside(first, second) & inside(second, third)
    assert 50 < chain.sum() < 2000, "this shows nothing"
    assert inside(first, third, spare=1e-9)[chain].all()
    others = third.roll(1, dims=0)
    assert inside(first, others).float().mean() < 0.1, "cones are not the whole space"


def test_centroid_has_the_least_mean_squared_lorentz_distance(curvature: float) -> None:
    some = points(15, curvature, 11).view(3, 5, DIM)
    found = hyperbolic.centroid(some, curvature)

    def cost(candidates: Tensor) -> Tensor:
        pairs = zip(some, candidates, strict=True)
        products = torch.stack([hyperbolic.inner(one, other[None], curvature)[:, 0] for one, other in pairs])
        return (-2 / curvature - 2 * products).mean(dim=1)

    for seed in range(20):
        moved = hyperbolic.exponential(hyperbolic.logarithm(found, curvature) + tangents(3, seed, 1e-3), curvature)
        assert (cost(moved) > cost(found)).all()
    same = some[:, :1].expand(-1, 4, -1)
    torch.testing.assert_close(hyperbolic.centroid(same, curvature), some[:, 0])


def test_gradients_are_numbers_where_formulas_have_none() -> None:
    """In single precision: at the root, of a point to itself, and straight behind an apex."""
    vectors = torch.cat([torch.zeros(1, DIM), tangents(3, 12).float()]).requires_grad_()
    curvature = torch.tensor(1.0, requires_grad=True)
    some = hyperbolic.exponential(vectors, curvature, 5.0)
    behind = hyperbolic.exponential(2 * vectors, curvature, 5.0)
    values = [
        hyperbolic.distance(some, some, curvature),
        hyperbolic.exterior_angle(some, some, curvature),
        hyperbolic.exterior_angle(some, behind, curvature),
        hyperbolic.half_aperture(some, curvature),
        hyperbolic.logarithm(some, curvature),
    ]
    for value in values:
        assert value.isfinite().all()
        for gradient in torch.autograd.grad(value.sum(), [vectors, curvature], retain_graph=True):
            assert gradient.isfinite().all()
