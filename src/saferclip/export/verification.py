"""Load every export through its own library, and compare what it computes with the trained model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from open_clip.utils import to_2tuple
from PIL import Image
from torch import Tensor
from torch.nn import functional

from saferclip import io, models
from saferclip.export import formats

TOLERANCE = 1e-5  # of the numbers of unit vectors, in fp32
IMAGES = 3
BATCH_SIZE = 4

# Short ones, an empty one, ones of other alphabets, and one that is longer than any context.
CAPTIONS = (
    "a vase of white flowers on a table",
    "A RED bus; two dogs, and a clock's face!",
    "",
    "un café à Zürich, naïve",
    "一只猫 и собака 🎻",
    "a photo of a quiet street with many small shops and people, " * 12,
)


class ExportError(io.DataError):
    """An exported model does not compute what the trained one does."""


Size = tuple[int, int]  # height and width


class Reference(NamedTuple):
    """What the trained model computes for the fixed inputs."""

    text: Tensor  # unit vectors, (captions, dim)
    image: Tensor  # unit vectors, (images, dim)
    resized: Tensor  # as ``image``, for a picture that has to be made smaller, (1, dim)
    hidden: Tensor | None  # unit vectors of all positions, (captions, context, width), by the exported tokenizer
    tokens: list[list[int]]  # of each caption, with its ends, without padding
    size: Size  # of the pictures, in pixels


def reference(model: Path, tokenizer: Path | None) -> Reference:
    """Run the trained model; ``tokenizer`` is the exported one, where there is one."""
    clip = models.load(model)
    tokens = clip.tokenize(CAPTIONS)
    model_itself: Any = clip.model
    size: Size = to_2tuple(model_itself.visual.image_size)
    return Reference(
        text=models.encode_texts(clip, CAPTIONS, BATCH_SIZE),
        image=models.encode_images(clip, pictures(size), BATCH_SIZE),
        resized=models.encode_images(clip, [large_picture(size)], BATCH_SIZE),
        hidden=None if tokenizer is None else hidden_states(clip, _tokens(tokenizer)),
        tokens=[row[: int(row.argmax()) + 1].tolist() for row in tokens],
        size=size,
    )


def pictures(size: Size) -> list[Image.Image]:
    """Coloured noise of the model's own size, so that nothing is resized."""
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(IMAGES)]


def large_picture(size: Size) -> Image.Image:
    """A smooth picture of another size and shape than the model's."""
    height, width = size
    corners = np.random.default_rng(1).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((2 * width + 31, 2 * height), Image.Resampling.BICUBIC)


@torch.inference_mode()
def hidden_states(clip: models.Clip, tokens: Tensor) -> Tensor:
    """What a diffusion model reads: the state at each position after the last normalisation, as unit vectors."""
    model: Any = clip.model
    embedded = model.token_embedding(tokens) + model.positional_embedding
    states = model.ln_final(model.transformer(embedded, attn_mask=model.attn_mask))
    return functional.normalize(states, dim=-1)


def verify(name: str, folder: Path, expected: Reference) -> dict[str, float]:
    """The largest difference of any number of an embedding, by what was embedded; raises ExportError if it is large."""
    check = {"open_clip": _open_clip, "transformers": _transformers, "diffusers": _diffusers}[name]
    found = check(folder, expected)
    for what, difference in found.items():
        # Libraries differ in how they make pictures smaller, which no weight can mend; the card says how much.
        if not difference <= TOLERANCE and what != "resized images":
            raise ExportError(
                f"{formats.FOLDERS[name]}: {what} differ from the trained model's by {difference:.2g}, more than "
                f"{TOLERANCE:.0e}; nothing is written"
            )
    return found


def _open_clip(folder: Path, expected: Reference) -> dict[str, float]:
    loaded = models.load(folder)
    return {
        "captions": _difference(models.encode_texts(loaded, CAPTIONS, BATCH_SIZE), expected.text),
        "images": _difference(models.encode_images(loaded, pictures(expected.size), BATCH_SIZE), expected.image),
    }


@torch.inference_mode()
def _transformers(folder: Path, expected: Reference) -> dict[str, float]:
    from transformers import CLIPModel, CLIPProcessor

    model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)  # in evaluation mode
    processor: Any = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    _check_tokens(processor.tokenizer, expected)

    def embed(images: list[Image.Image]) -> Any:
        inputs = processor(
            text=list(CAPTIONS), images=images, padding="max_length", truncation=True, return_tensors="pt"
        )
        return model(**inputs)

    output = embed(pictures(expected.size))
    return {
        "captions": _difference(output.text_embeds, expected.text),
        "images": _difference(output.image_embeds, expected.image),
        "resized images": _difference(embed([large_picture(expected.size)]).image_embeds, expected.resized),
    }


@torch.inference_mode()
def _diffusers(folder: Path, expected: Reference) -> dict[str, float]:
    from transformers import CLIPTextModel, CLIPTokenizer

    encoder: Any = CLIPTextModel.from_pretrained(folder / formats.TEXT_ENCODER, local_files_only=True)
    _check_tokens(CLIPTokenizer.from_pretrained(folder / formats.TOKENIZER, local_files_only=True), expected)
    states = encoder(_tokens(folder / formats.TOKENIZER)).last_hidden_state
    assert expected.hidden is not None
    return {"states of captions": _difference(functional.normalize(states, dim=-1), expected.hidden)}


def _tokens(tokenizer: Path) -> Tensor:
    """The captions by an exported tokenizer, filled up as diffusion models are used to: (captions, context)."""
    from transformers import CLIPTokenizer

    loaded: Any = CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True)
    encoded = loaded(list(CAPTIONS), padding="max_length", truncation=True, return_tensors="pt")
    tokens: Tensor = encoded["input_ids"]
    return tokens


def _check_tokens(tokenizer: Any, expected: Reference) -> None:
    found = tokenizer(list(CAPTIONS), truncation=True)["input_ids"]
    if found != expected.tokens:
        raise ExportError("the exported tokenizer reads captions otherwise than the model's own; nothing is written")


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference; infinite or no numbers count as infinitely far."""
    difference = (found - expected).abs().max().item() if found.shape == expected.shape else math.inf
    return difference if math.isfinite(difference) else math.inf
