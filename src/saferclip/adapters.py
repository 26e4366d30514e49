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
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import check_adapters_to_merge
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from saferclip import io, models, untrusted
from saferclip.config import ConfigError, LoraSettings
from saferclip.io import DataError
from saferclip.models import Clip

KEY = "optimisation.lora.target_modules"
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


class MultiheadAttention(lora.MultiheadAttention):
    """PEFT's layer for packed self-attention: the same weights under the same names, computed as LoRA defines.

    PEFT (0.21) adds the output projection's adapter twice (its pull request 3774).  It also merges
    into the frozen weights before each forward pass and takes the adapter out again afterwards, so
    that rounding moves the frozen weights a little in every step, and it leaves out dropout.  Here
    the low-rank path runs beside the frozen one, as in PEFT's layer for ``nn.Linear``.
    """

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within ``query`` of shape (batch, length, width), or (length, batch, width) if not batch-first."""
        base: Any = self.get_base_layer()
        if self.disable_adapters or self.merged:
            return base(query, key, value, need_weights=need_weights, attn_mask=attn_mask, **options)
        if key is not query or value is not query or need_weights or options:
            raise ConfigError(f"{KEY}: attention between two inputs, or with more than a mask, cannot be adapted")
        packed = functional.linear(query, base.in_proj_weight, base.in_proj_bias)
        for adapter in self.active_adapters:
            low = self.lora_A[adapter](self.lora_dropout[adapter](query))
            packed = packed + self.lora_B[adapter](low) * self.scaling[adapter]
        if not base.batch_first:
            packed = packed.transpose(0, 1)
        batch, length, _ = packed.shape
        heads = packed.reshape(batch, length, 3, base.num_heads, base.head_dim).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=attn_mask)
        mixed = mixed.transpose(1, 2).flatten(2)
        return base.out_proj(mixed if base.batch_first else mixed.transpose(0, 1)), None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the frozen weights, each once."""
        base: Any = self.get_base_layer()
        adapter_names = check_adapters_to_merge(self, adapter_names)
        for adapter in adapter_names:
            base.in_proj_weight.data += self.get_delta_weight(adapter)
            self.merged_adapters.append(adapter)
        base.out_proj.merge(safe_merge, adapter_names)

    def unmerge(self) -> None:
        """Take the merged adapters out of the weights again."""
        base: Any = self.get_base_layer()
        while self.merged_adapters:
            base.in_proj_weight.data -= self.get_delta_weight(self.merged_adapters.pop())
        base.out_proj.unmerge()


class Conv2d(lora.Conv2d):
    """PEFT's layer for convolutions, computed as one convolution with the sum of both weights.

    In a small network, whose layers are hardly wider than the rank, this saves a quarter of a step.
    Dropout acts on the low-rank path's input, so with dropout the paths are apart, as in PEFT.
    """

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Convolve ``x`` of shape (batch, channels, height, width)."""
        dropout = any(isinstance(self.lora_dropout[adapter], nn.Dropout) for adapter in self.active_adapters)
        if self.disable_adapters or self.merged or dropout:
            return super().forward(x, *args, **options)
        base: Any = self.get_base_layer()
        weight = base.weight + sum(self.get_delta_weight(adapter) for adapter in self.active_adapters)
        return base._conv_forward(x, weight, base.bias)


def attach(clip: Clip, settings: LoraSettings) -> PeftModel:
    """Put fresh adapters into ``clip.model``, in place; everything else is frozen.

    Raises ConfigError if the expression in the settings selects no module, one that cannot be
    adapted, one whose adapter would have no effect, or none in one of the encoders.
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
    _check_effect(tuned, clip)
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
    config._register_custom_module({nn.MultiheadAttention: MultiheadAttention, nn.Conv2d: Conv2d})
    return config


def _layers(tuned: nn.Module) -> list[Any]:
    return [module for module in tuned.modules() if isinstance(module, lora.LoraLayer)]


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
def _check_effect(tuned: PeftModel, clip: Clip) -> None:
    """Refuse adapters that no output depends on, and an encoder without any."""
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
        if not names:
            raise ConfigError(f"{KEY}: selects nothing in the {encoder} encoder; both encoders are tuned")


def _reached(features: Tensor, parameters: dict[str, Tensor]) -> set[str]:
    """Names of the parameters that the features depend on."""
    if not features.requires_grad:
        return set()
    gradients: Sequence[Tensor | None] = torch.autograd.grad(
        features.sum(), list(parameters.values()), allow_unused=True
    )
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
