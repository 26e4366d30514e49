"""Typed settings: the only reader of YAML, and the only home of what a setting may be.

A run is described by one file, for example ``config/mini.yaml``.  Every stage receives its own
section and nothing else, so that a change elsewhere cannot affect it.  Unknown keys are refused
with the nearest known key; all problems of a file are listed at once.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator


class ConfigError(Exception):
    """A setting is missing, unknown or out of range; the message names the key and the remedy."""


class Settings(BaseModel):
    """Base of every section: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SectionT = TypeVar("SectionT", bound=Settings)
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
RunName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]


class SceneDetail(Settings):
    """How much a caption of the embedded world says about its scene."""

    named_objects: Positive = Field(description="objects a caption names, at most")
    colour: Share = Field(description="probability that a named object's colour is said")
    background: Share = Field(description="probability that the background is said")


class EmbeddedData(Settings):
    """Sizes of ViSU-mini and of the mini test sets, drawn by our own code."""

    seed: int
    train: Positive
    validation: Positive
    test: Positive
    detail: SceneDetail
    gallery_unsafe: Positive = Field(description="unsafe pairs of the unseen-style gallery")
    gallery_safe_ratio: Positive = Field(description="safe pairs for each unsafe one")
    zero_shot_images: Positive = Field(description="images in each zero-shot set, at most")


class LocalData(Settings):
    """One table of quadruples for each split: CSV or Parquet with paths to the images."""

    train: Path
    validation: Path
    test: Path
    image_root: Path | None = Field(None, description="relative image paths start here; default: the table's folder")


class DataSettings(Settings):
    source: Literal["embedded", "local"]
    embedded: EmbeddedData | None = None
    local: LocalData | None = None

    @model_validator(mode="after")
    def _section_of_source(self) -> DataSettings:
        if getattr(self, self.source) is None:
            raise ValueError(f"source is '{self.source}', so the section '{self.source}' must be given")
        return self


class BaseModelSettings(Settings):
    """The CLIP to fine-tune."""

    source: str = Field(
        description="'dvc:<folder>' (a versioned artifact of this repository), 'local-dir:<folder>' "
        "(open_clip format), or '<architecture>/<pretrained tag>' of open_clip"
    )


class TrainingPhase(Settings):
    """One stage of base model training."""

    captions: Literal["full", "default"] = Field(description="'full' names everything in the scene")
    samples: Positive = Field(description="image-caption pairs seen")
    learning_rate: float = Field(gt=0)
    single_object_share: Share = Field(description="scenes with one object or several copies of it")


class BaseModelTrainingSettings(Settings):
    """How the delivered base model of the mini scale was made."""

    architecture: dict[str, Any] = Field(description="open_clip model_cfg")
    seed: int
    batch_size: Positive
    detail: SceneDetail
    phases: tuple[TrainingPhase, ...]
    weight_decay: float = Field(ge=0)
    precision: Literal["bf16", "fp32"]


class BenchmarkSettings(Settings):
    """NSFW-Caps construction: choose a category, edit minimally, draw, filter."""

    size: Positive
    seed: int
    editor: Literal["grammar"]
    image_maker: Literal["icons"]
    similarity: Literal["base-model"]
    safety_filter: Literal["scene-truth"]
    min_similarity: float = Field(ge=-1, le=1, description="reject edits that change too much")
    max_similarity: float = Field(ge=-1, le=1, description="reject edits that change nothing visible")
    candidates: Positive = Field(description="images tried for one unsafe caption")


class MiningSettings(Settings):
    block_size: Positive = Field(description="rows of one similarity block; memory is its square")
    batch_size: Positive = Field(description="inputs encoded at once")


class LoraSettings(Settings):
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


# DESIGN: `clip: {}` reads as "CLIP, with nothing done to it".
Method = Annotated[MethodSettings | None, BeforeValidator(lambda value: value or None)]


class TrainingSettings(Settings):
    """All that one training run may depend on, besides its input files and its seed."""

    optimisation: OptimisationSettings
    method: MethodSettings


class SelectionSettings(Settings):
    """The one rule by which learning rates are chosen, the same for every method."""

    learning_rates: tuple[float, ...]
    seed: int


class EvaluationSettings(Settings):
    benchmarks: tuple[Literal["test", "nsfw_caps", "gallery", "zero_shot", "drift"], ...]
    batch_size: Positive
    block_size: Positive = Field(description="queries compared with the gallery at once")
    bootstrap: Positive = Field(description="resamples for 95% intervals")
    bootstrap_seed: int


class FigureSettings(Settings):
    formats: tuple[Literal["pdf", "png"], ...]
    dpi: Positive
    palette: str = Field(description="seaborn palette; 'colorblind' is the safe choice")
    examples: Positive = Field(description="queries shown in the retrieval grid")
    title: str | None = Field(None, description="how the data set is called; default: the run's title")
    runs: dict[RunName, tuple[int, ...]] | None = Field(
        None, description="methods to show, in this order, with their seeds; default: all of the run"
    )


class Config(Settings):
    """A whole run."""

    name: RunName = Field(description="outputs go to results/<name>/")
    title: str = Field(description="how the data set is called in tables and figures")
    seeds: tuple[int, ...] = Field(min_length=1)
    data: DataSettings
    base_model: BaseModelSettings
    base_model_training: BaseModelTrainingSettings | None = None
    benchmark: BenchmarkSettings | None = None
    mining: MiningSettings
    optimisation: OptimisationSettings
    methods: dict[RunName, Method]
    selection: SelectionSettings
    evaluation: EvaluationSettings
    figures: FigureSettings

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if "clip" not in self.methods or self.methods["clip"] is not None:
            raise ValueError("methods must hold 'clip: {}', the untuned model every table compares with")
        if "nsfw_caps" in self.evaluation.benchmarks and self.benchmark is None:
            raise ValueError("evaluation.benchmarks names 'nsfw_caps', so the section 'benchmark' must be given")
        embedded_only = {"nsfw_caps", "gallery", "zero_shot"} & set(self.evaluation.benchmarks)
        if self.data.source != "embedded" and embedded_only:
            raise ValueError(
                f"evaluation.benchmarks names {sorted(embedded_only)}, which are drawn by the embedded world; "
                f"leave them out where data.source is '{self.data.source}'"
            )
        for method, seeds in (self.figures.runs or {}).items():
            if method not in self.methods or not set(seeds) <= set(self.seeds_of(method)):
                raise ValueError(
                    f"figures.runs names '{method}' with seeds {list(seeds)}, which this run does not have"
                )
        return self

    def training(self, method: str) -> TrainingSettings:
        """Settings of one method's training; raises ConfigError for an unknown or untuned one."""
        settings = self.methods.get(method)
        if settings is None:
            tuned = ", ".join(name for name, value in self.methods.items() if value)
            raise ConfigError(f"method '{method}' is not trained; choose one of: {tuned}")
        return TrainingSettings(optimisation=self.optimisation, method=settings)

    def figure_settings(self) -> FigureSettings:
        """What figures and tables depend on: their section, with the run's title, methods and seeds filled in."""
        runs = self.figures.runs or {method: self.seeds_of(method) for method in self.methods}
        return self.figures.model_copy(update={"title": self.figures.title or self.title, "runs": runs})

    def settings_of(self, step: str, method: str | None = None) -> str:
        """The settings of one step as JSON, in one form whatever the file's notation was.

        Raises ConfigError for a step that does not exist or that this run does not have.
        """
        embedded = self.data.embedded
        sections: dict[str, Settings | None] = {
            "data": self.data,
            "test_sets": embedded,
            "base_model_training": self.base_model_training,
            "base_model": self.base_model,
            "benchmark": self.benchmark,
            "scene_detail": embedded.detail if embedded else None,
            "embedding": self.mining,
            "mining": self.mining,
            "training": self.training(method) if method and step == "training" else None,
            "evaluation": self.evaluation,
            "figure": self.figure_settings(),
            "table": self.figure_settings(),
        }
        if step not in sections:
            raise ConfigError(f"there is no step '{step}'; choose one of: {', '.join(sections)}")
        section = sections[step]
        if section is None:
            missing = "name a method" if step == "training" else f"'{self.name}' has no settings for it"
            raise ConfigError(f"step '{step}': {missing}")
        return json.dumps(section.model_dump(mode="json"), sort_keys=True)

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """Seeds that a method is run with: an untuned one has nothing to repeat."""
        return self.seeds if self.methods[method] else self.seeds[:1]


def load(path: Path) -> Config:
    """Read and validate a run's configuration file.

    Raises ConfigError listing every problem with its key and what would be right.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return validate(values, origin=str(path))


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


def _explain(section: type[Settings], problem: Any) -> str:
    """Say which key is wrong, why, and what to write instead."""
    location = problem["loc"]
    key = ".".join(str(part) for part in location) or "(top level)"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(section, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        advice = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {advice}"
    if problem["type"] == "missing":
        return f"{key}: missing; add it"
    return f"{key}: {problem['msg']} (found: {problem['input']!r})"


def _known_keys(section: type[Settings], path: tuple[Any, ...]) -> list[str]:
    """Keys that are allowed in the section that ``path`` leads to."""
    current: Any = section
    for part in path:
        if isinstance(current, type) and issubclass(current, Settings):
            current = current.model_fields[part].annotation if part in current.model_fields else None
        # Anything else is a container or union (a methods mapping, a tuple, an optional section).
        current = next((kind for kind in _unfold(current) if _is_section(kind)), None)
    return sorted(current.model_fields) if _is_section(current) else []


def _unfold(annotation: Any) -> list[Any]:
    """An annotation and everything inside its brackets."""
    return [annotation, *(inner for part in get_args(annotation) for inner in _unfold(part))]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)
