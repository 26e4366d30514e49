"""Binary masks over weights, learnt in place of adapters (mask tuning of R-AMT, ICCV 2023, arXiv 2307.15049).

Each chosen weight W has a real score S of its shape; the model computes with M * W, where M is 1 where S is above a
threshold and 0 elsewhere.  Only S is trained: backwards, M passes its gradient on to S unchanged (straight through).
The functions are those of ``adapters``, so that one training loop serves both.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrize

from saferclip import io, models
from saferclip.config import ConfigError, MaskSettings
from saferclip.io import DataError
from saferclip.models import Clip

KEY = "tuner.target_modules"
FILES = ("adapter_config.json", "adapter_model.safetensors")
KIND = {"tuner": "mask"}  # what the settings of saved masks begin with


class Binary(torch.autograd.Function):
    """1 where scores are above the threshold, else 0; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, threshold: float) -> Tensor:  # noqa: ARG004
        """Of the scores' shape and type."""
        return (scores > threshold).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        """To the scores, straight through."""
        return gradients[0], None


class Mask(nn.Module):
    """What stands for a frozen weight: itself where its score is above the threshold, 0 elsewhere."""

    def __init__(self, weight: Tensor, settings: MaskSettings) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.full_like(weight, settings.initial, dtype=torch.float32))
        self.threshold = settings.threshold

    def forward(self, weight: Tensor) -> Tensor:
        """Of the weight's shape."""
        mask: Tensor = Binary.apply(self.scores, self.threshold)
        return mask * weight


def attach(clip: Clip, settings: MaskSettings) -> nn.Module:
    """Put masks of ones on weights of ``clip.model``, in place; everything else is frozen.

    Raises ConfigError if the expression in the settings selects no module, one without a weight matrix, or none in
    one of the encoders.
    """
    names = _weights_of(clip.model, settings.target_modules)
    clip.model.requires_grad_(False)
    for name in names:
        module, weight = _place(clip.model, name)
        parametrize.register_parametrization(module, weight, Mask(getattr(module, weight), settings))
    _check_encoders(clip)
    return clip.model


def load(clip: Clip, folder: Path) -> nn.Module:
    """Multiply the weights of ``clip.model`` by saved masks, in place.

    Raises DataError for a folder without them, and for masks of another model.
    """
    found = io.read_json(folder / FILES[0])
    if not isinstance(found, dict) or found.get("tuner") != KIND["tuner"]:
        raise DataError(f"{folder / FILES[0]}: not the settings of masks; adapters are loaded by another function")
    state = dict(clip.model.named_parameters())
    for name, packed in io.read_tensors(folder / FILES[1]).items():
        weight = state.get(name)
        if weight is None or packed.dtype != torch.uint8 or packed.numel() != (weight.numel() + 7) // 8:
            raise DataError(f"{folder / FILES[1]}: {name!r} is no mask of a weight of this model")
        bits = np.unpackbits(packed.numpy(), count=weight.numel())
        with torch.no_grad():
            weight.mul_(torch.from_numpy(bits).view(weight.shape).to(weight))
    return clip.model


def set_training_mode(tuned: nn.Module) -> None:
    """Nothing but masks differs in training: normalisation statistics and dropout stay as they are in use."""
    tuned.eval()


def weights(tuned: nn.Module) -> dict[str, Tensor]:
    """The scores by name, the only parameters that are trained."""
    return {name: parameter for name, parameter in tuned.named_parameters() if parameter.requires_grad}


def save(tuned: nn.Module, folder: Path) -> None:
    """Write ``adapter_config.json``, which says that these are masks, and ``adapter_model.safetensors``.

    Tensors are the masks' bits in the weights' order, eight a byte (numpy.packbits), by the weights' names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    masks = {name: mask.scores > mask.threshold for name, mask in _masks(tuned).items()}
    kept = sum(int(mask.sum()) for mask in masks.values())
    total = sum(mask.numel() for mask in masks.values())
    io.write_json(folder / FILES[0], {**KIND, "masked_weights": total, "kept_weights": kept})
    io.write_tensors(folder / FILES[1], {name: _packed(mask) for name, mask in masks.items()})


def merge(tuned: nn.Module) -> dict[str, Tensor]:
    """Multiply the weights by their masks, in place: a state dict with the untuned model's names."""
    for name in _masks(tuned):
        module, weight = _place(tuned, name)
        parametrize.remove_parametrizations(module, weight, leave_parametrized=True)
    return tuned.state_dict()


def _packed(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def _masks(tuned: nn.Module) -> dict[str, Mask]:
    """Masks by the names of their weights."""
    found = {}
    for name, module in tuned.named_modules():
        if isinstance(module, Mask):
            owner, _, rest = name.rpartition(".parametrizations.")
            found[f"{owner}.{rest.partition('.')[0]}"] = module
    return found


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, weight = name.rpartition(".")
    return model.get_submodule(owner), weight


def _weights_of(model: nn.Module, expression: str) -> list[str]:
    """Names of the weights of the modules that an expression matches in full."""
    try:
        selected = [name for name, _ in model.named_modules() if re.fullmatch(expression, name)]
    except re.error as error:
        raise ConfigError(f"{KEY}: not a regular expression: {error}") from error
    if not selected:
        names = ", ".join(sorted({re.sub(r"\d+", "N", name) for name, _ in model.named_modules() if name}))
        raise ConfigError(f"{KEY}: {expression!r} selects no module; there are (N is a number): {names}")
    found: dict[str, None] = {}
    for name in selected:
        module = model.get_submodule(name)
        if isinstance(module, nn.MultiheadAttention):
            found |= dict.fromkeys((f"{name}.in_proj_weight", f"{name}.out_proj.weight"))
        elif isinstance(module, nn.Linear | nn.Conv2d):
            found[f"{name}.weight"] = None
        else:
            kind = type(module).__name__
            raise ConfigError(
                f"{KEY}: selects {name} ({kind}), no linear layer, convolution or attention; leave it out"
            )
    return list(found)


@torch.enable_grad()
def _check_encoders(clip: Clip) -> None:
    """Refuse masks that leave one of the encoders as it is."""
    device = next(clip.model.parameters()).device
    image = clip.preprocess(Image.new("RGB", (8, 8))).unsqueeze(0).to(device)
    outputs = {
        "image": models.image_features(clip.model, image),
        "text": models.text_features(clip.model, clip.tokenize(["a"]).to(device)),
    }
    for encoder, features in outputs.items():
        if not features.requires_grad:
            raise ConfigError(f"{KEY}: selects nothing in the {encoder} encoder; both encoders are tuned")
