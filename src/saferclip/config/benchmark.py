"""Settings of NSFW-Caps: the release, or its construction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from saferclip.config.base import Distinct, Download, PathPart, Positive, Settings, Share
from saferclip.config.tools import DiffusionSettings, ImageFilterSettings


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

    prompts: PathPart = Field(description="version of the prompts, a folder in src/saferclip/benchmark/prompts")
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
