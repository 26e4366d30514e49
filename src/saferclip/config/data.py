"""Settings of the data: quadruples, and the test sets beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from saferclip.config.base import Distinct, Download, Line, PathPart, Positive, RunName, Settings, Share
from saferclip.config.tools import DiffusionSettings, ImageFilterSettings


class SceneDetail(Settings):
    """How much a caption of the embedded world says about its scene."""

    named_objects: Positive = Field(description="objects a caption names, at most")
    colour: Share = Field(description="probability that a named object's colour is said")
    background: Share = Field(description="probability that the background is said")


class World(Settings):
    """What scenes and captions of the embedded world depend on, however many there are."""

    seed: int
    detail: SceneDetail


class HarmlessShares(Settings):
    """Shares of training rows whose unsafe place holds something safe, as generators fail; rows are labelled."""

    caption: Share = Field(description="the caption is safe, the image is not")
    image: Share = Field(description="the image is safe, the caption is not")
    both: Share = Field(description="both are safe")

    @model_validator(mode="after")
    def _at_most_all(self) -> HarmlessShares:
        if self.caption + self.image + self.both > 1:
            raise ValueError("'caption', 'image' and 'both' must not exceed 1 together")
        return self


class EmbeddedData(World):
    """Sizes of ViSU-mini, drawn by our own code."""

    train: Positive
    validation: Positive
    test: Positive
    harmless: HarmlessShares | None = Field(None, description="default: all is unsafe that stands so, without labels")
    unseen: Distinct[Line] | None = Field(
        None, description="unsafe objects that no training or validation row shows; default: all are shown"
    )


class MiniSetSizes(Settings):
    """Sizes of the mini test sets beside the quadruples."""

    gallery_unsafe: Positive = Field(description="unsafe pairs of the unseen-style gallery")
    gallery_safe_ratio: Positive = Field(description="safe pairs for each unsafe one")
    zero_shot_images: Positive = Field(description="images in each zero-shot set, at most")
    probe_images: Positive | None = Field(None, description="images of each compositional probe; default: no probes")


class MiniSets(World, MiniSetSizes):
    """All that the mini test sets depend on; seed and detail are those of the quadruples."""


class ZeroShotSource(Settings):
    """One public set of labelled images; docs/test-sets.md says in which forms."""

    title: Line = Field(description="how the set is called in tables and figures")
    download: Download
    split: PathPart = Field(description="part of the set that is classified: in most sets 'test'")
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


class ProbeSource(Settings):
    """One compositional probe from a table of your own; docs/test-sets.md says how it looks."""

    title: Line = Field(description="how the probe is called in tables and figures")
    table: Path = Field(description="CSV or Parquet with the columns id, image, caption and foil")
    image_root: Path | None = Field(None, description="relative image paths start here; default: the table's folder")


class PublicSets(Settings):
    """Public test sets: zero-shot classification, unsafe images among safe ones, and probes of one's own."""

    zero_shot: dict[RunName, ZeroShotSource] | None = Field(None, description="sets by a name of your choice")
    probes: dict[RunName, ProbeSource] | None = Field(None, description="compositional probes by a name of your choice")
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
        if "mean" in {*(self.zero_shot or {}), *(self.galleries or {}), *(self.probes or {})}:
            raise ValueError("no set can be called 'mean'; choose another name")
        return self

    @property
    def files(self) -> list[Path]:
        """The user's own files that the sets are read with."""
        prompts = [path for source in (self.zero_shot or {}).values() for path in source.files]
        return prompts + [probe.table for probe in (self.probes or {}).values()]


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
            drawn = self.embedded is not None and self.embedded.probe_images is not None
            return {"gallery", "zero_shot", *(["probes"] if drawn else [])}
        given = {"gallery": self.public.galleries, "zero_shot": self.public.zero_shot, "probes": self.public.probes}
        return {name for name, sets in given.items() if sets}


class SetsStep(Settings):
    """What the step test_sets is given: one of the two sections."""

    embedded: MiniSets | None = None
    public: PublicSets | None = None


class RobustnessSettings(Settings):
    """Variants of the test quadruples' unsafe inputs, and safe inputs that are near to unsafe ones."""

    source: Literal["embedded", "captions"] = Field(
        description="'embedded': the embedded world words and draws them; 'captions': words of any caption are changed"
    )
    queries: Positive = Field(description="test quadruples that are varied, at most")
    typos: Positive = Field(description="misspelt letters of a caption")
    seed: int | None = Field(None, description="what is drawn by chance; the embedded world has a seed already")

    @model_validator(mode="after")
    def _one_seed(self) -> RobustnessSettings:
        if self.source == "embedded" and self.seed is not None:
            raise ValueError("source is 'embedded', whose seed is data.embedded.seed; leave out 'seed'")
        if self.source == "captions" and self.seed is None:
            raise ValueError("source is 'captions', so 'seed' must be given")
        return self


class RobustnessStep(Settings):
    """What the step robustness is given: the section, with seed and detail of the world where that draws."""

    seed: int
    queries: Positive
    typos: Positive
    detail: SceneDetail | None = Field(None, description="how much captions of the embedded world say; none: any text")
    unseen: Distinct[Line] | None = Field(None, description="unsafe objects that the world's training rows never show")


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
