"""CLIP between the two libraries that people load it with: open_clip and transformers, both ways.

The networks are the same, so converting renames weights, splits or joins the three attention
projections and transposes the two output projections; no number changes.  What transformers'
``CLIPModel`` has no word for, such as a ResNet, is refused with the settings that are in the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg
from torch import Tensor

from saferclip.config import ConfigError

ACTIVATIONS = {False: "gelu", True: "quick_gelu"}  # by open_clip's `quick_gelu`
INTERPOLATIONS = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # PIL's numbers, which transformers writes
LAYER_NORM_EPSILON = 1e-5

# What transformers can say too, or what only matters in training; of anything else, the default must hold.
EXPRESSED = {"quick_gelu", "embed_dim", "vision_cfg", "text_cfg", "init_logit_scale", "nonscalar_logit_scale"}
EXPRESSED_VISION = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout"}
EXPRESSED_TEXT = {"layers", "width", "heads", "mlp_ratio", "context_length", "vocab_size"}
BLOCKS = (None, "default", "custom")  # open_clip's two kinds of block are one network, as long as nothing is added

TOWERS = {
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
}
LAYER_NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",  # spelt so in transformers
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
EMBEDDINGS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
}
PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
BLOCK_LAYERS = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# Not weights: older versions of transformers stored the numbers 0, 1, 2 ... beside them.
COUNTERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")


class ConversionError(ConfigError):
    """A model that the other library cannot express; the message names what is in the way."""


class Pair(NamedTuple):
    """A weight's name in open_clip, and its name, or those of its three parts, in transformers."""

    open_clip: str
    transformers: tuple[str, ...]
    transposed: bool = False


def is_transformers(state: Mapping[str, Any]) -> bool:
    """Whether weights have the names that transformers' ``CLIPModel`` gives them."""
    return EMBEDDINGS["token_embedding.weight"] in state


def to_transformers(state: Mapping[str, Tensor], model_cfg: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of an open_clip model under the names of ``CLIPModel``.

    Raises ConversionError if the architecture cannot be expressed, or the weights are not its own.
    """
    refuse(model_cfg)
    pairs = list(_pairs(model_cfg["vision_cfg"]["layers"], CLIPTextCfg(**model_cfg["text_cfg"]).layers))
    _check_names(state, [pair.open_clip for pair in pairs])
    converted: dict[str, Tensor] = {}
    for pair in pairs:
        tensor = state[pair.open_clip].T if pair.transposed else state[pair.open_clip]
        parts = tensor.chunk(3) if len(pair.transformers) == 3 else [tensor]
        converted.update(zip(pair.transformers, (part.contiguous() for part in parts), strict=True))
    converted["logit_scale"] = converted["logit_scale"].reshape(())
    return converted


def to_open_clip(state: Mapping[str, Tensor], model_cfg: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a ``CLIPModel`` under the names of the open_clip model that ``model_cfg`` describes.

    Raises ConversionError if the architecture cannot be expressed, or the weights are not its own.
    """
    refuse(model_cfg)
    pairs = list(_pairs(model_cfg["vision_cfg"]["layers"], CLIPTextCfg(**model_cfg["text_cfg"]).layers))
    weights = {name: tensor for name, tensor in state.items() if name not in COUNTERS}
    _check_names(weights, [name for pair in pairs for name in pair.transformers])
    converted: dict[str, Tensor] = {}
    for pair in pairs:
        tensor = torch.cat([weights[name] for name in pair.transformers]) if len(pair.transformers) > 1 else None
        tensor = weights[pair.transformers[0]] if tensor is None else tensor
        converted[pair.open_clip] = (tensor.T if pair.transposed else tensor).contiguous()
    return converted


def transformers_config(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``config.json`` for an open_clip architecture; raises ConversionError."""
    refuse(model_cfg)
    vision, text = CLIPVisionCfg(**model_cfg["vision_cfg"]), CLIPTextCfg(**model_cfg["text_cfg"])
    activation = ACTIVATIONS[bool(model_cfg.get("quick_gelu", False))]
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model_cfg["embed_dim"],
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_size": text.width,
            "intermediate_size": int(text.width * text.mlp_ratio),
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "projection_dim": model_cfg["embed_dim"],
            "hidden_act": activation,
            "layer_norm_eps": _epsilon(text.norm_kwargs),
            # The last two tokens of the vocabulary: open_clip reads the feature at the highest one.
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.vocab_size - 1,
            "pad_token_id": text.vocab_size - 1,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.width // vision.head_width,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "projection_dim": model_cfg["embed_dim"],
            "hidden_act": activation,
            "layer_norm_eps": _epsilon(vision.norm_kwargs),
        },
    }


def open_clip_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model_cfg`` of open_clip for the content of a ``config.json``; raises ConversionError."""
    from transformers import CLIPConfig

    if config.get("model_type") != "clip":
        raise ConversionError(f"config.json: model_type is '{config.get('model_type')}', not 'clip'")
    full: Any = CLIPConfig.from_dict(dict(config))  # fills in what the file leaves to the library's defaults
    vision, text = full.vision_config, full.text_config
    _check_config(vision, text)
    model_cfg: dict[str, Any] = {
        "embed_dim": full.projection_dim,
        "quick_gelu": text.hidden_act == ACTIVATIONS[True],
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
            "layers": vision.num_hidden_layers,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": _ratio(vision.intermediate_size, vision.hidden_size),
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": _ratio(text.intermediate_size, text.hidden_size),
        },
    }
    for section, part in (("vision_cfg", vision), ("text_cfg", text)):
        if part.layer_norm_eps != LAYER_NORM_EPSILON:
            model_cfg[section]["norm_kwargs"] = {"eps": part.layer_norm_eps}
    return model_cfg


def image_processor_config(preprocess_cfg: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """The content of ``preprocessor_config.json`` for open_clip's ``preprocess_cfg``; raises ConversionError."""
    full = {**asdict(PreprocessCfg()), **preprocess_cfg}
    mode, interpolation = full["resize_mode"], full["interpolation"]
    if mode not in ("shortest", "squash") or interpolation not in INTERPOLATIONS:
        raise ConversionError(
            f"preprocess_cfg: resize_mode '{mode}' with interpolation '{interpolation}' has no counterpart in "
            "transformers' CLIPImageProcessor"
        )
    square = {"height": image_size, "width": image_size}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": image_size} if mode == "shortest" else square,
        "resample": INTERPOLATIONS[interpolation],
        "do_center_crop": mode == "shortest",
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(full["mean"]),
        "image_std": list(full["std"]),
    }


def preprocess_config(processor: Mapping[str, Any]) -> dict[str, Any]:
    """The ``preprocess_cfg`` of open_clip for the content of a ``preprocessor_config.json``; raises ConversionError."""
    numbers = {number: name for name, number in INTERPOLATIONS.items()}
    size, resample = (
        processor.get("size", {"shortest_edge": None}),
        processor.get("resample", INTERPOLATIONS["bicubic"]),
    )
    shortest = not isinstance(size, Mapping) or "shortest_edge" in size
    if resample not in numbers or shortest != processor.get("do_center_crop", True):
        raise ConversionError(
            f"preprocessor_config.json: size {size}, do_center_crop {processor.get('do_center_crop')} and resample "
            f"{resample} have no counterpart in open_clip's preprocess_cfg"
        )
    defaults = asdict(PreprocessCfg())
    return {
        "mean": list(processor.get("image_mean") or defaults["mean"]),
        "std": list(processor.get("image_std") or defaults["std"]),
        "interpolation": numbers[resample],
        "resize_mode": "shortest" if shortest else "squash",
    }


def refuse(model_cfg: Mapping[str, Any]) -> None:
    """Raise ConversionError naming all that ``CLIPModel`` cannot express in an open_clip architecture."""
    found = obstacles(model_cfg)
    if found:
        raise ConversionError(f"transformers' CLIPModel cannot express this architecture: {'; '.join(found)}")


def obstacles(model_cfg: Mapping[str, Any]) -> list[str]:
    """What transformers' ``CLIPModel`` has no word for; empty if it can express the architecture."""
    found = [
        f"{key}: {value}" for key, value in model_cfg.items() if key not in EXPRESSED and value not in (None, False)
    ]
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    if vision.get("timm_model_name"):
        return [*found, f"vision_cfg.timm_model_name: {vision['timm_model_name']} (an image encoder of timm)"]
    if text.get("hf_model_name"):
        return [*found, f"text_cfg.hf_model_name: {text['hf_model_name']} (another text encoder)"]
    if not isinstance(vision.get("layers", 12), int):
        return [*found, f"vision_cfg.layers: {list(vision['layers'])} (a ModifiedResNet)"]
    for name in ("image_size", "patch_size"):
        if not isinstance(vision.get(name, 0), int):
            found.append(f"vision_cfg.{name}: {vision[name]} (not square)")
    found += _unusual("vision_cfg", vision, CLIPVisionCfg, EXPRESSED_VISION)
    return [*found, *_unusual("text_cfg", text, CLIPTextCfg, EXPRESSED_TEXT)]


def _unusual(section: str, values: Mapping[str, Any], kind: Any, expressed: set[str]) -> Iterator[str]:
    """Settings of a tower that differ from open_clip's defaults in what transformers cannot say."""
    defaults = {field.name: field.default for field in fields(kind)}
    for name, value in values.items():
        usual = value == defaults.get(name) or name in expressed
        usual = usual or (name == "block_type" and value in BLOCKS)
        usual = usual or (name == "norm_kwargs" and set(value or {}) <= {"eps"})
        if not usual:
            yield f"{section}.{name}: {value}"


def _pairs(vision_layers: int, text_layers: int) -> Iterator[Pair]:
    """All weights of a CLIP with a vision transformer."""
    yield Pair("logit_scale", ("logit_scale",))
    for ours, theirs in EMBEDDINGS.items():
        yield Pair(ours, (theirs,))
    for ours, theirs in PROJECTIONS.items():
        yield Pair(ours, (theirs,), transposed=True)
    for ours, theirs in LAYER_NORMS.items():
        yield from (Pair(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias"))
    for (ours, theirs), count in zip(TOWERS.items(), (vision_layers, text_layers), strict=True):
        for layer in range(count):
            yield from _block(f"{ours}.{layer}", f"{theirs}.{layer}")


def _block(ours: str, theirs: str) -> Iterator[Pair]:
    """The weights of one residual block."""
    for kind in ("weight", "bias"):
        yield Pair(f"{ours}.attn.in_proj_{kind}", tuple(f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv"))
        for our_layer, their_layer in BLOCK_LAYERS.items():
            yield Pair(f"{ours}.{our_layer}.{kind}", (f"{theirs}.{their_layer}.{kind}",))


def _check_names(state: Mapping[str, Any], expected: list[str]) -> None:
    """Refuse weights that are not exactly those of the architecture."""
    missing, extra = sorted(set(expected) - state.keys()), sorted(state.keys() - set(expected))
    problems = [
        f"{len(names)} {what}, such as {names[0]}" for what, names in (("missing", missing), ("extra", extra)) if names
    ]
    if problems:
        raise ConversionError(f"the weights are not those of the architecture: {'; '.join(problems)}")


def _check_config(vision: Any, text: Any) -> None:
    """Refuse what transformers can express and open_clip cannot."""
    problems = []
    if vision.hidden_act != text.hidden_act or text.hidden_act not in ACTIVATIONS.values():
        problems.append(f"hidden_act is '{text.hidden_act}' for text and '{vision.hidden_act}' for images")
    # 2 is what transformers wrote before it was right; it still means "the highest token" there.
    if text.eos_token_id not in (2, text.vocab_size - 1):
        problems.append(f"eos_token_id {text.eos_token_id} is not the last of the vocabulary")
    if not isinstance(vision.image_size, int) or not isinstance(vision.patch_size, int) or vision.num_channels != 3:
        problems.append("images are not square, or not of three channels")
    if problems:
        raise ConversionError(f"config.json: open_clip cannot express this: {'; '.join(problems)}")


def _epsilon(norm_kwargs: Mapping[str, float] | None) -> float:
    return (norm_kwargs or {}).get("eps", LAYER_NORM_EPSILON)


def _ratio(inner: int, width: int) -> float:
    """The ``mlp_ratio`` from which open_clip, which rounds down, computes the inner width."""
    ratio = inner / width
    return ratio if int(width * ratio) == inner else (inner + 0.5) / width
