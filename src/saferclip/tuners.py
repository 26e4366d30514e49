"""What is trained in place of a model's weights: low-rank adapters, or binary masks over the weights.

Both are modules of functions with the same names; this one chooses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from saferclip import adapters, masks
from saferclip.config import TrainingSettings
from saferclip.models import Clip


class Kind(Protocol):
    """What the training loop asks of a model that is tuned in one way or another."""

    def weights(self, tuned: Any) -> dict[str, Tensor]:
        """The parameters that are trained, by name."""

    def set_training_mode(self, tuned: Any) -> None:
        """Switch on what belongs to training alone."""

    def save(self, tuned: Any, folder: Path) -> None:
        """Write what was trained: ``adapter_config.json`` and ``adapter_model.safetensors``."""

    def merge(self, tuned: Any) -> dict[str, Tensor]:
        """Fold it into the weights, in place: a state dict with the untuned model's names."""


def kind_of(settings: TrainingSettings) -> Kind:
    """The kind that a method asks for: LoRA unless it names a tuner."""
    return adapters if settings.method.tuner is None else masks


def attach(clip: Clip, settings: TrainingSettings) -> nn.Module:
    """Put what a method trains into ``clip.model``, in place, and freeze everything else.

    Raises ConfigError for settings that do not fit the model.
    """
    if settings.method.tuner is not None:
        return masks.attach(clip, settings.method.tuner)
    tuned: nn.Module = adapters.attach(clip, settings.optimisation.lora)
    return tuned
