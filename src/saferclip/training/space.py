"""What a method learns besides the encoders where embeddings lie in hyperbolic space: four numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saferclip import hyperbolic
from saferclip.config import HyperbolicSettings
from saferclip.heads import Head, Modality
from saferclip.training.inputs import Images
from saferclip.training.losses import Embeddings, Space

PREFIX = "space."  # of the weights' names, which no module of a model has
# As in the code of HySAC, and of MERU: the curvature keeps within a tenth and ten times of what it is at first, scales
# do not enlarge, and the factor of distances in contrastive terms starts at the lowest that is allowed.
CURVATURE_RANGE = 10.0
LOGIT_SCALES = (1 / 0.07, 100.0)


class LearntSpace:
    """Curvature, a scale for each modality and the factor of distances, as logarithms that are trained.

    An encoder's output is multiplied by its scale, at first 1 / sqrt(dim), and mapped into the space at the root.
    """

    def __init__(self, settings: HyperbolicSettings, dim: int, device: torch.device) -> None:
        self.settings = settings
        started = {
            "curvature": settings.curvature,
            "text_scale": dim**-0.5,
            "image_scale": dim**-0.5,
            "logit_scale": LOGIT_SCALES[0],
        }
        self._logarithms = {
            name: torch.tensor(math.log(value), device=device, requires_grad=True) for name, value in started.items()
        }
        first = settings.curvature
        self._ranges = {
            "curvature": (first / CURVATURE_RANGE, first * CURVATURE_RANGE),
            "text_scale": (0.0, 1.0),
            "image_scale": (0.0, 1.0),
            "logit_scale": LOGIT_SCALES,
        }

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters by name; they are trained, saved and restored with the adapters'."""
        return {f"{PREFIX}{name}": logarithm for name, logarithm in self._logarithms.items()}

    def values(self) -> dict[str, float]:
        """The four numbers as they are now."""
        return {name: logarithm.exp().item() for name, logarithm in self._logarithms.items()}

    def lift(self, features: Tensor, modality: Modality) -> Tensor:
        """An encoder's outputs, not normalised, as points: (rows, dim) to (rows, dim)."""
        scale, curvature = self._logarithms[f"{modality}_scale"].exp(), self._logarithms["curvature"].exp()
        return hyperbolic.exponential(scale * features, curvature, self.settings.largest)

    def for_losses(self, processes: int) -> Space:
        """What losses need to know, as one of several processes that compute the loss of the same rows.

        Their gradients are added up, so each carries its part of that of numbers which all of them see.
        """
        curvature, logit_scale = (
            _with_part_of_gradient(self._logarithms[name].exp(), processes) for name in ("curvature", "logit_scale")
        )
        return Space(curvature, logit_scale, self.settings.aperture_scale)

    @torch.no_grad()
    def keep_in_range(self) -> None:
        """After a step: no number beyond its range."""
        for name, (low, high) in self._ranges.items():
            self._logarithms[name].clamp_(min=math.log(low) if low else None, max=math.log(high))

    @torch.no_grad()
    def head(self, embedded: Embeddings, images: Images) -> Head:
        """What makes a model folder embed as training does; ``embedded`` and ``images`` are those of a held-out split.

        Its limits are the distances from the root that the share ``safe_share`` of safe inputs does not exceed.
        Without safe images, the captions' stands for both.
        """
        values = {name: value for name, value in self.values().items() if name in Head.model_fields}
        head = Head(**values, largest=self.settings.largest)
        share = self.settings.safe_share
        if share is None:
            return head
        columns = (embedded.safe_text, embedded.safe_image[images.safe])
        texts, pictures = (hyperbolic.radius(column.double(), head.curvature) for column in columns)
        text_limit, image_limit = (
            torch.quantile(found if len(found) else texts, share).item() for found in (texts, pictures)
        )
        return head.model_copy(update={"text_limit": text_limit, "image_limit": image_limit})


def _with_part_of_gradient(value: Tensor, parts: int) -> Tensor:
    return value.detach() + (value - value.detach()) / parts
