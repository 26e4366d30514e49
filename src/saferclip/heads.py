"""What stands between an encoder and a search where embeddings are not compared by their cosine.

A model folder whose ``open_clip_config.json`` has the section ``lorentz_head`` embeds into hyperbolic space (HySAC).
Everything that searches here compares unit vectors by their inner product.  The Lorentz inner product, which ranks as
the distance does, is such a product: with the bound B on the length of (x, x_t),

    image  ->  (x,  x_t, a, 0) / B        caption  ->  (y, -y_t, 0, b) / B

where a and b make the length 1.  The inner product of an image and a caption is then <x, y> / B^2, and B is one
constant: all ranks across the modalities are those of the distance.  Within one modality such products mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from saferclip import hyperbolic
from saferclip.io import DataError

SECTION = "lorentz_head"  # beside open_clip's own sections, which open_clip does not look at
FARTHEST = 8.0  # cosh of it is 1,500: beyond, unit vectors in float32 could not tell near points apart
# Why a number is missing from an evaluation.
ACROSS_ONLY = "the model embeds into hyperbolic space, where captions and images are compared with each other only"

Modality = Literal["text", "image"]


class Head(BaseModel):
    """How encoders' outputs, not normalised, become points, and these unit vectors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    curvature: float = Field(gt=0)
    text_scale: float = Field(gt=0, description="factor of the text encoder's output, before the exponential map")
    image_scale: float = Field(gt=0)
    largest: float = Field(gt=0, le=FARTHEST, description="points are at most this / sqrt(curvature) from the root")
    text_limit: float | None = Field(
        default=None, ge=0, description="distance from the root to which captions are moved that search; None: any"
    )
    image_limit: float | None = Field(default=None, ge=0)

    @property
    def bound(self) -> float:
        """The largest length that (x, x_t) can have, B."""
        farthest = torch.tensor(2 * self.largest, dtype=torch.float64)
        return float((farthest.cosh() / self.curvature).sqrt())

    def embed(self, features: Tensor, modality: Modality) -> Tensor:
        """Outputs of an encoder (rows, dim) to unit vectors (rows, dim + 3), in fp32."""
        scale = self.text_scale if modality == "text" else self.image_scale
        return self.unit(hyperbolic.exponential(features.double() * scale, self.curvature, self.largest), modality)

    def unit(self, points: Tensor, modality: Modality) -> Tensor:
        """Points (rows, dim) to unit vectors (rows, dim + 3), in fp32."""
        points = points.double()
        times = hyperbolic.time(points, self.curvature)[:, None]
        shared = torch.cat([points, times if modality == "image" else -times], dim=1) / self.bound
        # Points of the very border may be longer by a rounding.
        rest = (1 - shared.square().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
        none = torch.zeros_like(rest)
        own = [rest, none] if modality == "image" else [none, rest]
        return torch.cat([shared, *own], dim=1).float()

    def points(self, embeddings: Tensor) -> Tensor:
        """The way back from unit vectors, of either modality: (..., dim + 3) to float64 (..., dim)."""
        return embeddings[..., :-3].double() * self.bound

    def as_queries(self, embeddings: Tensor) -> Tensor:
        """Safe traversal: unit vectors (rows, dim + 3), of which those too far out move toward the root.

        A query that lies farther from the root than the limit of its modality moves along its geodesic to it; others,
        and rows of zeros, stay as they are, bit by bit.
        """
        result = embeddings.clone()
        limits: dict[Modality, float | None] = {"text": self.text_limit, "image": self.image_limit}
        for modality, limit in limits.items():
            if limit is None:
                continue
            sign = embeddings[:, -3] < 0 if modality == "text" else embeddings[:, -3] > 0
            points = self.points(embeddings)
            far = sign & (hyperbolic.radius(points, self.curvature) > limit)
            if far.any():
                tangents = hyperbolic.logarithm(points[far], self.curvature)
                moved = hyperbolic.exponential(tangents, self.curvature, limit * self.curvature**0.5)
                result[far] = self.unit(moved, modality)
        return result

    def ensemble(self, prompts: Tensor) -> Tensor:
        """Class embeddings from those of prompts: unit vectors (classes, templates, dim + 3) to (classes, dim + 3).

        The Lorentz centroid, as the mean of the prompts' points is none of the space.
        """
        return self.unit(hyperbolic.centroid(self.points(prompts), self.curvature), "text")


def read(path: object, architecture: Mapping[str, Any]) -> Head | None:
    """The head that a model's configuration, of the file ``path``, tells of; None for a plain CLIP.

    Raises DataError for one that is not in order.
    """
    if SECTION not in architecture:
        return None
    try:
        return Head.model_validate(architecture[SECTION])
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, (SECTION, *problem['loc'])))}: {problem['msg']}" for problem in error.errors()
        )
        raise DataError(f"{path}: {problems}") from error
