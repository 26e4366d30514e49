"""What the builder needs done, as small interfaces, and the embedded world's way of doing each.

Paper scale puts a language model, a diffusion model and learnt image filters behind the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from saferclip import io
from saferclip.config import SceneDetail
from saferclip.data import embedded, iconworld
from saferclip.data.iconworld import Scene


@dataclass(frozen=True)
class Source:
    """A safe caption with its image, as NoCaps has them."""

    caption: str
    image: bytes


@dataclass(frozen=True)
class Edit:
    """An unsafe version of a caption and the category that was chosen for it."""

    caption: str
    category: str


@dataclass(frozen=True)
class Picture:
    """A generated image; ``truth`` is known for drawn ones only."""

    image: bytes
    truth: Scene


class SourceCaptions(Protocol):
    """Where safe captions come from."""

    def draw(self, rng: np.random.Generator) -> Source:
        """One more safe caption with its image."""


class CaptionEditor(Protocol):
    """Makes a caption unsafe with as small a change as possible."""

    def edit(self, caption: str, rng: np.random.Generator) -> Edit:
        """Choose a category that suits the caption and edit the caption into it."""


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


class GrammarEditor:
    """Edits through the grammar of IconWorld's captions: one object replaced or added."""

    def edit(self, caption: str, rng: np.random.Generator) -> Edit:
        categories = iconworld.categories()
        category = categories[int(rng.integers(len(categories)))]
        return Edit(iconworld.minimal_edit(caption, category, rng), category)


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
