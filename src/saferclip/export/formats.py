"""Write a model for open_clip, transformers and diffusers, with all that is needed to feed it; no network."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip

from saferclip import conversion, heads, io, models
from saferclip.conversion import ConversionError

FORMATS = ("open_clip", "transformers", "diffusers")
FOLDERS = {"open_clip": "open_clip", "transformers": "transformers", "diffusers": "diffusers_text_encoder"}
WEIGHTS = "model.safetensors"  # as transformers calls it
TEXT_ENCODER, TOKENIZER = "text_encoder", "tokenizer"  # as the parts of a pipeline are called
TEXT_PREFIX = "text_model."
# What open_clip and transformers call the ends of a caption.
SPECIAL_TOKENS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}


def obstacles(name: str, architecture: Mapping[str, Any]) -> list[str]:
    """Why a format cannot express a model; empty if it can."""
    model_cfg = architecture["model_cfg"]
    if name == "open_clip":
        return []
    found = []
    # Diffusion models read states from before the head; a CLIPModel would compare by cosine, silently.
    if name == "transformers" and heads.SECTION in architecture:
        found.append(f"{heads.SECTION}: embeddings in hyperbolic space, for which CLIPModel has no word")
    found += conversion.obstacles(model_cfg)
    vocabulary = model_cfg["text_cfg"].get("vocab_size", open_clip.SimpleTokenizer().vocab_size)
    if vocabulary != open_clip.SimpleTokenizer().vocab_size:
        found.append(f"text_cfg.vocab_size: {vocabulary} (not CLIP's own tokenizer)")
    if name == "transformers" and not found:
        try:
            _processor(architecture)
        except ConversionError as error:
            found.append(str(error))
    return found


def write(name: str, model: Path, folder: Path) -> None:
    """Write the model folder ``model`` to ``folder`` in one format; raises ConversionError if it cannot express it."""
    {"open_clip": _write_open_clip, "transformers": _write_transformers, "diffusers": _write_diffusers}[name](
        model, folder
    )


def _write_open_clip(model: Path, folder: Path) -> None:
    folder.mkdir()
    for name in (models.ARCHITECTURE, models.WEIGHTS):
        shutil.copyfile(model / name, folder / name)


def _write_transformers(model: Path, folder: Path) -> None:
    """``CLIPModel`` with ``CLIPProcessor``, in full precision: these libraries take the files' as the model's."""
    architecture = io.read_json(model / models.ARCHITECTURE)
    model_cfg = architecture["model_cfg"]
    folder.mkdir()
    state = conversion.to_transformers(io.read_tensors(model / models.WEIGHTS), model_cfg)
    io.write_tensors(folder / WEIGHTS, {name: tensor.float() for name, tensor in state.items()}, {"format": "pt"})
    io.write_json(folder / "config.json", conversion.transformers_config(model_cfg) | {"dtype": "float32"})
    io.write_json(folder / "preprocessor_config.json", _processor(architecture))
    _write_tokenizer(folder, model_cfg)


def _write_diffusers(model: Path, folder: Path) -> None:
    """The text encoder and the tokenizer, as folders of a diffusers pipeline."""
    model_cfg = io.read_json(model / models.ARCHITECTURE)["model_cfg"]
    state = conversion.to_transformers(io.read_tensors(model / models.WEIGHTS), model_cfg)
    text = {name: tensor.float() for name, tensor in state.items() if name.startswith(TEXT_PREFIX)}
    (folder / TEXT_ENCODER).mkdir(parents=True)
    io.write_tensors(folder / TEXT_ENCODER / WEIGHTS, text, {"format": "pt"})
    config = conversion.transformers_config(model_cfg)["text_config"]
    config |= {"architectures": ["CLIPTextModel"], "dtype": "float32"}
    io.write_json(folder / TEXT_ENCODER / "config.json", config)
    _write_tokenizer(folder / TOKENIZER, model_cfg)


def _processor(architecture: Mapping[str, Any]) -> dict[str, Any]:
    size = architecture["model_cfg"]["vision_cfg"].get("image_size", 224)
    return conversion.image_processor_config(architecture.get("preprocess_cfg", {}), size)


def _write_tokenizer(folder: Path, model_cfg: Mapping[str, Any]) -> None:
    """CLIP's tokenizer as transformers reads it, from open_clip's own copy of the vocabulary."""
    from transformers import CLIPTokenizer

    own = open_clip.SimpleTokenizer()
    vocabulary = {SPECIAL_TOKENS.get(token, token): number for token, number in own.encoder.items()}
    merges = sorted(own.bpe_ranks, key=own.bpe_ranks.__getitem__)
    length = model_cfg["text_cfg"].get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length).save_pretrained(folder)
    # The names by which older versions of transformers know the same things.
    io.write_json(folder / "vocab.json", vocabulary)
    text = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    (folder / "merges.txt").write_text(text + "\n", encoding="utf-8")
