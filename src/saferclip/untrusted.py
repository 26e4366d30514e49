"""Look at a model folder from strangers before a library does: what would be fetched, run, or fill the memory.

Weights are safetensors, which hold numbers alone; what is left to fear is what their configuration asks for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from open_clip import CLIP, CoCa, CustomTextCLIP
from safetensors import SafetensorError, safe_open

from saferclip.io import DataError

LARGEST = 10_000_000  # any whole number of an architecture: widths, vocabularies, lengths, sides of images
DEEPEST = 1000  # layers
LEVELS = 10  # sections within each other
ELSEWHERE = ("hf_model_name", "hf_tokenizer_name")  # read from the hub, perhaps with code of its own
FILES = ("bpe_path",)  # options of a tokenizer that name a file
SPARE = 1_000_000  # numbers that a model has and its file has not, such as masks


def check_architecture(path: Path, found: Any) -> None:
    """Refuse a configuration of open_clip's that is none, that names what lies elsewhere, or absurd sizes.

    Raises DataError naming the file, the key and why.
    """
    sections = [found, *(found.get("model_cfg") for _ in [0] if isinstance(found, dict))]
    sections += [sections[-1].get(name) for name in ("text_cfg", "vision_cfg") if isinstance(sections[-1], dict)]
    if len(sections) != 4 or not all(isinstance(section, dict) for section in sections):
        raise DataError(f"{path}: not open_clip's description of a model: 'model_cfg' with 'text_cfg' and 'vision_cfg'")
    for key, value in _leaves(found["model_cfg"]):
        name = key.rpartition(".")[2].partition("[")[0]
        if name in ELSEWHERE and value:
            raise DataError(f"{path}: {key} names '{value}' on the hub; choose a model with CLIP's own tokenizer")
        if name in FILES and value:
            raise DataError(f"{path}: {key} names the file '{value}'; a model brings no files of its own here")
        if name == "timm_model_name" and any(letter in str(value) for letter in ":/\\"):
            raise DataError(f"{path}: {key} is '{value}', which would be fetched; write the name of one of timm's own")
        limit = DEEPEST if name == "layers" else LARGEST
        if isinstance(value, int | float) and not -limit <= value <= limit:
            raise DataError(f"{path}: {key} is {str(value)[:30]}, more than any model has ({limit:,})")


def check_size(path: Path, architecture: Mapping[str, Any], weights: Path) -> None:
    """Refuse an architecture (of the file ``path``) of more numbers than its weights are.

    It is built without memory for them. Raises DataError, and whatever open_clip raises for what it cannot build.
    """
    stored = count(weights)
    values = deepcopy(architecture["model_cfg"])
    kind = CLIP if not values.pop("custom_text", False) else CoCa if "multimodal_cfg" in values else CustomTextCLIP
    if "timm_model_name" in values["vision_cfg"]:
        values["vision_cfg"]["timm_model_pretrained"] = False
    # Nothing drawn here may change what is drawn later.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = kind(**values)
    needed = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if needed > 2 * stored + SPARE:
        raise DataError(f"{path}: asks for {needed:,} numbers, but {weights.name} holds {stored:,}")


def count(weights: Path) -> int:
    """How many numbers a file of safetensors holds; only its header is read.  Raises DataError."""
    return sum(map(math.prod, _shapes(weights)))


def widest(weights: Path) -> int:
    """The longest side of any tensor in a file of safetensors; only its header is read.  Raises DataError."""
    return max((side for shape in _shapes(weights) if math.prod(shape) for side in shape), default=0)


def _shapes(weights: Path) -> list[list[int]]:
    try:
        with safe_open(weights, "pt") as file:
            return [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"{weights}: cannot be read as safetensors: {error}") from error


def _leaves(section: Mapping[str, Any], path: str = "model_cfg", level: int = 0) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that a section holds, sections and lists taken apart."""
    for key, value in section.items():
        yield from _values(value, f"{path}.{key}", level + 1)


def _values(value: Any, path: str, level: int) -> Iterator[tuple[str, Any]]:
    if level > LEVELS:
        raise DataError(f"{path}: more than {LEVELS} sections within each other")
    if isinstance(value, dict):
        yield from _leaves(value, path, level)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _values(item, f"{path}[{place}]", level + 1)
    else:
        yield path, value
