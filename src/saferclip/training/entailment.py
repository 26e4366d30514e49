"""The two kinds of terms of HySAC (CVPR 2025): pure functions of points in hyperbolic space, shape (batch, dim)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from saferclip import hyperbolic


def lorentz_contrast(left: Tensor, right: Tensor, curvature: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of negative distances times ``logit_scale``, partners in the same row.

    Both sides are being tuned, unlike in Safe-CLIP's; the negatives are the other rows of a micro-batch.
    """
    logits = -logit_scale * hyperbolic.distance(left, right, curvature)
    labels = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


def entailment(general: Tensor, special: Tensor, curvature: Tensor, aperture_scale: float) -> Tensor:
    """How far points are outside of the cones of what should entail them, in radians.

    mean_i max(0, exterior angle of special_i at general_i - aperture_scale * half aperture at general_i).
    """
    angle = hyperbolic.exterior_angle(general, special, curvature)
    return (angle - aperture_scale * hyperbolic.half_aperture(general, curvature)).clamp(min=0).mean()
