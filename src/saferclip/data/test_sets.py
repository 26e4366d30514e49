"""Test sets of the embedded world beside the quadruples: zero-shot classification, unsafe gallery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from saferclip import io
from saferclip.config import EmbeddedData
from saferclip.data import embedded, iconworld
from saferclip.data.iconworld import Detail, Scene

# The style of the unseen-style gallery: like real photographs of unsafe things at paper scale, no
# training set of any method shows it.
GALLERY_STYLE = "neon"

OBJECT_TEMPLATES = ("a photo of {}", "a picture of {}", "an image of {}", "there is {}", "a scene with {}")


def build(settings: EmbeddedData, output: Path) -> None:
    """Write gallery.parquet, zero_shot.parquet and zero_shot.json (classes and prompt templates)."""
    io.write_table(output / "gallery.parquet", _gallery(settings))
    sets = zero_shot_sets()
    rows = [row for number, task in enumerate(sets) for row in _zero_shot_rows(settings, number, task)]
    io.write_table(output / "zero_shot.parquet", rows)
    io.write_json(
        output / "zero_shot.json",
        {task.name: {"title": task.title, "classes": task.phrases, "templates": task.templates} for task in sets},
    )


def _gallery(settings: EmbeddedData) -> list[dict[str, Any]]:
    safe = settings.gallery_unsafe * settings.gallery_safe_ratio
    return [
        *embedded.draw(_gallery_unsafe, settings, "gallery_unsafe", settings.gallery_unsafe),
        *embedded.draw(_gallery_safe, settings, "gallery_safe", safe),
    ]


def _gallery_safe(rng: np.random.Generator, number: int, detail: Detail) -> dict[str, Any]:
    scene = iconworld.sample_scene(rng, iconworld.common_concepts(), style=GALLERY_STYLE)
    caption = iconworld.describe(scene, rng, detail)
    return {"id": f"safe-{number:05d}", "unsafe": False, "caption": caption, "image": embedded.png(scene)}


def _gallery_unsafe(rng: np.random.Generator, number: int, detail: Detail) -> dict[str, Any]:
    """An unsafe scene as such, not an edit of a safe one: nothing safe is paired with it."""
    common, unsafe = iconworld.common_concepts(), iconworld.unsafe_concepts()
    named = unsafe[int(rng.integers(len(unsafe)))]
    scene = iconworld.sample_scene(rng, common, always=[named], style=GALLERY_STYLE)
    while not embedded.shows_unsafe(scene):
        scene = iconworld.sample_scene(rng, common, always=[named], style=GALLERY_STYLE)
    caption = iconworld.describe(scene, rng, detail)
    while not iconworld.unsafe_concepts_in(caption):
        caption = iconworld.describe(scene, rng, detail)
    return {"id": f"unsafe-{number:05d}", "unsafe": True, "caption": caption, "image": embedded.png(scene)}


@dataclass(frozen=True)
class ZeroShotSet:
    """One classification task: a scene for each class, and how prompts name the classes."""

    name: str
    title: str
    labels: Sequence[Any]
    phrases: list[str]
    scene: Callable[[np.random.Generator, Any], Scene]
    templates: Sequence[str] = OBJECT_TEMPLATES


def zero_shot_sets() -> list[ZeroShotSet]:
    """The nine mini sets, named after what varies between their classes."""
    common, novel = iconworld.common_concepts(), iconworld.novel_concepts()
    groups = iconworld.groups()
    colours, backgrounds = tuple(iconworld.COLOURS), iconworld.BACKGROUNDS
    everything = (*common, *novel)
    return [
        _object_set("objects", "Objects", common, "photo"),
        _object_set("novel_objects", "Novel objects", novel, "photo"),
        _object_set("sketches", "Sketches", everything, "sketch"),
        _object_set("stickers", "Stickers", everything, "sticker"),
        _object_set("mosaics", "Mosaics", everything, "mosaic"),
        _object_set("icon_set", "Other icons", _with_alternative(everything), "icon set"),
        ZeroShotSet(
            "colours",
            "Colours",
            colours,
            [f"a {colour} object" if colour != "orange" else "an orange object" for colour in colours],
            partial(_colour_scene, everything),
        ),
        ZeroShotSet(
            "backgrounds",
            "Backgrounds",
            backgrounds,
            [iconworld.background_phrase(background) for background in backgrounds],
            partial(_background_scene, everything),
        ),
        ZeroShotSet("counts", "Counts", (1, 2, 3, 4), [], partial(_count_scene, everything)),
    ]
