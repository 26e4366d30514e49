"""Hyperbolic space in the Lorentz model: pure functions of points.

A point of the space of curvature -c is written by its space components x, shape (..., dim); its time component follows,
x_t = sqrt(1/c + |x|^2).  The root is x = 0.  Formulas: Desai et al. (MERU, ICML 2023), section 3; cones: Ganea et al.
(ICML 2018) and Le et al. (ACL 2019), in this model.

``curvature`` is c > 0, a number or a tensor without axes, through which gradients flow.
"""

from __future__ import annotations

import torch
from torch import Tensor

Curvature = float | Tensor
CONE_RADIUS = 0.1  # K of the cones' aperture, as in MERU: nearer to the root than 2K, cones are half spaces


def time(points: Tensor, curvature: Curvature) -> Tensor:
    """Time components: (..., dim) to (...)."""
    return (1 / curvature + points.square().sum(dim=-1)).sqrt()


def exponential(tangents: Tensor, curvature: Curvature, largest: float | None = None) -> Tensor:
    """From the tangent space at the root into the space: vectors (..., dim) to points (..., dim).

    The distance of a point from the root is its vector's length, but ``largest`` / sqrt(c) at most.
    """
    root = curvature**0.5
    length = _length(tangents)
    angle = root * length if largest is None else (root * length).clamp(max=largest)
    return tangents * (angle.sinh() / (root * length))


def logarithm(points: Tensor, curvature: Curvature) -> Tensor:
    """The inverse of ``exponential``: points (..., dim) to vectors (..., dim)."""
    root = curvature**0.5
    length = _length(points)
    return points * ((root * length).asinh() / (root * length))


def radius(points: Tensor, curvature: Curvature) -> Tensor:
    """Distance from the root: (..., dim) to (...)."""
    root = curvature**0.5
    return (root * points.norm(dim=-1)).asinh() / root


def inner(left: Tensor, right: Tensor, curvature: Curvature) -> Tensor:
    """Lorentz inner product of all pairs, x.y - x_t y_t: (n, dim) and (m, dim) to (n, m).

    It falls as the distance grows, so that it ranks as the distance does; a point's with itself is -1/c.
    """
    return left @ right.T - torch.outer(time(left, curvature), time(right, curvature))


def distance(left: Tensor, right: Tensor, curvature: Curvature) -> Tensor:
    """Geodesic distance of all pairs, arcosh(-c <x, y>) / sqrt(c): (n, dim) and (m, dim) to (n, m).

    Below the precision of the product, distances are a small constant, without gradient.
    """
    above = (-curvature * inner(left, right, curvature) - 1).clamp(min=_smallest(left))
    return (above + (above * (above + 2)).sqrt()).log1p() / curvature**0.5


def half_aperture(points: Tensor, curvature: Curvature) -> Tensor:
    """Half the opening of the entailment cone at each point, arcsin(2K / (sqrt(c) |x|)): (..., dim) to (...)."""
    sine = 2 * CONE_RADIUS / (curvature**0.5 * _length(points)[..., 0])
    return sine.clamp(max=1 - _smallest(points)).asin()


def exterior_angle(apexes: Tensor, points: Tensor, curvature: Curvature) -> Tensor:
    """Angle between the way from the root through each apex, going on, and the way from there to its point.

    Two tensors (..., dim) to (...), in radians; 0 where the point lies straight behind the apex.
    """
    apex_time, point_time = time(apexes, curvature), time(points, curvature)
    product = curvature * ((apexes * points).sum(dim=-1) - apex_time * point_time)  # -1 where they are one point
    smallest = _smallest(apexes)
    across = _length(apexes)[..., 0] * (product.square() - 1).clamp(min=smallest).sqrt()
    cosine = (point_time + product * apex_time) / across
    return cosine.clamp(min=smallest - 1, max=1 - smallest).acos()


def centroid(points: Tensor, curvature: Curvature) -> Tensor:
    """The point of least mean squared Lorentz distance, |x - y|^2 = -2/c - 2<x, y>: (..., count, dim) to (..., dim).

    It is the sum of the points, time included, brought back into the space (Law et al., ICML 2019).
    """
    summed, times = points.sum(dim=-2), time(points, curvature).sum(dim=-1)
    norm = (times.square() - summed.square().sum(dim=-1)).sqrt()
    return summed / (curvature**0.5 * norm)[..., None]


def _length(vectors: Tensor) -> Tensor:
    """Euclidean lengths, (..., dim) to (..., 1), never 0, so that one may divide by them."""
    return vectors.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(vectors.dtype).tiny ** 0.5)


def _smallest(values: Tensor) -> float:
    """What is kept from the ends of domains where derivatives are infinite."""
    return 8 * torch.finfo(values.dtype).eps
