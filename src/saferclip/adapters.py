"""Low-rank adapters (LoRA, Hu et al. 2021) on both encoders of an open_clip model, through PEFT.

Adapters are saved in PEFT's own format; ``load`` puts them on the model that they were trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import Tensor, nn

from saferclip import io, models, untrusted
from saferclip.config import ConfigError, LoraSettings
from saferclip.io import DataError
from saferclip.lora import KEY, Conv2d, Linear, MultiheadAttention
from saferclip.models import Clip

ENCODERS = ("text", "image")
FILES = ("adapter_config.json", "adapter_model.safetensors")
# What differs between adapters that ``save`` writes; no part of ``auto_mapping`` is imported here.
OWN = frozenset(
    {
        *(
            "auto_mapping",
            "base_model_name_or_path",
            "inference_mode",
            "lora_alpha",
            "lora_dropout",
            "peft_type",
            "peft_version",
            "r",
        ),
        *("revision", "target_modules", "task_type"),
    }
)


def attach(clip: Clip, settings: LoraSettings) -> PeftModel:
    """Put fresh adapters into ``clip.model``, in place; everything else is frozen.

    Raises ConfigError if the expression in the settings selects no module, one that cannot be
    adapted, one whose adapter would have no effect, or none in an encoder that is to be tuned, or some in another.
    """
    _check_names(clip.model, settings.target_modules)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
    )
    try:
        tuned = get_peft_model(clip.model, _with_own_layers(config))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{KEY}: selects a module that cannot be adapted: {error}") from error
    for layer in _layers(tuned):
        # Adapters compute in autocast's precision, not in their own.
        layer.cast_input_dtype_enabled = False
    _check_effect(tuned, clip, settings.encoders or ENCODERS)
    return tuned.to(memory_format=torch.channels_last)


def load(clip: Clip, folder: Path) -> PeftModel:
    """Put saved adapters into ``clip.model``, in place.

    Raises DataError for a folder without them, for weights as a pickle, and for adapters of another model.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise DataError(f"{folder}: not an adapter in safetensors: {name} is missing")
    _check_saved(folder)
    try:
        config = _with_own_layers(PeftConfig.from_pretrained(str(folder)))
        return PeftModel.from_pretrained(clip.model, str(folder), config=config)
    # PEFT answers what does not go together with many kinds.
    except Exception as error:
        reason = f"{str(error)[:500]} ({type(error).__name__})"
        raise DataError(f"{folder}: cannot be put into the model: {reason}") from error


def _check_saved(folder: Path) -> None:
    """Refuse settings that ``save`` never writes: some make PEFT import modules or repeat layers."""
    path = folder / FILES[0]
    found = io.read_json(path)
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        raise DataError(f"{path}: not the settings of LoRA adapters, as PEFT writes them")
    usual = json.loads(json.dumps(LoraConfig().to_dict(), default=str))  # type: ignore[no-untyped-call]
    others = sorted(key for key, value in found.items() if key not in OWN and value != usual.get(key))
    if others:
        raise DataError(f"{path}: {', '.join(others)}: not used here; take adapters of plain LoRA, or merge them first")
    rank, widest = found.get("r"), untrusted.widest(folder / FILES[1])
    if not isinstance(rank, int) or not 0 < rank <= widest:
        raise DataError(f"{path}: r is {str(rank)[:30]}, but no side of the weights is longer than {widest}")


def set_training_mode(tuned: PeftModel) -> None:
    """Dropout of the adapters only: normalisation statistics and the frozen model's dropout stay off."""
    tuned.eval()
    for layer in _layers(tuned):
        layer.lora_dropout.train()


def weights(tuned: PeftModel) -> dict[str, Tensor]:
    """The adapters' parameters by name, the only ones that are trained."""
    return {name: parameter for name, parameter in tuned.named_parameters() if parameter.requires_grad}


def save(tuned: PeftModel, folder: Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``."""
    tuned.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()  # PEFT's model card, a form to fill in


def merge(tuned: PeftModel) -> dict[str, Tensor]:
    """Fold the adapters into the weights, in place: a state dict with the untuned model's names."""
    state: dict[str, Tensor] = tuned.merge_and_unload(safe_merge=True).state_dict()
    return state


def _with_own_layers(config: Any) -> Any:
    config._register_custom_module({nn.Linear: Linear, nn.MultiheadAttention: MultiheadAttention, nn.Conv2d: Conv2d})
    return config


def _layers(tuned: nn.Module) -> list[Any]:
    return [module for module in tuned.modules() if isinstance(module, LoraLayer)]


def _check_names(model: nn.Module, expression: str) -> None:
    """Refuse an expression that selects nothing, or a module inside another."""
    try:
        selected = [name for name, _ in model.named_modules() if re.fullmatch(expression, name)]
    except re.error as error:
        raise ConfigError(f"{KEY}: not a regular expression: {error}") from error
    if not selected:
        names = ", ".join(sorted({re.sub(r"\d+", "N", name) for name, _ in model.named_modules() if name}))
        raise ConfigError(f"{KEY}: {expression!r} selects no module; there are (N is a number): {names}")
    for name in selected:
        outer = next((other for other in selected if name.startswith(f"{other}.")), None)
        if outer is not None:
            raise ConfigError(f"{KEY}: selects {name} and also {outer}, which holds it; select one of them")
        if getattr(model.get_submodule(name), "groups", 1) > 1:
            raise ConfigError(f"{KEY}: selects {name}, a grouped convolution, which cannot be merged; leave it out")


@torch.enable_grad()
def _check_effect(tuned: PeftModel, clip: Clip, encoders: Sequence[str]) -> None:
    """Refuse adapters that no output depends on, an encoder of ``encoders`` without any, and another with some."""
    model = tuned.get_base_model()
    device = next(model.parameters()).device
    image = clip.preprocess(Image.new("RGB", (8, 8))).unsqueeze(0).to(device)
    parameters = weights(tuned)
    reached = {
        "image": _reached(models.image_features(model, image), parameters),
        "text": _reached(models.text_features(model, clip.tokenize(["a"]).to(device)), parameters),
    }
    idle = {name.partition(".lora_")[0] for name in parameters.keys() - reached["image"] - reached["text"]}
    if idle:
        modules = ", ".join(sorted(name.removeprefix("base_model.model.") for name in idle))
        reason = "the model reads their weights without calling them, so adapters would have no effect"
        raise ConfigError(f"{KEY}: leave out {modules}: {reason}")
    for encoder, names in reached.items():
        if bool(names) != (encoder in encoders):
            selects = "some of the" if names else "nothing in the"
            remedy = f"optimisation.lora.encoders names {' and '.join(encoders)}"
            raise ConfigError(f"{KEY}: selects {selects} {encoder} encoder; {remedy}")


def _reached(features: Tensor, parameters: dict[str, Tensor]) -> set[str]:
    """Names of the parameters that the features depend on."""
    if not features.requires_grad:
        return set()
    gradients: Sequence[Tensor | None] = torch.autograd.grad(
        features.sum(), list(parameters.values()), allow_unused=True
    )
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
