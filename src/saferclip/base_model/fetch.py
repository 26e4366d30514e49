"""Put a CLIP that exists into the run's own folder, in open_clip's format, whatever format it comes in."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
from safetensors import safe_open

from saferclip import heads, io, models
from saferclip.base_model import activation, formats, hub
from saferclip.base_model.formats import Declared, Published
from saferclip.config import BaseModelSettings, ConfigError

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")

BASE_MODEL = "base_model"  # the section of the model that all methods start from

logger = logging.getLogger(__name__)


def fetch(settings: BaseModelSettings, downloads: Mapping[str, Path], cache: Path, key: str, output: Path) -> None:
    """Bring a model to ``output`` (open_clip ``local-dir:`` format).

    ``downloads`` says where names of the versions table are on disk.  Only 'open_clip:' and 'hf-hub:' use a network
    here, and put what they fetch into ``cache``; 'dvc:' may pull.  ``key`` is the section that the settings are.

    Raises DataError if the model is not there or damaged, ConfigError if settings and model do not go together, and
    ActivationError if the weights were trained with another activation than the architecture computes.
    """
    with _said_of(key):
        model = locate(settings, downloads, cache)
        quick_gelu = bool(model.model_cfg.get("quick_gelu", False))
        remedy = _remedy(settings, quick_gelu)
        activation.check_declared(model.model_cfg, model.declared, remedy)
        _check_tokenizer(model.model_cfg)
        with io.atomic_path(output) as folder:
            _write(model, folder)
            clip = _load(folder, settings.source)
            if clip.head and key == BASE_MODEL:  # mining and losses compare its embeddings by their cosine
                raise ConfigError(
                    f"source: embeds into hyperbolic space ({heads.SECTION} of its {models.ARCHITECTURE}); choose a "
                    "plain CLIP to start from"
                )
            activation.check_behaviour(clip, quick_gelu, remedy)


def locate(settings: BaseModelSettings, downloads: Mapping[str, Path], cache: Path) -> Published:
    """Find the model that the settings name; raises as ``fetch``."""
    name, architecture = settings.name, settings.architecture
    match settings.kind:
        case "dvc":
            folder = Path(name)
            if not (folder / models.WEIGHTS).exists():
                _pull(folder)
            return formats.find(folder, architecture)
        case "download":
            if name not in downloads:
                raise ConfigError(f"source: where is '{name}'? write --download {name}=<folder>")
            return formats.find(downloads[name], architecture)
        case "open_clip":
            return _listed(name, cache)
        case "hf-hub":
            repository, _, revision = name.partition("@")
            return formats.find(hub.fetch_model(repository, revision, cache), architecture)
        case _:  # local-dir, file: as validated
            return formats.find(Path(name), architecture)


def _listed(name: str, cache: Path) -> Published:
    """A pretrained model of open_clip's own list, '<architecture>/<tag>', from the hub.

    OpenAI's original files, which the list names too, are TorchScript: programs, which are not run here.
    """
    architecture, _, tag = name.partition("/")
    model_cfg = formats.named(architecture)
    entry: dict[str, Any] = open_clip.get_pretrained_cfg(architecture, tag)
    repository, _, file = entry.get("hf_hub", "").rpartition("/")
    if not repository:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        others = ", ".join(open_clip.list_pretrained_models_by_tag(tag)) or "none"
        raise ConfigError(
            f"source: open_clip knows no weights '{tag}' for {architecture} on the hub; it has {tags}, "
            f"and '{tag}' for {others}"
        )
    said = [Declared(f"open_clip's list of '{tag}'", entry["quick_gelu"])] if "quick_gelu" in entry else []
    remedy = _remedy(
        BaseModelSettings(source=f"open_clip:{name}", architecture=None), bool(model_cfg.get("quick_gelu", False))
    )
    activation.check_declared(model_cfg, said, remedy)  # before much is fetched
    place = hub.fetch_model(repository, "", cache, (file,) if file else ())
    found = formats.find(place, None if (place / models.ARCHITECTURE).is_file() else architecture)
    preprocessing = {name: entry[name] for name in PREPROCESSING if name in entry}
    return Published({"model_cfg": model_cfg, "preprocess_cfg": preprocessing}, found.files, (*said, *found.declared))


def _remedy(settings: BaseModelSettings, quick_gelu: bool) -> str:
    """What to write instead, where the architecture computes ``quick_gelu`` and should not."""
    architecture = settings.name.partition("/")[0] if settings.kind == "open_clip" else settings.architecture
    other = activation.other_name(architecture) if architecture else None
    if other and settings.kind == "open_clip":
        return f"write 'source: open_clip:{other}/{settings.name.partition('/')[2]}'"
    if other:
        return f"write 'architecture: {other}'"
    right = str(not quick_gelu).lower()
    return f"set 'quick_gelu: {right}' in the model_cfg of its {models.ARCHITECTURE}, or name the right 'architecture'"


def _check_tokenizer(model_cfg: Mapping[str, Any]) -> None:
    """Refuse text encoders whose vocabulary the hub keeps: every later step works offline."""
    text = model_cfg["text_cfg"]
    other = text.get("hf_model_name") or text.get("hf_tokenizer_name")
    if other:
        raise ConfigError(f"source: its captions are read by '{other}'; choose a model with CLIP's own tokenizer")


def _write(model: Published, folder: Path) -> None:
    """Write a model folder: the very file if it has our format already."""
    if [file.name for file in model.files] != [models.WEIGHTS]:
        models.save(folder, model.state(), model.architecture)
        return
    folder.mkdir()
    shutil.copyfile(model.files[0], folder / models.WEIGHTS)
    io.write_json(folder / models.ARCHITECTURE, model.architecture)


def _load(folder: Path, source: str) -> models.Clip:
    """Load what was written; raises DataError for what open_clip could not use later, or would stretch to fit."""
    wrong = f"{source}: the weights are damaged, or not those of the architecture"
    try:
        clip = models.load(folder, models.default_device())
    except (RuntimeError, io.DataError) as error:
        raise io.DataError(f"{wrong}: {str(error).replace(f'{folder}/', '')[:500]}") from error
    shapes = {name: list(tensor.shape) for name, tensor in clip.model.state_dict().items()}
    with safe_open(folder / models.WEIGHTS, "pt") as stored:
        for name in (name for name in shapes if name.endswith("positional_embedding")):
            found = stored.get_slice(name).get_shape()
            if found != shapes[name]:
                raise io.DataError(f"{wrong}: {name} has shape {found}, the architecture's {shapes[name]}")
    return clip


@contextmanager
def _said_of(key: str) -> Iterator[None]:
    """Put the section's name before what is wrong with it."""
    try:
        yield
    except ConfigError as error:
        raise type(error)(f"{key}: {error}") from error


def _pull(folder: Path) -> None:
    """Fetch a versioned folder from the DVC remote; `dvc pull` checks its hash."""
    logger.info("%s is not here yet: dvc pull", folder)
    # The environment's own dvc, whether or not the environment is activated.
    command = [sys.executable, "-m", "dvc", "pull", "--", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise io.DataError(
            f"{folder}: `dvc pull` failed; fetch it by hand, or make it: `snakemake base_model_training`\n{done.stderr}"
        )
