"""Read a CLIP in whatever format it was published, as weights with open_clip's names and its architecture.

Nothing is unpickled but tensors: safetensors, or ``torch.load`` with ``weights_only``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg
from torch import Tensor

from saferclip import conversion, io, models
from saferclip.config import ConfigError

TRANSFORMERS_CONFIG = "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

# In order of preference; the first ones are open_clip's. A repository of timm's holds both, and its model.safetensors
# are the image encoder's alone.
WEIGHTS = (
    models.WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "pytorch_model.bin",
    "pytorch_model-*-of-*.bin",
)
NAMED_QUICK_GELU = re.compile(r"quick[-_]?gelu", re.IGNORECASE)


@dataclass(frozen=True)
class Declared:
    """What a source says of the activation that its weights were trained with."""

    where: str
    quick_gelu: bool


@dataclass(frozen=True)
class Published:
    """A model as it was found: open_clip's configuration, files of weights, and what is said of the activation."""

    architecture: dict[str, Any]
    files: tuple[Path, ...]
    declared: tuple[Declared, ...] = ()

    @property
    def model_cfg(self) -> dict[str, Any]:
        """open_clip's ``model_cfg``."""
        model_cfg: dict[str, Any] = self.architecture["model_cfg"]
        return model_cfg

    def state(self) -> dict[str, Tensor]:
        """The weights with open_clip's names; raises DataError, or ConversionError if they are another model's."""
        state: dict[str, Tensor] = {}
        for file in self.files:
            state.update(read_weights(file))
        return conversion.to_open_clip(state, self.model_cfg) if conversion.is_transformers(state) else state


def find(place: Path, architecture: str | None = None) -> Published:
    """Find the model at ``place``: a folder in open_clip's or transformers' format, or weights alone.

    For weights alone, a file or the only one in a folder, ``architecture`` is open_clip's name of it; for a folder
    that says it, another name corrects what it says.
    Raises DataError if there is no model, ConfigError if the architecture is missing or unknown.
    """
    config = next((name for name in (models.ARCHITECTURE, TRANSFORMERS_CONFIG) if _is_clip(place / name)), None)
    if config is None:
        return _weights_alone(place, architecture)
    full = io.read_json(place / config) if config == models.ARCHITECTURE else _from_transformers(place)
    declared = tuple(_declared(place, corrected=architecture is not None))
    if architecture is not None:
        full = full | {"model_cfg": named(architecture)}
    return Published(full, _weights_in(place), declared)


def named(architecture: str) -> dict[str, Any]:
    """The ``model_cfg`` of open_clip's own list; raises ConfigError naming the nearest one."""
    # With a colon it would be an address, and be fetched.
    model_cfg: dict[str, Any] | None = None if ":" in architecture else open_clip.get_model_config(architecture)
    if model_cfg is None:
        known = ", ".join(name for name in open_clip.list_models() if name[:5].lower() == architecture[:5].lower())
        raise ConfigError(f"architecture: open_clip has no '{architecture}'; see open_clip.list_models(): {known}")
    return model_cfg


def said_by_name(name: str) -> Iterator[Declared]:
    """What a file's, folder's or repository's name says of the activation, if anything."""
    if NAMED_QUICK_GELU.search(name):
        yield Declared(f"the name '{name}'", True)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights by name, from safetensors or PyTorch's format, also from a checkpoint of open_clip's training.

    Raises DataError if the file is damaged, or holds more than tensors.
    """
    if path.suffix == ".safetensors":
        return io.read_tensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of many kinds, depending on what the file is instead
        raise io.DataError(
            f"{path}: cannot be read as weights alone, and nothing else is: such a file may hold any code. Take the "
            f"model's safetensors, or for OpenAI's models 'open_clip:<architecture>/openai' ({_first_line(error)})"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise io.DataError(f"{path}: holds no weights by name")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _is_clip(config: Path) -> bool:
    """Whether a configuration describes a CLIP; timm's repositories have a config.json of another kind."""
    if not config.is_file():
        return False
    return config.name == models.ARCHITECTURE or io.read_json(config).get("model_type") == "clip"


def _weights_alone(place: Path, architecture: str | None) -> Published:
    files = [place] if place.is_file() else sorted(path for path in place.glob("*") if path.suffix in SUFFIXES)
    if len(files) != 1:
        found = f"{len(files)} files of weights" if files else "neither of them, and no weights"
        raise io.DataError(
            f"{place}: not a model: {models.ARCHITECTURE} is missing, and {TRANSFORMERS_CONFIG}; {found}"
        )
    if architecture is None:
        raise ConfigError(f"architecture: missing; {files[0]} does not say whose weights it holds")
    declared = said_by_name(files[0].name)
    return Published({"model_cfg": named(architecture), "preprocess_cfg": _usual()}, tuple(files), tuple(declared))


def _from_transformers(place: Path) -> dict[str, Any]:
    """open_clip's configuration for a folder of transformers."""
    model_cfg = conversion.open_clip_config(io.read_json(place / TRANSFORMERS_CONFIG))
    processor = next((io.read_json(place / name) for name in PROCESSORS if (place / name).is_file()), None)
    if processor is None:
        return {"model_cfg": model_cfg, "preprocess_cfg": _usual()}
    return {
        "model_cfg": model_cfg,
        "preprocess_cfg": conversion.preprocess_config(processor.get("image_processor", processor)),
    }


def _usual() -> dict[str, Any]:
    """OpenAI's way of preparing images, open_clip's default."""
    usual = PreprocessCfg()
    return {
        "mean": list(usual.mean),
        "std": list(usual.std),
        "interpolation": usual.interpolation,
        "resize_mode": usual.resize_mode,
    }


def _weights_in(folder: Path) -> tuple[Path, ...]:
    for pattern in WEIGHTS:
        found = tuple(sorted(folder.glob(pattern)))
        if found:
            return found
    raise io.DataError(f"{folder}: not a model folder: {models.WEIGHTS} is missing, and so are weights of other names")


def _declared(place: Path, corrected: bool) -> Iterator[Declared]:
    """What a folder says of the activation, in as many places as it does; open_clip's may be what is corrected."""
    yield from said_by_name(place.name)
    config = place / models.ARCHITECTURE
    if config.is_file() and not corrected:
        yield Declared(str(config), bool(io.read_json(config)["model_cfg"].get("quick_gelu", False)))
    config = place / TRANSFORMERS_CONFIG
    if _is_clip(config):
        quick = conversion.open_clip_config(io.read_json(config))["quick_gelu"]
        yield Declared(f"{config} (hidden_act: {conversion.ACTIVATIONS[quick]})", quick)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
