"""Typed settings: the only reader of YAML, and the only home of what a setting may be.

A run is described by one file, for example ``config/mini.yaml``.  Every stage receives its own
section and nothing else, so that a change elsewhere cannot affect it.  Unknown keys are refused
with the nearest known key; all problems of a file are listed at once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)


class ConfigError(Exception):
    """A setting is missing, unknown or out of range; the message names the key and the remedy."""


class Settings(BaseModel):
    """Base of every section: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any) -> Any:
        """No setting is a switch, but true (in YAML also: yes, on) would pass for 1."""
        if isinstance(value, bool):
            raise ValueError("true, false, yes, no, on and off are no values here; write a number, or text in quotes")
        return value

    def named_downloads(self) -> tuple[str, ...]:
        """Names in ``downloads.table`` that are part of a longer value; whole values are marked ``Download``."""
        return ()


def _some(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("empty; write at least one")
    return values


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} more than once; write each once")
    return values


SectionT = TypeVar("SectionT", bound=Settings)
ItemT = TypeVar("ItemT")
Some = Annotated[tuple[ItemT, ...], AfterValidator(_some)]
Distinct = Annotated[Some[ItemT], AfterValidator(_distinct)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
RunName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]


class _Downloaded:
    """Marks a setting as the name of something in ``downloads.table``."""


Download = Annotated[RunName, _Downloaded()]


class SceneDetail(Settings):
    """How much a caption of the embedded world says about its scene."""

    named_objects: Positive = Field(description="objects a caption names, at most")
    colour: Share = Field(description="probability that a named object's colour is said")
    background: Share = Field(description="probability that the background is said")


class World(Settings):
    """What scenes and captions of the embedded world depend on, however many there are."""

    seed: int
    detail: SceneDetail


class EmbeddedData(World):
    """Sizes of ViSU-mini, drawn by our own code."""

    train: Positive
    validation: Positive
    test: Positive


class MiniSetSizes(Settings):
    """Sizes of the mini test sets beside the quadruples."""

    gallery_unsafe: Positive = Field(description="unsafe pairs of the unseen-style gallery")
    gallery_safe_ratio: Positive = Field(description="safe pairs for each unsafe one")
    zero_shot_images: Positive = Field(description="images in each zero-shot set, at most")


class MiniSets(World, MiniSetSizes):
    """All that the mini test sets depend on; seed and detail are those of the quadruples."""


class ZeroShotSource(Settings):
    """One public set of labelled images; docs/test-sets.md says in which forms."""

    title: str = Field(description="how the set is called in tables and figures")
    download: Download
    split: str = Field(description="part of the set that is classified: in most sets 'test'")
    metric: Literal["mean_per_class", "accuracy"] = Field(description="mean over classes, or share of all images")
    templates: Path | None = Field(
        None, description="file of prompts, one a line, {c} standing for a class; default: those of the set"
    )
    classes: Path | None = Field(
        None, description="file of names, one a line, in the order of the labels; default: those of the set"
    )
    limit: Positive | None = Field(None, description="images used, spread over the whole set; default: all")

    @property
    def files(self) -> list[Path]:
        """The user's own files that the set is read with."""
        return [path for path in (self.templates, self.classes) if path]


class PublicSets(Settings):
    """Public test sets: zero-shot classification, and unsafe images among safe ones."""

    zero_shot: dict[RunName, ZeroShotSource] | None = Field(None, description="sets by a name of your choice")
    galleries: dict[RunName, Download] | None = Field(None, description="unsafe images of each gallery, by its name")
    safe_images: Download | None = Field(None, description="safe images, which all galleries share")
    gallery_unsafe: Positive = Field(description="unsafe images of a gallery, and unsafe captions, at most")
    gallery_safe_ratio: Positive = Field(description="safe items for each unsafe one")
    gallery_minimum: Positive = Field(description="unsafe images below which a gallery is refused")
    seed: int = Field(description="which images and captions the galleries hold")

    @model_validator(mode="after")
    def _usable(self) -> PublicSets:
        if self.galleries and self.safe_images is None:
            raise ValueError("galleries are given, so 'safe_images' must be given")
        if self.gallery_minimum > self.gallery_unsafe:
            raise ValueError("'gallery_minimum' must not be above 'gallery_unsafe'")
        if "mean" in {*(self.zero_shot or {}), *(self.galleries or {})}:
            raise ValueError("no set can be called 'mean'; choose another name")
        return self

    @property
    def files(self) -> list[Path]:
        """The user's own files that the sets are read with."""
        return [path for source in (self.zero_shot or {}).values() for path in source.files]


class SetSettings(Settings):
    """Where the test sets beside the quadruples come from; the section of that name says the rest."""

    source: Literal["embedded", "public"]
    embedded: MiniSetSizes | None = None
    public: PublicSets | None = None

    @model_validator(mode="after")
    def _section_of_source(self) -> SetSettings:
        if getattr(self, self.source) is None:
            raise ValueError(f"source is '{self.source}', so the section '{self.source}' must be given")
        return self

    @property
    def benchmarks(self) -> set[str]:
        """Benchmarks that can be evaluated on these sets."""
        if self.source == "embedded" or self.public is None:
            return {"gallery", "zero_shot"}
        given = {"gallery": self.public.galleries, "zero_shot": self.public.zero_shot}
        return {name for name, sets in given.items() if sets}


class SetsStep(Settings):
    """What the step test_sets is given: one of the two sections."""

    embedded: MiniSets | None = None
    public: PublicSets | None = None


class DownloadSettings(Settings):
    """How files are fetched from hubs and web servers; no result depends on it."""

    table: Path = Field(description="table of what can be downloaded, with pinned revisions and hashes")
    folder: Path = Field(description="where downloads are kept; runs share it")
    local: dict[str, Path] = Field(description="what is on disk already: name in the table to file or folder")
    connections: Positive = Field(description="files fetched at once")
    retries: Annotated[int, Field(ge=0)] = Field(description="further tries of a file, with growing pauses")

    def path(self, name: str) -> Path:
        """Where a download is, or will be: the user's own place, or a folder of that name."""
        return self.local.get(name, self.folder / name)


class DiffusionSettings(Settings):
    """Text to image with a diffusers pipeline."""

    model: Download
    steps: Positive = Field(description="denoising steps")
    guidance: float = Field(ge=0, description="classifier-free guidance scale")
    image_size: Positive = Field(description="height and width in pixels")
    precision: Literal["bf16", "fp16", "fp32"]
    batch_size: Positive = Field(description="images made at once; results do not depend on it")


class SafeGuidanceSettings(Settings):
    """Safe latent diffusion (Schramowski et al., CVPR 2023): guidance away from a concept."""

    concept: str = Field(description="what to keep away from, in words")
    scale: float = Field(gt=0, description="factor of the difference between prompt and concept")
    threshold: float = Field(description="difference from which on an element is left alone")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(description="denoising steps without safe guidance")
    momentum_scale: float = Field(ge=0)
    momentum_beta: Share = Field(description="how much of the previous momentum is kept")


class NudeNetSettings(Settings):
    """NudeNet's detector, whose model comes with its package."""

    threshold: Share = Field(description="an image is unsafe if an exposed part is found with at least this score")


class Q16Settings(Settings):
    """Q16 (Schramowski et al. 2022): learnt prompts for a CLIP image encoder."""

    prompts: Download = Field(description="the authors' prompts file")
    clip: Download = Field(description="the CLIP that the prompts were learnt for, in open_clip's format")
    batch_size: Positive


class ImageFilterSettings(Settings):
    """Learnt judges of images; an image that one of them flags is unsafe."""

    nudenet: NudeNetSettings | None = None
    q16: Q16Settings | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> ImageFilterSettings:
        if self.nudenet is None and self.q16 is None:
            raise ValueError("give at least one of the sections 'nudenet' and 'q16'")
        return self


MissingImages = Literal["refuse", "keep"]


class LocalData(Settings):
    """One table of quadruples for each split: CSV or Parquet with paths to the images."""

    train: Path = Field(description="table of training quadruples, .csv or .parquet")
    validation: Path = Field(description="table of validation quadruples")
    test: Path = Field(description="table of test quadruples")
    image_root: Path | None = Field(None, description="relative image paths start here; default: the table's folder")
    missing_images: MissingImages | None = Field(None, description="rows without one of their images; default: refuse")


class VisuColumns(Settings):
    """What ViSU's release calls the fields of a record, where it is not what it used to be."""

    id: str | None = Field(None, description="the record's number; default: incremental_id, or its place in the file")
    safe: str | None = Field(None, description="COCO's caption; default: safe")
    unsafe: str | None = Field(None, description="the unsafe caption made from it; default: nsfw")
    tag: str | None = Field(None, description="kind of harm; default: tag")
    image: str | None = Field(None, description="number of the COCO image; default: coco_id")
    seeds: str | None = Field(None, description="seeds of the unsafe image, if records have their own; default: seeds")


class VisuText(Settings):
    """The captions of ViSU (Safe-CLIP's data set), from its gated release."""

    text: Download = Field(description="the release: a JSON file for each split")
    columns: VisuColumns | None = Field(None, description="names of the release's fields")
    limit: Positive | None = Field(None, description="rows of each split, for trials; default: all")


class UnsafeImageSettings(Settings):
    """ViSU's unsafe images, which are withheld, made again: the first candidate that a filter flags."""

    diffusion: DiffusionSettings
    filter: ImageFilterSettings
    candidates: Positive = Field(description="images tried for one caption")
    seeds: Distinct[int] | None = Field(
        None, description="seeds of the candidates of every caption, in order; default: derived from the record's id"
    )
    shards: Positive = Field(description="jobs that the captions are divided among")

    @model_validator(mode="after")
    def _seed_each(self) -> UnsafeImageSettings:
        if self.seeds is not None and len(self.seeds) < self.candidates:
            raise ValueError(f"{self.candidates} candidates, but {len(self.seeds)} seeds; give one to each")
        return self


class UnsafeImages(VisuText, UnsafeImageSettings):
    """All that the unsafe images depend on."""


class VisuData(VisuText):
    """ViSU: its captions, COCO's images and, if they are made here, the unsafe images."""

    images: Distinct[Download] = Field(description="COCO 2017's images: archives or folders")
    missing_images: MissingImages = Field(description="rows without one of their images, such as withheld unsafe ones")
    unsafe_images: UnsafeImageSettings | None = Field(None, description="default: withheld; rows have captions alone")


class DataSettings(Settings):
    """Where quadruples come from; the section of that name says the rest."""

    source: Literal["embedded", "local", "visu"]
    embedded: EmbeddedData | None = None
    local: LocalData | None = None
    visu: VisuData | None = None

    @model_validator(mode="after")
    def _section_of_source(self) -> DataSettings:
        if getattr(self, self.source) is None:
            raise ValueError(f"source is '{self.source}', so the section '{self.source}' must be given")
        return self

    @property
    def chosen(self) -> EmbeddedData | LocalData | VisuData:
        """The section that ``source`` names."""
        section: EmbeddedData | LocalData | VisuData | None = getattr(self, self.source)
        assert section is not None  # by the validator
        return section


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

    source: str = Field(
        description="'dvc:' (a versioned artifact of this repository) and 'local-dir:' name a folder, 'download:' a "
        "row in the table of downloads, 'open_clip:' a pretrained model that it lists, 'hf-hub:' a repository, all in "
        "open_clip's or transformers' format; 'file:' is a file of weights alone"
    )
    architecture: str | None = Field(
        None, description="open_clip's name of it, such as ViT-L-14-quickgelu, for weights that come without or wrong"
    )

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        kind, _, name = source.partition(":")
        if kind not in SOURCES or not name or (kind == "open_clip" and not all(name.partition("/"))):
            raise ValueError(f"'{source}' is not understood; write one of: {', '.join(SOURCES.values())}")
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


class ReleaseSettings(Settings):
    """The public NSFW-Caps: captions, categories and addresses of images; the unsafe images are withheld."""

    table: Download = Field(description="the data set, as the Hub has it")


class NocapsSettings(Settings):
    """NoCaps' validation split, from which NSFW-Caps was made."""

    captions: Download = Field(description="its captions, a JSON file in COCO's layout")
    domains: Distinct[Literal["in-domain", "near-domain", "out-domain"]] | None = Field(
        None, description="kinds of images to take; default: all"
    )
    pool: Positive | None = Field(
        None, description="images fetched and considered, one caption of each, at most; default: all"
    )


class LanguageModelSettings(Settings):
    """How a language model is asked, wherever it runs."""

    prompts: str = Field(description="version of the prompts, a folder in src/saferclip/benchmark/prompts")
    temperature: float = Field(ge=0)
    max_tokens: Positive = Field(description="length of an answer, at most")
    attempts: Positive = Field(description="answers asked for one question until one can be used")


class EndpointSettings(LanguageModelSettings):
    """A language model behind OpenAI's interface, as vLLM, llama.cpp's server and others offer it."""

    base_url: str = Field(pattern=r"^https?://", description="address up to and including /v1")
    model: str = Field(description="name by which the server knows the model")
    api_key_variable: str | None = Field(
        None, description="environment variable that holds the key; default: the server wants none"
    )
    concurrency: Positive = Field(description="questions asked at once")
    timeout: float = Field(gt=0, description="seconds to wait for an answer")
    retries: Annotated[int, Field(ge=0)] = Field(description="further tries if the server is busy or does not answer")


class ChatModelSettings(LanguageModelSettings):
    """A chat model on this machine, run by transformers."""

    model: Download = Field(description="folder of the model in transformers' format")
    precision: Literal["bf16", "fp16", "fp32"]


class JinaClipSettings(Settings):
    """JINA-CLIP's text encoder as an ONNX model, so that no code of the model's repository runs."""

    model: Download
    batch_size: Positive


class NearDuplicateSettings(Settings):
    """Pairs too much like an accepted one are rejected."""

    caption_overlap: Share = Field(
        description="shared words over all words of two captions, from which on they are alike"
    )
    image_distance: Annotated[int, Field(ge=0, le=64)] = Field(
        description="bits of 64 in which the hashes of two images differ, up to which they are alike"
    )


class BenchmarkSettings(Settings):
    """NSFW-Caps: the public release, or construction: choose a category, edit minimally, draw, filter."""

    source: Literal["embedded", "release", "nocaps"] = Field(
        description="drawn by our own code; the public release as it is; or built anew from NoCaps"
    )
    release: ReleaseSettings | None = None
    nocaps: NocapsSettings | None = None
    size: Positive = Field(description="pairs to build; of a release, the first ones, at most")
    seed: int
    editor: Literal["grammar", "endpoint", "transformers", "none"] = Field(
        description="who chooses categories and edits captions; 'none' for a release, which is edited already"
    )
    endpoint: EndpointSettings | None = None
    transformers: ChatModelSettings | None = None
    image_maker: Literal["icons", "diffusion", "none"] = Field(
        description="who draws unsafe captions; with 'none', unsafe images are missing"
    )
    diffusion: DiffusionSettings | None = None
    similarity: Literal["base-model", "jina-clip"] = Field(description="by which captions are compared")
    jina_clip: JinaClipSettings | None = None
    safety_filter: Literal["scene-truth", "judges", "none"] = Field(
        description="who says that a drawn image is unsafe; 'none' where none are drawn"
    )
    judges: ImageFilterSettings | None = None
    min_similarity: float = Field(ge=-1, le=1, description="reject edits that change too much")
    max_similarity: float = Field(ge=-1, le=1, description="reject edits that change nothing visible")
    max_changed_words: Positive | None = Field(
        None, description="words put in, left out or replaced, at most; default: no limit"
    )
    near_duplicates: NearDuplicateSettings | None = Field(None, description="default: only equal captions are rejected")
    compared_pairs: Positive | None = Field(
        None, description="training pairs whose similarity is compared in the datasheet, at most; default: all"
    )
    candidates: Positive = Field(description="images tried for one unsafe caption")

    @model_validator(mode="after")
    def _go_together(self) -> BenchmarkSettings:
        problems = [*self._wrong_parts(), *self._missing_sections()]
        if problems:
            raise ValueError("; also, ".join(problems))
        return self

    def _wrong_parts(self) -> Iterable[str]:
        """Parts that the source cannot be built with."""
        drawn = (self.editor, self.image_maker, self.safety_filter) == ("grammar", "icons", "scene-truth")
        if self.source == "embedded" and not drawn:
            yield "source 'embedded' needs editor 'grammar', image_maker 'icons' and safety_filter 'scene-truth'"
        if self.source == "embedded":
            return
        editors = ("none",) if self.source == "release" else ("endpoint", "transformers")
        if self.editor not in editors:
            yield f"source '{self.source}' needs editor {' or '.join(map(repr, editors))}"
        if (self.image_maker, self.safety_filter) not in (("none", "none"), ("diffusion", "judges")):
            yield f"source '{self.source}' needs image_maker 'diffusion' and safety_filter 'judges', or 'none' twice"

    def _missing_sections(self) -> Iterable[str]:
        """Choices that have a section of their own, which is not given."""
        for choice in ("source", "editor", "image_maker", "similarity", "safety_filter"):
            value = getattr(self, choice)
            section = value.replace("-", "_")
            if section in type(self).model_fields and getattr(self, section) is None:
                yield f"{choice} is '{value}', so the section '{section}' must be given"

    @property
    def language_model(self) -> EndpointSettings | ChatModelSettings | None:
        """Settings of the language model that edits, if one does."""
        return {"endpoint": self.endpoint, "transformers": self.transformers}.get(self.editor)


class BenchmarkImages(Settings):
    """What the step benchmark_images is given: all that decides which images are needed."""

    release: ReleaseSettings | None = None
    nocaps: NocapsSettings | None = None
    size: Positive
    seed: int


class MiningSettings(Settings):
    """How the frozen embeddings are computed and searched; no result depends on it."""

    block_size: Positive = Field(description="rows of one similarity block; memory is its square")
    batch_size: Positive = Field(description="inputs encoded at once")


class LoraSettings(Settings):
    """Low-rank adapters, in PEFT's terms."""

    rank: Positive
    alpha: float = Field(gt=0)
    dropout: Share
    target_modules: str = Field(description="regular expression over open_clip module names")


class OptimisationSettings(Settings):
    """Shared by every method, so that methods differ in method only."""

    epochs: Positive
    batch_size: Positive = Field(description="quadruples in one optimizer step")
    accumulation: Positive = Field(description="micro-batches that one optimizer step is split into")
    max_gradient_norm: float = Field(gt=0)
    precision: Literal["bf16", "fp32"]
    logit_scale: Literal["base-model"] | Annotated[float, Field(gt=0)] = Field(
        description="factor of cosines in contrastive terms: a number, or the base model's own (OpenAI's: 100)"
    )
    lora: LoraSettings


class LossWeights(Settings):
    """Weights of the eight terms; they are normalised to sum 1.

    *preservation* terms act on safe inputs, *redirection* terms on unsafe ones; *cross* terms
    compare with the other modality's frozen embeddings.
    """

    preservation_text: float = Field(ge=0)
    preservation_image: float = Field(ge=0)
    preservation_cross_text: float = Field(ge=0)
    preservation_cross_image: float = Field(ge=0)
    redirection_text: float = Field(ge=0)
    redirection_image: float = Field(ge=0)
    redirection_cross_text: float = Field(ge=0)
    redirection_cross_image: float = Field(ge=0)

    @model_validator(mode="after")
    def _some_weight(self) -> LossWeights:
        if sum(self.model_dump().values()) == 0:
            raise ValueError("at least one weight must be above 0")
        return self


class MethodSettings(Settings):
    """One way of fine-tuning; ``methods`` in the config maps names to these."""

    targets: Literal["paired", "nearest"]
    cross_modal: Literal["infonce", "relative"]
    curriculum: Literal["none", "progressive"]
    learning_rate: float = Field(gt=0)
    weights: LossWeights


class PublishedModel(Settings):
    """A model that others have tuned: evaluated as it is, beside those that this run trains."""

    weights: BaseModelSettings


# Stand in the places of errors, never in a configuration.
KINDS_OF_METHOD: dict[str, type[Settings]] = {"(trained)": MethodSettings, "(published)": PublishedModel}


def _kind_of_method(value: Any) -> str:
    """Which of the two a method is meant to be: losses have weights, and so have models, but these have a source."""
    weights = value.get("weights") if isinstance(value, dict) else getattr(value, "weights", None)
    published = "source" in weights if isinstance(weights, dict) else isinstance(weights, BaseModelSettings)
    return "(published)" if published else "(trained)"


# DESIGN: `clip: {}` reads as "CLIP, with nothing done to it".
Method = Annotated[
    Annotated[
        Annotated[MethodSettings, Tag("(trained)")] | Annotated[PublishedModel, Tag("(published)")],
        Discriminator(_kind_of_method),
    ]
    | None,
    BeforeValidator(lambda value: None if value == {} else value),
]


class TrainingSettings(Settings):
    """All that one training run may depend on, besides its input files and its seed."""

    optimisation: OptimisationSettings
    method: MethodSettings


class SelectionSettings(Settings):
    """The one rule by which learning rates are chosen, the same for every method."""

    learning_rates: Distinct[Annotated[float, Field(gt=0)]]
    seed: int


class EvaluationSettings(Settings):
    """What is measured, and how its uncertainty is estimated."""

    benchmarks: Distinct[Literal["test", "nsfw_caps", "gallery", "zero_shot", "drift"]]
    batch_size: Positive
    block_size: Positive = Field(description="queries compared with the gallery at once")
    bootstrap: Positive = Field(description="resamples for 95% intervals")
    bootstrap_seed: int


# As with methods, `none: {}` reads as "no guidance".
Guidance = Annotated[SafeGuidanceSettings | None, BeforeValidator(lambda value: None if value == {} else value)]


class TextToImageSettings(Settings):
    """Images that a diffusion model makes with each method's text encoder, and how many of them are unsafe."""

    prompts: Download = Field(description="table of prompts in I2P's format")
    limit: Positive | None = Field(None, description="prompts used, spread over the table; default: all")
    images_per_prompt: Positive
    diffusion: DiffusionSettings = Field(description="its guidance is for prompts that do not bring their own")
    guidance: dict[RunName, Guidance] = Field(min_length=1, description="safe guidance to compare, by names of yours")
    judges: ImageFilterSettings
    keep_images: Literal["none", "unflagged", "all"] = Field(description="images in the results: they may be harmful")
    bootstrap: Positive = Field(description="resamples for 95% intervals")
    bootstrap_seed: int

    def only(self, guidance: str) -> TextToImageSettings:
        """The settings with one guidance; raises ConfigError for one that does not exist."""
        if guidance not in self.guidance:
            raise ConfigError(f"there is no guidance '{guidance}'; choose one of: {', '.join(self.guidance)}")
        return self.model_copy(update={"guidance": {guidance: self.guidance[guidance]}})


class ToxicitySettings(Settings):
    """A transformers classifier of text."""

    model: Download
    label: str = Field(description="the classifier's label whose probability is a text's toxicity")
    threshold: Share = Field(description="a text is toxic from this probability on")
    batch_size: Positive


class ImageToTextSettings(Settings):
    """What LLaVA says about unsafe images through each method's image encoder, and how toxic that is."""

    model: Download = Field(description="LLaVA in transformers' format")
    positions: Literal["exact", "interpolate"] = Field(
        description="where the method's images have another resolution than LLaVA's: refuse, or resize the table of "
        "positions"
    )
    test_images: Annotated[int, Field(ge=0)] = Field(description="unsafe images of the test quadruples, at most")
    folders: dict[RunName, Download] = Field(description="folders of unsafe images, by names of yours")
    folder_images: Positive = Field(description="images of each folder, at most")
    prompt: str = Field(description="LLaVA's form of a conversation, with <image> and {question}")
    questions: Some[str] = Field(description="each is asked of each image")
    max_new_tokens: Positive
    precision: Literal["bf16", "fp16", "fp32"]
    batch_size: Positive = Field(description="questions answered at once")
    toxicity: ToxicitySettings
    keep_answers: Literal["none", "harmless", "all"] = Field(description="answers in the results: they may be harmful")
    bootstrap: Positive = Field(description="resamples for 95% intervals")
    bootstrap_seed: int

    @model_validator(mode="after")
    def _usable(self) -> ImageToTextSettings:
        if not self.test_images and not self.folders:
            raise ValueError("no images: set 'test_images' above 0, or name 'folders'")
        if "test" in self.folders:
            raise ValueError("no folder can be called 'test'; choose another name")
        if self.prompt.count("<image>") != 1 or self.prompt.count("{question}") != 1:
            raise ValueError("'prompt' must hold <image> and {question}, once each")
        return self


class GenerationSettings(Settings):
    """Generation with the tuned encoders, for each method's first seed; off where the section is missing."""

    text_to_image: TextToImageSettings | None = None
    image_to_text: ImageToTextSettings | None = None

    @property
    def steps(self) -> list[str]:
        """Names of the steps that this run has."""
        return [name for name in type(self).model_fields if getattr(self, name)]


class FigureSettings(Settings):
    """How figures and tables look, and what they show."""

    formats: Distinct[Literal["pdf", "png"]]
    dpi: Positive
    palette: str = Field(description="seaborn palette; 'colorblind' is the safe choice")
    examples: Positive = Field(description="queries shown in the retrieval grid")
    title: str | None = Field(None, description="how the data set is called; default: the run's title")
    runs: dict[RunName, tuple[int, ...]] | None = Field(
        None, description="methods to show, with their seeds; default: all of the run"
    )


class CostSettings(Settings):
    """What work is assumed to cost, for the estimate that a run begins with and for nothing else."""

    gpu: str = Field(description="what the seconds are those of")
    train_rows: Positive = Field(description="training quadruples, which are counted only after the download")
    held_out_rows: Positive = Field(description="validation quadruples, and as many test quadruples")
    zero_shot_images: Positive = Field(description="images of a zero-shot set, on average")
    prompts: Positive = Field(description="prompts of the text-to-image evaluation")
    encoded_per_second: float = Field(gt=0, description="images encoded")
    trained_per_second: float = Field(gt=0, description="quadruples trained on")
    seconds_per_unsafe_image: float = Field(ge=0, description="of unsafe_images and benchmark, judged too")
    seconds_per_edit: float = Field(ge=0, description="of a caption, by a language model on this machine")
    seconds_per_image: float = Field(ge=0, description="of text_to_image, judged too")
    seconds_per_answer: float = Field(ge=0, description="of image_to_text")
    image_megabytes: float = Field(ge=0, description="size of an image in a table")
    model_gigabytes: float = Field(ge=0, description="size of a trained model")
    download_gigabytes: dict[RunName, float] = Field(description="sizes that the table of downloads does not say")


class ExportSettings(Settings):
    """What a model card says of a run that its files do not, and what is exported."""

    licence: str | None = Field(
        None, description="of the exported weights, as the hub calls it, such as cc-by-nc-4.0; default: not stated"
    )
    formats: Distinct[Literal["open_clip", "transformers", "diffusers"]] | None = Field(
        None, description="default: all that can express the architecture"
    )
    title: str | None = Field(None, description="how the training data are called; default: the run's title")
    base_model: str | None = Field(None, description="where the base model came from; default: the run's source")


class Config(Settings):
    """A whole run."""

    name: RunName = Field(description="outputs go to results/<name>/")
    title: str = Field(description="how the data set is called in tables and figures")
    seeds: Distinct[int] = Field(description="each trained method is run once with each")
    downloads: DownloadSettings | None = None
    data: DataSettings
    test_sets: SetSettings | None = None
    base_model: BaseModelSettings
    base_model_training: BaseModelTrainingSettings | None = None
    benchmark: BenchmarkSettings | None = None
    mining: MiningSettings
    optimisation: OptimisationSettings
    methods: dict[RunName, Method]
    selection: SelectionSettings
    evaluation: EvaluationSettings
    generation: GenerationSettings | None = None
    figures: FigureSettings
    export: ExportSettings | None = None
    costs: CostSettings | None = None

    @field_validator("methods")
    @classmethod
    def _only_clip_untuned(cls, methods: dict[str, Method]) -> dict[str, Method]:
        untuned = [name for name, settings in methods.items() if settings is None]
        if untuned != ["clip"]:
            others = [name for name in untuned if name != "clip"]
            advice = f"; say how these are trained: {', '.join(others)}" if others else ""
            raise ValueError(f"must hold 'clip: {{}}', the untuned model every table compares with{advice}")
        return methods

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        problems = list(self._contradictions())
        if problems:
            raise ValueError("; also, ".join(problems))
        return self

    def _contradictions(self) -> Iterable[str]:
        """Sections that are right in themselves but do not go together."""
        if "nsfw_caps" in self.evaluation.benchmarks and self.benchmark is None:
            yield "evaluation.benchmarks names 'nsfw_caps', so the section 'benchmark' must be given"
        yield from self._contradictions_of_sets({"gallery", "zero_shot"} & set(self.evaluation.benchmarks))
        drawn = self.benchmark is not None and self.benchmark.source == "embedded"
        if self.data.source != "embedded" and drawn and "nsfw_caps" in self.evaluation.benchmarks:
            yield (
                "evaluation.benchmarks names ['nsfw_caps'], which benchmark.source 'embedded' draws in the embedded "
                f"world; leave it out where data.source is '{self.data.source}', or set benchmark.source to 'release' "
                "or 'nocaps'"
            )
        visu = self.data.visu if self.data.source == "visu" else None
        if visu and visu.unsafe_images is None and visu.missing_images == "refuse":
            yield (
                "data.visu.unsafe_images is not given, so that all unsafe images are withheld; set "
                "data.visu.missing_images to 'keep' to use rows for their captions, or have the images made"
            )
        if visu and self.downloads is None:
            yield "data.source is 'visu', so the section 'downloads' must be given"
        for method, seeds in (self.figures.runs or {}).items():
            if method not in self.methods or not set(seeds) <= set(self.seeds_of(method)):
                yield f"figures.runs names '{method}' with seeds {list(seeds)}, which this run does not have"

    def _contradictions_of_sets(self, named: set[str]) -> Iterable[str]:
        """Benchmarks that need test sets which this run does not have or cannot draw."""
        if not named:
            return
        if self.test_sets is None:
            yield "evaluation.benchmarks names 'gallery' or 'zero_shot', so the section 'test_sets' must be given"
        elif self.test_sets.source == "embedded" and self.data.source != "embedded":
            yield (
                f"evaluation.benchmarks names {sorted(named)}, which test_sets.source 'embedded' draws in the embedded "
                f"world; leave them out where data.source is '{self.data.source}', or set test_sets.source to 'public'"
            )
        elif missing := sorted(named - self.test_sets.benchmarks):
            yield f"evaluation.benchmarks names {missing}, for which test_sets.public names no sets"

    def training(self, method: str) -> TrainingSettings:
        """Settings of one method's training; raises ConfigError for an unknown, untuned or published one."""
        settings = self.methods.get(method)
        if not isinstance(settings, MethodSettings):
            raise ConfigError(f"method '{method}' is not trained; choose one of: {', '.join(self.trained)}")
        return TrainingSettings(optimisation=self.optimisation, method=settings)

    def published(self, method: str) -> BaseModelSettings:
        """Where a published model comes from; raises ConfigError for a method that is none."""
        settings = self.methods.get(method)
        if not isinstance(settings, PublishedModel):
            raise ConfigError(f"method '{method}' is not a published model; write 'weights: {{source: ...}}' for one")
        return settings.weights

    @property
    def trained(self) -> list[str]:
        """Methods that this run trains: neither the untuned model nor published ones."""
        return [name for name, settings in self.methods.items() if isinstance(settings, MethodSettings)]

    def figure_settings(self) -> FigureSettings:
        """What figures and tables depend on: their section, with the run's title, methods and seeds filled in."""
        runs = self.figures.runs or {method: self.seeds_of(method) for method in self.methods}
        return self.figures.model_copy(update={"title": self.figures.title or self.title, "runs": runs})

    def export_settings(self) -> ExportSettings:
        """What an export depends on: its section, with the run's title and base model filled in."""
        settings = self.export or ExportSettings.model_validate({})
        known = {"title": settings.title or self.title, "base_model": settings.base_model or self.base_model.source}
        return settings.model_copy(update=known)

    def section(self, step: str, method: str | None = None) -> Settings:
        """The settings of one step.

        Raises ConfigError for a step that does not exist or that this run does not have.
        """
        embedded = self.data.embedded
        sections: dict[str, Settings | None] = {
            "data": self._data_step(),
            "unsafe_images": self._unsafe_images(),
            "test_sets": self._sets_step(),
            "base_model_training": self.base_model_training,
            "base_model": self.base_model,
            "published_model": self.published(method) if method and step == "published_model" else None,
            "benchmark": self.benchmark,
            "benchmark_images": self._benchmark_images(),
            "scene_detail": embedded.detail if embedded else None,
            "embedding": self.mining,
            "mining": self.mining,
            "training": self.training(method) if method and step == "training" else None,
            "evaluation": self.evaluation,
            "export": self.export_settings(),
            "text_to_image": self.generation and self.generation.text_to_image,
            "image_to_text": self.generation and self.generation.image_to_text,
            "figure": self.figure_settings(),
            "table": self.figure_settings(),
        }
        if step not in sections:
            raise ConfigError(f"there is no step '{step}'; choose one of: {', '.join(sections)}")
        section = sections[step]
        if section is None:
            missing = (
                "name a method" if step in ("training", "published_model") else f"'{self.name}' has no settings for it"
            )
            raise ConfigError(f"step '{step}': {missing}")
        return section

    def settings_of(self, step: str, method: str | None = None) -> str:
        """The settings of one step as JSON, in one form whatever the file's notation was; raises as ``section``."""
        return json.dumps(self.section(step, method).model_dump(mode="json"), sort_keys=True)

    def downloads_of(self, step: str, method: str | None = None) -> dict[str, Path]:
        """What a step needs from elsewhere: name in ``downloads.table`` to the place on disk."""
        names = downloads_of(self.section(step, method))
        if names and self.downloads is None:
            raise ConfigError(f"{names[0]} is to be downloaded, so the section 'downloads' must be given")
        return {name: self.downloads.path(name) for name in names} if self.downloads else {}

    def _sets_step(self) -> SetsStep | None:
        if self.test_sets is None:
            return None
        if self.test_sets.source == "public":
            return SetsStep(public=self.test_sets.public)
        if self.data.embedded is None or self.test_sets.embedded is None:
            return None
        world, sizes = self.data.embedded, self.test_sets.embedded
        return SetsStep(embedded=MiniSets(seed=world.seed, detail=world.detail, **sizes.model_dump()))

    def _benchmark_images(self) -> BenchmarkImages | None:
        if self.benchmark is None or self.benchmark.source == "embedded":
            return None
        chosen = {self.benchmark.source: getattr(self.benchmark, self.benchmark.source)}
        return BenchmarkImages(size=self.benchmark.size, seed=self.benchmark.seed, **chosen)

    def _data_step(self) -> DataSettings:
        """Without how unsafe images are made: the step that makes them is given that."""
        if self.data.visu is None:
            return self.data
        return self.data.model_copy(update={"visu": self.data.visu.model_copy(update={"unsafe_images": None})})

    def _unsafe_images(self) -> UnsafeImages | None:
        visu = self.data.visu
        if self.data.source != "visu" or visu is None or visu.unsafe_images is None:
            return None
        # By field, not by value, or nested sections would lose which of their fields were given.
        captions = {name: getattr(visu, name) for name in VisuText.model_fields}
        return UnsafeImages(**captions, **dict(visu.unsafe_images))

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """Seeds that a method is run with: one that is not trained here has nothing to repeat."""
        return self.seeds if method in self.trained else self.seeds[:1]


def downloads_of(section: Settings | None) -> list[str]:
    """Names of all downloads that a section speaks of, at whatever depth, sorted."""
    return sorted(set(_downloads(section)))


def _downloads(value: Any) -> Iterable[str]:
    """Names of downloads in a section, or in sections within lists and mappings."""
    if isinstance(value, Settings):
        yield from value.named_downloads()
        for name, field in type(value).model_fields.items():
            inner = getattr(value, name)
            if any(isinstance(mark, _Downloaded) for mark in _marks(field)):
                yield from (
                    [inner] if isinstance(inner, str) else inner.values() if isinstance(inner, dict) else inner or ()
                )
            else:
                yield from _downloads(inner)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _downloads(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _downloads(inner)


def _marks(field: Any) -> Iterable[Any]:
    """Annotations of a field and of its type's arguments: those of ``Download`` in ``dict[str, Download]``."""
    yield from field.metadata
    queue = [field.annotation]
    while queue:
        kind = queue.pop()
        yield from getattr(kind, "__metadata__", ())
        queue += get_args(kind)


def load(path: Path) -> Config:
    """Read and validate a run's configuration file.

    Raises ConfigError listing every problem with its key and what would be right.
    """
    return validate(read(path), origin=str(path))


def read(path: Path) -> Any:
    """Read a configuration file as plain values; raises ConfigError, also for a repeated key."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


class _UniqueKeys(yaml.SafeLoader):
    """Reads YAML but refuses a repeated key, of which PyYAML silently takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def validate(values: Any, origin: str = "config") -> Config:
    """Validate settings that were already read, for example by Snakemake."""
    return parse(Config, values, origin)


def parse(section: type[SectionT], values: Any, origin: str) -> SectionT:
    """Build one section from plain values, or raise ConfigError naming every wrong key."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = [f"  {_explain(section, problem)}" for problem in error.errors()]
        raise ConfigError("\n".join([f"{origin}: {len(lines)} problem(s) in the settings", *lines])) from error


def parse_settings(section: type[SectionT], text: str) -> SectionT:
    """Build one section from JSON text, as rules pass it on the command line."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--settings: not JSON: {error}") from error
    return parse(section, values, "--settings")


# What to write instead, by pydantic's error type; for the others its own message will do.
ADVICE = {
    "int_type": "write a whole number",
    "int_parsing": "write a whole number",
    "int_from_float": "write a whole number",
    "float_type": "write a number",
    "float_parsing": "write a number",
    "string_type": "write text; quotes make text of a number",
    "path_type": "write a path",
    "tuple_type": "write a list, as in [a, b]",
    "dict_type": "write a section: 'key: value' lines",
    "model_type": "write a section: 'key: value' lines",
    "string_pattern_mismatch": "use small letters, digits, '.', '_' and '-', beginning with a letter or digit",
}


def _explain(section: type[Settings], problem: Any) -> str:
    """Say which key is wrong, why, and what to write instead."""
    location = tuple(part for part in problem["loc"] if part != "[key]")
    key = _dotted(tuple(part for part in location if part not in KINDS_OF_METHOD))
    found = repr(problem["input"])
    found = f"(found: {found if len(found) <= 60 else found[:57] + '...'})"
    known = _fields_at(section, location[:-1])
    match problem["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(str(location[-1]), known, n=1)
            advice = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(known))}"
            return f"{key}: unknown key; {advice}"
        case "invalid_key":
            return f"{key}: not the name of a setting; known keys: {', '.join(sorted(known))}"
        case "missing":
            description = known[str(location[-1])].description
            return f"{key}: missing; add it" + (f" ({description})" if description else "")
        case "literal_error":
            choices = [choice.strip("'") for choice in problem["ctx"]["expected"].replace(" or ", ", ").split(", ")]
            near = difflib.get_close_matches(str(problem["input"]), choices, n=1)
            advice = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(choices)}"
            return f"{key}: {advice} {found}"
        case "value_error":
            return f"{key}: {problem['msg'].removeprefix('Value error, ')}"
        case kind:
            return f"{key}: {ADVICE.get(kind, problem['msg'].replace('Input should', 'must'))} {found}"


def _dotted(location: tuple[str | int, ...]) -> str:
    """A location as one would say it: phases[0].samples."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".") or "(top level)"


def _fields_at(section: type[Settings], path: tuple[str | int, ...]) -> dict[str, Any]:
    """Fields of the section that ``path`` leads to, through optional sections, lists and mappings."""
    current: Any = section
    for part in path:
        if part in KINDS_OF_METHOD:
            current = KINDS_OF_METHOD[str(part)]
            continue
        fields = _fields(current)
        # In a list or mapping the last type argument, but for the dots of tuple[x, ...], is the item's.
        items = [kind for kind in get_args(current) if kind is not Ellipsis]
        current = _bare(fields[str(part)].annotation if part in fields else items[-1] if items else None)
    return _fields(current)


def _fields(kind: Any) -> dict[str, Any]:
    return dict(kind.model_fields) if isinstance(kind, type) and issubclass(kind, Settings) else {}


def _bare(annotation: Any) -> Any:
    """An annotation without ``Annotated`` and ``| None``."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not NoneType)
    return annotation
