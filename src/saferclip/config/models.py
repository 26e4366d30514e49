"""Settings of models: where the base model comes from, how it was made, how tuned ones are exported."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from saferclip.config.base import Distinct, Line, PathPart, Positive, Settings, Share, Some
from saferclip.config.data import SceneDetail

SOURCES = {
    "dvc": "dvc:<folder>",
    "local-dir": "local-dir:<folder>",
    "download": "download:<name in downloads.table>",
    "open_clip": "open_clip:<architecture>/<tag>",
    "hf-hub": "hf-hub:<owner>/<repository>[@<revision>]",
    "file": "file:<path>",
}


class BaseModelSettings(Settings):
    """A CLIP that exists: the one to fine-tune, or one to compare with."""

    source: Line = Field(
        description="'dvc:' (a versioned artifact of this repository) and 'local-dir:' name a folder, 'download:' a "
        "row in the table of downloads, 'open_clip:' a pretrained model that it lists, 'hf-hub:' a repository, all in "
        "open_clip's or transformers' format; 'file:' is a file of weights alone"
    )
    architecture: PathPart | None = Field(
        None, description="open_clip's name of it, such as ViT-L-14-quickgelu, for weights that come without or wrong"
    )

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        kind, _, name = source.partition(":")
        if kind not in SOURCES or not name or (kind == "open_clip" and not all(name.partition("/"))):
            raise ValueError(f"'{source}' is not understood; write one of: {', '.join(SOURCES.values())}")
        if kind == "download" and not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            raise ValueError(f"'{source}': a name in downloads.table has small letters, digits, '.', '_' and '-' alone")
        if set("{}") & set(name):
            raise ValueError(f"'{source}' holds a brace, which Snakemake would take for a wildcard; rename the folder")
        return source

    @model_validator(mode="after")
    def _file_with_architecture(self) -> BaseModelSettings:
        if self.kind == "file" and self.architecture is None:
            raise ValueError("architecture: missing; 'file:' names weights alone, so say whose they are")
        if self.kind == "open_clip" and self.architecture is not None:
            raise ValueError("architecture: leave it out; 'open_clip:<architecture>/<tag>' says it already")
        return self

    @property
    def kind(self) -> str:
        """What comes before the colon of ``source``."""
        return self.source.partition(":")[0]

    @property
    def name(self) -> str:
        """What comes after it."""
        return self.source.partition(":")[2]

    def named_downloads(self) -> tuple[str, ...]:
        return (self.name,) if self.kind == "download" else ()


class TrainingPhase(Settings):
    """One stage of base model training."""

    captions: Literal["objects", "full", "default"] = Field(
        description="'objects' names objects alone, 'full' everything in the scene, 'default' what `detail` says"
    )
    samples: Positive = Field(description="image-caption pairs seen")
    learning_rate: float = Field(gt=0)
    single_object_share: Share = Field(description="scenes with one object or several copies of it")
    negatives: Literal["random", "twins"] = Field(
        description="'twins': each scene of a batch comes with one of the same objects in other colours on another "
        "background, so that these must be learnt too"
    )


class BaseModelTrainingSettings(Settings):
    """How the delivered base model of the mini scale was made."""

    architecture: dict[str, Any] = Field(description="open_clip model_cfg")
    seed: int
    batch_size: Positive
    detail: SceneDetail
    phases: Some[TrainingPhase]
    weight_decay: float = Field(ge=0)
    precision: Literal["bf16", "fp32"]


class ExportSettings(Settings):
    """What a model card says of a run that its files do not, and what is exported."""

    licence: Line | None = Field(
        None, description="of the exported weights, as the hub calls it, such as cc-by-nc-4.0; default: not stated"
    )
    formats: Distinct[Literal["open_clip", "transformers", "diffusers"]] | None = Field(
        None, description="default: all that can express the architecture"
    )
    title: Line | None = Field(None, description="how the training data are called; default: the run's title")
    base_model: Line | None = Field(None, description="where the base model came from; default: the run's source")
