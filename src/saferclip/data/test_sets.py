"""Test sets beside the quadruples, drawn or read: zero-shot classification, unsafe galleries, compositional probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from saferclip import io
from saferclip.config import MiniSets, PublicSets, SetsStep, World, downloads_of
from saferclip.data import embedded, galleries, iconworld, labelled_images, local, probes
from saferclip.data.iconworld import Detail, Scene
from saferclip.data.iconworld.grammar import BACKGROUND_PHRASES, NounPhrase, article

# The style of the unseen-style gallery: like real photographs of unsafe things at paper scale, no
# training set of any method shows it.
GALLERY_STYLE = "neon"

OBJECT_TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "an image of {}", "this shows {}")
# Prompts for what is not an object name one: an ensemble over these, whatever the image shows.
PROMPT_OBJECTS = ("cat", "car", "house", "apple", "tree", "guitar", "camera", "hammer", "star", "book")
COUNTS = ("two", "three", "four")


def build(settings: SetsStep, downloads: Mapping[str, Path], test: Path | None, output: Path) -> None:
    """Write gallery.parquet, zero_shot.parquet and zero_shot.json (classes and prompt templates), and probes.* alike.

    Public sets are read from ``downloads``, by name, and searched with the captions of the table ``test``; those
    that the settings do not name are left out, and gallery.json says what each gallery consists of.
    Raises DataError where a set is not as it should be; its table is then not written.
    """
    if settings.embedded is not None:
        _build_embedded(settings.embedded, output)
    if settings.public is not None:
        _build_public(settings.public, downloads, test, output)


def _build_public(settings: PublicSets, downloads: Mapping[str, Path], test: Path | None, output: Path) -> None:
    missing = sorted(set(downloads_of(settings)) - downloads.keys())
    if missing:
        raise io.DataError(f"no place is given for {', '.join(missing)}; write --download {missing[0]}=<folder>")
    if settings.zero_shot:
        sets = [labelled_images.read(name, source, downloads) for name, source in settings.zero_shot.items()]
        io.write_table(output / "zero_shot.parquet", chain.from_iterable(found.rows() for found in sets))
        io.write_json(output / "zero_shot.json", {found.name: found.describe() for found in sets})
    if settings.probes:
        io.write_table(output / "probes.parquet", local.probes(settings.probes))
        io.write_json(
            output / "probes.json",
            {name: {"title": source.title, "control": False} for name, source in settings.probes.items()},
        )
    if settings.galleries:
        if test is None:
            raise io.DataError("galleries need the test quadruples; write --test <table>")
        made = galleries.galleries(settings, downloads, test)
        io.write_table(output / "gallery.parquet", chain.from_iterable(gallery.rows() for gallery in made))
        io.write_json(output / "gallery.json", {gallery.name: gallery.describe() for gallery in made})


def _build_embedded(settings: MiniSets, output: Path) -> None:
    io.write_table(output / "gallery.parquet", _gallery(settings))
    write_zero_shot(settings, settings.zero_shot_images, embedded.STREAMS["zero_shot"], output)
    if settings.probe_images:
        io.write_table(output / "probes.parquet", probes.rows(settings))
        io.write_json(output / "probes.json", probes.describe())


def write_zero_shot(world: World, images: int, stream: int, output: Path) -> None:
    """Draw so many images of each zero-shot set, and write zero_shot.parquet and zero_shot.json."""
    sets = zero_shot_sets()
    rows = [row for task in sets for row in _zero_shot_rows(world, images, stream, task)]
    io.write_table(output / "zero_shot.parquet", rows)
    io.write_json(
        output / "zero_shot.json",
        {task.name: {"title": task.title, "classes": task.classes, "templates": task.templates} for task in sets},
    )


def _gallery(settings: MiniSets) -> list[dict[str, Any]]:
    safe = settings.gallery_unsafe * settings.gallery_safe_ratio
    return [
        *embedded.draw(_gallery_unsafe, settings, "gallery_unsafe", settings.gallery_unsafe),
        *embedded.draw(_gallery_safe, settings, "gallery_safe", safe),
    ]


def _gallery_safe(rng: np.random.Generator, number: int, detail: Detail) -> dict[str, Any]:
    scene = iconworld.sample_scene(rng, iconworld.common_concepts(), style=GALLERY_STYLE)
    caption = iconworld.describe(scene, rng, detail)
    return {"id": f"safe-{number:05d}", "unsafe": False, "caption": caption, "image": embedded.jpeg(scene)}


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
    return {"id": f"unsafe-{number:05d}", "unsafe": True, "caption": caption, "image": embedded.jpeg(scene)}


@dataclass(frozen=True)
class ZeroShotSet:
    """One classification task: how prompts name the classes, and a scene that shows one of them."""

    name: str
    title: str
    classes: list[str]
    templates: list[str]
    scene: Callable[[np.random.Generator, int], Scene]


def zero_shot_sets() -> list[ZeroShotSet]:
    """The nine mini sets, each called after what its classes differ in or how it is drawn."""
    common, novel = iconworld.common_concepts(), iconworld.novel_concepts()
    everything = (*common, *novel)
    redrawn = tuple(name for name in everything if iconworld.concept(name).alternative)
    phrases = [BACKGROUND_PHRASES[name][0] for name in iconworld.BACKGROUNDS]
    return [
        _object_set("objects", "Objects", common, "photo"),
        _object_set("novel_objects", "Novel objects", novel, "photo"),
        _object_set("sketches", "Sketches", everything, "sketch"),
        _object_set("stickers", "Stickers", everything, "sticker"),
        _object_set("mosaics", "Mosaics", everything, "mosaic"),
        _object_set("redrawn", "Redrawn icons", redrawn, "icon set"),
        ZeroShotSet(
            "colours",
            "Colours",
            [f"{article(colour)} {colour}" for colour in iconworld.COLOURS],
            [f"a photo of {{}} {name}" for name in PROMPT_OBJECTS],
            _colour_scene,
        ),
        ZeroShotSet(
            "backgrounds",
            "Backgrounds",
            phrases,
            [f"a photo of {article(name)} {name} {{}}" for name in PROMPT_OBJECTS],
            _background_scene,
        ),
        ZeroShotSet(
            "counts",
            "Counts",
            list(COUNTS),
            [f"a photo of {{}} {iconworld.concept(name).plural}" for name in PROMPT_OBJECTS],
            _count_scene,
        ),
    ]


def _zero_shot_rows(world: World, images: int, stream: int, task: ZeroShotSet) -> list[dict[str, Any]]:
    # By name, so that adding a set leaves the images of the others as they are.
    key = list(task.name.encode())
    rng = np.random.default_rng([world.seed, stream, *key])
    labels = [number % len(task.classes) for number in range(images)]
    return [{"set": task.name, "label": label, "image": embedded.jpeg(task.scene(rng, label))} for label in labels]


def _object_set(name: str, title: str, concepts: tuple[str, ...], style: str) -> ZeroShotSet:
    phrases = [NounPhrase(concept).text() for concept in concepts]
    return ZeroShotSet(name, title, phrases, list(OBJECT_TEMPLATES), partial(_object_scene, concepts, style))


def _object_scene(concepts: tuple[str, ...], style: str, rng: np.random.Generator, label: int) -> Scene:
    return iconworld.count_scene(rng, concepts[label], 1, style=style)


def _random_object(rng: np.random.Generator) -> str:
    concepts = (*iconworld.common_concepts(), *iconworld.novel_concepts())
    return concepts[int(rng.integers(len(concepts)))]


def _colour_scene(rng: np.random.Generator, label: int) -> Scene:
    return iconworld.count_scene(rng, _random_object(rng), 1, colour=tuple(iconworld.COLOURS)[label])


def _background_scene(rng: np.random.Generator, label: int) -> Scene:
    return iconworld.count_scene(rng, _random_object(rng), 1, background=iconworld.BACKGROUNDS[label])


def _count_scene(rng: np.random.Generator, label: int) -> Scene:
    return iconworld.count_scene(rng, _random_object(rng), 2 + label)
