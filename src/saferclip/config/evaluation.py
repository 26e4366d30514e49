"""Settings of what is measured, generated, drawn and estimated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from saferclip.config.base import ConfigError, Distinct, Download, Line, Positive, RunName, Settings, Share, Some
from saferclip.config.tools import DiffusionSettings, ImageFilterSettings, SafeGuidanceSettings


class EvaluationSettings(Settings):
    """What is measured, and how its uncertainty is estimated."""

    benchmarks: Distinct[
        Literal["test", "nsfw_caps", "gallery", "zero_shot", "drift", "geometry", "probes", "robustness"]
    ]
    batch_size: Positive
    block_size: Positive = Field(description="queries compared with the gallery at once")
    neighbours: Positive | None = Field(
        None, description="nearest safe inputs whose overlap before and after 'geometry' measures (SAGE: 15)"
    )
    bootstrap: Positive = Field(description="resamples for 95% intervals")
    bootstrap_seed: int

    @model_validator(mode="after")
    def _neighbours_of_geometry(self) -> EvaluationSettings:
        if "geometry" in self.benchmarks and self.neighbours is None:
            raise ValueError("'benchmarks' names 'geometry', so 'neighbours' must be given; SAGE takes 15")
        return self


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


class BudgetSettings(Settings):
    """How trade-off curves are summed up."""

    budgets: Distinct[Annotated[float, Field(gt=0)]] = Field(
        description="losses of zero-shot accuracy, in points, at which methods are compared; the area ends at the last"
    )

    @field_validator("budgets")
    @classmethod
    def _ascending(cls, budgets: tuple[float, ...]) -> tuple[float, ...]:
        if list(budgets) != sorted(budgets):
            raise ValueError("must ascend")
        return budgets


class DifferenceSettings(Settings):
    """Which methods are compared with which one."""

    reference: RunName = Field(description="the method whose values are subtracted")
    groups: dict[Line, Distinct[RunName]] = Field(min_length=1, description="the others, under titles of yours")
    others: Literal["everywhere", "here"] = Field(
        description="which figures and tables show the others: if they are many, 'here' alone"
    )


class FigureSettings(Settings):
    """How figures and tables look, and what they show."""

    formats: Distinct[Literal["pdf", "png"]]
    dpi: Positive
    palette: str = Field(description="seaborn palette; 'colorblind' is the safe choice")
    examples: Positive = Field(description="queries shown in the retrieval grid")
    resamples: Positive = Field(
        description="bootstrap resamples behind each test of a claim or a difference; no p is below 2 / (resamples + 1)"
    )
    title: Line | None = Field(None, description="how the data set is called; default: the run's title")
    runs: dict[RunName, tuple[int, ...]] | None = Field(
        None, description="methods to show, with their seeds; default: all of the run"
    )
    tradeoff: BudgetSettings | None = Field(None, description="how curves are summed up; default: section 'tradeoff'")
    differences: DifferenceSettings | None = Field(None, description="of the figure and the table of that name")


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
    pixels_megabytes: float = Field(ge=0, description="size of an image that is decoded for training")
    model_gigabytes: float = Field(ge=0, description="size of a trained model")
    download_gigabytes: dict[RunName, float] = Field(description="sizes that the table of downloads does not say")
