"""Load CLIP through open_clip, and encode captions and images with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP
from open_clip.transformer import text_global_pool
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from saferclip import heads, io, untrusted
from saferclip.heads import Head

WEIGHTS = "open_clip_model.safetensors"
ARCHITECTURE = "open_clip_config.json"


@dataclass(frozen=True)
class Clip:
    """A CLIP model with what is needed to feed it."""

    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[Sequence[str]], Tensor]
    architecture: dict[str, Any]
    head: Head | None = None  # how outputs become embeddings, where they are not just normalised


def load(folder: Path, device: torch.device | str = "cpu") -> Clip:
    """Load a model in fp32 and evaluation mode from a folder in open_clip's ``local-dir:`` format.

    Raises DataError if the folder does not hold such a model, or one that asks for more than its weights explain.
    """
    for name in (ARCHITECTURE, WEIGHTS):
        if not (folder / name).is_file():
            raise io.DataError(f"{folder}: not an open_clip model folder: {name} is missing")
    architecture = io.read_json(folder / ARCHITECTURE)
    untrusted.check_architecture(folder / ARCHITECTURE, architecture)
    head = heads.read(folder / ARCHITECTURE, architecture)
    source = f"local-dir:{folder}"
    try:
        untrusted.check_size(folder / ARCHITECTURE, architecture, folder / WEIGHTS)
        model, _, preprocess = open_clip.create_model_and_transforms(source, device=device)
        tokenize = open_clip.get_tokenizer(source)
    except (io.DataError, torch.OutOfMemoryError):
        raise
    # open_clip answers an architecture that does not go together, or not with the weights, with many kinds.
    except Exception as error:
        reason = f"{str(error)[:500]} ({type(error).__name__})"
        raise io.DataError(f"{folder}: {ARCHITECTURE} and {WEIGHTS} do not go together: {reason}") from error
    return Clip(
        # Convolutions are faster in this order of pixels, twice in bf16; other layers do not care.
        model=model.eval().to(memory_format=torch.channels_last),
        preprocess=preprocess,
        tokenize=tokenize,
        architecture=architecture,
        head=head,
    )


def save(folder: Path, state: dict[str, Tensor], architecture: dict[str, Any]) -> None:
    """Write a model that open_clip loads as ``local-dir:<folder>``, with exactly the weights of ``state``.

    Weights that half precision represents exactly are stored so, which halves their space: models are
    versioned, and what fine-tuning left alone, such as the table of tokens, often came in half precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    compact = {name: _compact(tensor) for name, tensor in state.items()}
    io.write_tensors(folder / WEIGHTS, compact, metadata={"format": "pt"})
    with io.atomic_path(folder / ARCHITECTURE) as temporary:
        temporary.write_text(json.dumps(architecture, indent=2) + "\n")


def _compact(tensor: Tensor) -> Tensor:
    """The tensor in half precision if nothing is lost, else in full."""
    if not tensor.is_floating_point():
        return tensor
    half, full = tensor.half(), tensor.float()
    return half if torch.equal(half.float(), full) else full


def default_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def autocast(device: torch.device | str, precision: str) -> Iterator[None]:
    """Context in which matrix products run in bf16, or unchanged for 'fp32'."""
    with ExitStack() as contexts:
        if precision == "bf16":
            kind = torch.device(device).type
            contexts.enter_context(torch.autocast(kind, torch.bfloat16))
            if kind == "cpu":
                # The fused attention's backward pass in bf16 takes ten times as long as plain products.
                contexts.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def text_features(model: nn.Module, tokens: Tensor, normalize: bool = True) -> Tensor:
    """Embed token ids of shape (batch, context) as unit vectors of shape (batch, dim), or as what the encoder gives.

    CLIP's text attention is causal and the feature is read at the end token, so positions after
    the batch's last end token cannot matter: cutting them off is exact and much cheaper.
    """
    if not isinstance(model, CLIP) or model.text_pool_type != "argmax":
        return model.encode_text(tokens, normalize=normalize)  # type: ignore[operator]
    tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
    length = tokens.shape[1]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
    mask = None if model.attn_mask is None else model.attn_mask[:length, :length]
    hidden = model.ln_final(model.transformer(hidden, attn_mask=mask))
    pooled = text_global_pool(hidden, tokens, model.text_pool_type)
    projection = model.text_projection
    projected = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
    return functional.normalize(projected.float(), dim=-1) if normalize else projected.float()


def image_features(model: nn.Module, images: Tensor, normalize: bool = True) -> Tensor:
    """Embed preprocessed images of shape (batch, 3, height, width), likewise: (batch, dim)."""
    features = model.encode_image(images).float()  # type: ignore[operator]
    return functional.normalize(features, dim=-1) if normalize else features


def _embed_texts(clip: Clip, tokens: Tensor) -> Tensor:
    """Unit vectors of token ids, by the model's head where it has one."""
    if clip.head is None:
        return text_features(clip.model, tokens).cpu()
    return clip.head.embed(text_features(clip.model, tokens, normalize=False).cpu(), "text")


def _embed_images(clip: Clip, images: Tensor) -> Tensor:
    """Unit vectors of preprocessed images, by the model's head where it has one."""
    if clip.head is None:
        return image_features(clip.model, images).cpu()
    return clip.head.embed(image_features(clip.model, images, normalize=False).cpu(), "image")


@torch.inference_mode()
def encode_texts(clip: Clip, texts: Sequence[str], batch_size: int, progress: str | None = None) -> Tensor:
    """Embed captions in fp32: unit vectors of shape (len(texts), dim) on the CPU."""
    device = next(clip.model.parameters()).device
    # Captions of like length together: each batch is cut to its longest.
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    encoded = [
        _embed_texts(clip, clip.tokenize([texts[row] for row in rows]).to(device))
        for rows in _batches(order, batch_size, progress, len(texts))
    ]
    result = torch.cat(encoded)
    return result[torch.tensor(order).argsort()]


@torch.inference_mode()
def encode_images(
    clip: Clip, images: Iterable[Image.Image], batch_size: int, total: int | None = None, progress: str | None = None
) -> Tensor:
    """Embed pictures in fp32: unit vectors of shape (number of images, dim) on the CPU."""
    device = next(clip.model.parameters()).device
    encoded = [
        _embed_images(clip, torch.stack([clip.preprocess(image) for image in batch]).to(device))
        for batch in _batches(images, batch_size, progress, total)
    ]
    return torch.cat(encoded)


def _batches(items: Iterable[Any], size: int, progress: str | None, total: int | None) -> Iterator[list[Any]]:
    # disable=None: tqdm is silent where the output is not a terminal.
    bar = tqdm(items, desc=progress, total=total, disable=None if progress else True)
    iterator = iter(bar)
    while batch := list(islice(iterator, size)):
        yield batch
