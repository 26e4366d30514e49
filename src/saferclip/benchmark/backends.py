"""What the builder needs done, as small interfaces, and the embedded world's way of doing each.

Paper scale puts a language model, a diffusion model and learnt image filters behind the same ones. Captions, edits and
pictures flow one by one where they are asked for, so that the embedded world draws from one random stream in order; a
backend that works on many at once takes as many as it likes from the iterator that it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from saferclip import ethics, io
from saferclip.config import SceneDetail
from saferclip.data import embedded, iconworld
from saferclip.data.iconworld import Scene

FORBIDDEN = "forbidden"
NOT_UNSAFE = "image not unsafe"


@dataclass(frozen=True)
class Source:
    """A safe caption with its image, as NoCaps has them; without one where it could not be fetched."""

    caption: str
    image: bytes | None
    others: tuple[str, ...] = ()  # what else is said of the same image

    @property
    def captions(self) -> tuple[str, ...]:
        """All that is said of the image."""
        return (self.caption, *self.others)


@dataclass(frozen=True)
class Edit:
    """An unsafe version of a caption and the category that was chosen for it."""

    caption: str
    category: str


class Proposal(NamedTuple):
    """A caption and what its editor made of it: an edit, or the reason why there is none."""

    source: Source
    edit: Edit | None
    fault: str | None = None


@dataclass(frozen=True)
class Pair:
    """A proposal that has passed the filters of captions."""

    source: Source
    edit: Edit
    similarity: float

    @property
    def violation(self) -> str | None:
        """Why this pair must not be drawn or kept, or None."""
        return ethics.violation(self.source.captions, self.edit.caption, self.edit.category)

    @property
    def minor(self) -> str | None:
        """What in any of the captions could mean a minor, or None."""
        return ethics.minor_hint((*self.source.captions, self.edit.caption))


@dataclass(frozen=True)
class Picture:
    """A generated image; ``truth`` is known for drawn ones only."""

    image: bytes
    truth: Scene


class Illustration(NamedTuple):
    """A pair and its unsafe image, or the reason why it has none; ``tries`` counts the images made."""

    pair: Pair
    image: bytes | None
    tries: int
    fault: str | None = None


class SourceCaptions(Protocol):
    """Where safe captions come from."""

    def draw(self, rng: np.random.Generator) -> Source | None:
        """One more safe caption with its image; None if there are no more."""

    def report(self) -> dict[str, Any]:
        """What the datasheet says of them."""


class CaptionEditor(Protocol):
    """Makes captions unsafe with as small a change as possible."""

    def edit(self, sources: Iterable[Source], rng: np.random.Generator) -> Iterator[Proposal]:
        """For each caption in turn, choose a category that suits it and edit it into that."""

    def report(self) -> dict[str, Any]:
        """What the datasheet says of it: models, prompts, what became of its answers."""


class Illustrator(Protocol):
    """Makes images of unsafe captions and keeps those that are judged unsafe."""

    def illustrate(self, pairs: Iterable[Pair], rng: np.random.Generator) -> Iterator[Illustration]:
        """For each pair in turn, an unsafe image of its caption if one is found."""

    def report(self) -> dict[str, Any]:
        """What the datasheet says of it."""


class Similarity(Protocol):
    """Compares captions."""

    def compare(self, safe: Sequence[str], unsafe: Sequence[str]) -> np.ndarray:
        """Cosine similarity row by row, float array of shape (n,)."""

    def report(self) -> dict[str, Any]:
        """What the datasheet says of it."""


class ImageMaker(Protocol):
    """Draws a caption; sees nothing but the caption."""

    def make(self, caption: str, rng: np.random.Generator) -> Picture:
        """One image for the caption."""


class SafetyFilter(Protocol):
    """Judges images."""

    def is_unsafe(self, picture: Picture) -> bool:
        """Whether something unsafe can be seen."""


@dataclass(frozen=True)
class NovelScenes:
    """Scenes that show at least one object ViSU-mini never shows, and name it: NoCaps' role."""

    detail: SceneDetail

    def draw(self, rng: np.random.Generator) -> Source:
        novel, common = iconworld.novel_concepts(), iconworld.common_concepts()
        detail = embedded.caption_detail(self.detail)
        while True:
            named = novel[int(rng.integers(len(novel)))]
            scene = iconworld.sample_scene(rng, common, always=[named])
            caption = iconworld.describe(scene, rng, detail)
            if named in [concept for concept, _ in iconworld.parse(caption).objects]:
                return Source(caption, embedded.jpeg(scene))

    def report(self) -> dict[str, Any]:
        return {"captions": "scenes drawn at random, with at least one object that ViSU-mini never shows"}


class GrammarEditor:
    """Edits through the grammar of IconWorld's captions: one object replaced or added."""

    def edit(self, sources: Iterable[Source], rng: np.random.Generator) -> Iterator[Proposal]:
        for source in sources:
            categories = ethics.offered(iconworld.categories(), source.captions)
            category = categories[int(rng.integers(len(categories)))]
            yield Proposal(source, Edit(iconworld.minimal_edit(source.caption, category, rng), category))

    def report(self) -> dict[str, Any]:
        return {"kind": "grammar of the embedded world's captions"}


class IconMaker:
    """Draws scenes in the style that stands for a diffusion model's, with its omissions."""

    def make(self, caption: str, rng: np.random.Generator) -> Picture:
        extras = (*iconworld.common_concepts(), *iconworld.novel_concepts())
        scene = next(embedded.attempts(caption, rng, extras, "generated"))
        return Picture(io.encode_jpeg(iconworld.render(scene)), scene)


class SceneTruth:
    """Knows what was drawn: an unsafe object, at least half of it visible."""

    def is_unsafe(self, picture: Picture) -> bool:
        return embedded.shows_unsafe(picture.truth)


@dataclass(frozen=True)
class Drawn:
    """Draws each caption until the filter finds the image unsafe, ``candidates`` times at most."""

    candidates: int
    maker: ImageMaker = field(default_factory=IconMaker)
    safety_filter: SafetyFilter = field(default_factory=SceneTruth)

    def illustrate(self, pairs: Iterable[Pair], rng: np.random.Generator) -> Iterator[Illustration]:
        for pair in pairs:
            yield Illustration(pair, None, 0, FORBIDDEN) if pair.violation else self._draw(pair, rng)

    def _draw(self, pair: Pair, rng: np.random.Generator) -> Illustration:
        for tries in range(1, self.candidates + 1):
            picture = self.maker.make(pair.edit.caption, rng)
            if self.safety_filter.is_unsafe(picture):
                return Illustration(pair, picture.image, tries)
        return Illustration(pair, None, self.candidates, NOT_UNSAFE)

    def report(self) -> dict[str, Any]:
        return {"kind": "icons", "judged_by": "what was drawn"}


class Unillustrated:
    """Makes no images: rows say that the unsafe one is missing."""

    def illustrate(self, pairs: Iterable[Pair], rng: np.random.Generator) -> Iterator[Illustration]:  # noqa: ARG002
        for pair in pairs:
            yield Illustration(pair, None, 0, FORBIDDEN if pair.violation else None)

    def report(self) -> dict[str, Any]:
        return {"kind": "none"}


@dataclass(frozen=True)
class Backends:
    """Everything exchangeable about the construction."""

    sources: SourceCaptions
    editor: CaptionEditor
    illustrator: Illustrator
    similarity: Similarity

    def report(self) -> Mapping[str, Any]:
        """What the datasheet says of all parts."""
        return {name: part.report() for name, part in vars(self).items()}
