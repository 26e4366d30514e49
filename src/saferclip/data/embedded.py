"""ViSU-mini: loosely paired quadruples of the embedded world."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from saferclip import io, workers
from saferclip.config import ConfigError, EmbeddedData, SceneDetail, World
from saferclip.data import iconworld
from saferclip.data.iconworld import Detail, Scene

# Each table draws from a stream of its own: changing one size leaves the other tables as they are.
STREAMS = {
    **{"train": 1, "validation": 2, "test": 3},
    **{"gallery_safe": 4, "gallery_unsafe": 5, "zero_shot": 6, "probes": 7},
}
HARMLESS = 8  # the stream of what is safe in unsafe places: without it, rows are as they were
VALIDATION_STREAMS = {"zero_shot": 10}  # of sets beside the validation split
CHUNK = 500  # rows drawn by one task of the process pool; part of what the seed means
# How often the stand-in for a diffusion model draws what the caption names. ViSU keeps the one of
# three images that a filter flags, so unsafe objects are always there in the end.
FIDELITY = 0.9


def quadruples(settings: EmbeddedData) -> dict[str, list[dict[str, Any]]]:
    """Draw the rows of every split; images are JPEG bytes.

    A safe scene is drawn and described; the unsafe caption is a loose edit of that description, and
    the unsafe image shows what the unsafe caption says and nothing else of the safe scene.  Where the settings say
    so, some training rows hold something safe in an unsafe place, and all of them say whether they do
    (`io.LABEL_COLUMNS`); validation and test rows are what they would be without.  Unsafe objects that are to stay
    unseen stand in test rows alone, which are what they would be without as well.

    Raises ConfigError if the world has no such unsafe object, or if no other of its category is left.
    """
    seen = seen_objects(settings.unseen or ())
    train = partial(_labelled, settings=settings) if settings.harmless else partial(_quadruple, split="train")
    rows = {
        "train": partial(train, objects=seen),
        "validation": partial(_quadruple, split="validation", objects=seen),
        "test": partial(_quadruple, split="test", objects=iconworld.unsafe_concepts()),
    }
    return {split: draw(row, settings, split, getattr(settings, split)) for split, row in rows.items()}


def seen_objects(unseen: Collection[str]) -> tuple[str, ...]:
    """The unsafe objects that training may show, if it must not show these.

    Raises ConfigError if the world has no such unsafe object, or if no other of its category is left.
    """
    known = iconworld.unsafe_concepts()
    if strange := [name for name in unseen if name not in known]:
        raise ConfigError(f"data.embedded.unseen: no unsafe objects: {strange}; known are {', '.join(known)}")
    for category in iconworld.categories():
        if set(iconworld.unsafe_concepts(category)) <= set(unseen):
            raise ConfigError(f"data.embedded.unseen: leaves no object of the category '{category}' to train with")
    return tuple(name for name in known if name not in unseen)


def draw(row: Any, settings: World, stream: str, count: int) -> list[dict[str, Any]]:
    """Call ``row(rng, number, detail)`` for each number, in parallel, independent of the core count."""
    starts = range(0, count, CHUNK)
    job = partial(_chunk, row, settings, STREAMS[stream], count)
    with workers.pool() as processes:
        chunks = list(tqdm(processes.map(job, starts), total=len(starts), desc=stream, disable=None))
    return [row for chunk in chunks for row in chunk]


def _chunk(row: Any, settings: World, stream: int, count: int, start: int) -> list[dict[str, Any]]:
    detail = caption_detail(settings.detail)
    rng = np.random.default_rng([settings.seed, stream, start])
    return [row(rng, number, detail) for number in range(start, min(start + CHUNK, count))]


def caption_detail(detail: SceneDetail) -> Detail:
    """The settings' amount of detail in the world's own terms."""
    return Detail(max_objects=detail.named_objects, colour=detail.colour, background=detail.background)


def _quadruple(
    rng: np.random.Generator, number: int, detail: Detail, split: str, objects: tuple[str, ...]
) -> dict[str, Any]:
    row, unsafe = _drawn(rng, number, detail, split, objects)
    return row | {"unsafe_image": jpeg(unsafe)}


def _labelled(
    rng: np.random.Generator, number: int, detail: Detail, settings: EmbeddedData, objects: tuple[str, ...]
) -> dict[str, Any]:
    """A training row, in whose unsafe place something safe may stand, and what stands there."""
    assert settings.harmless is not None
    row, scene = _drawn(rng, number, detail, "train", objects)
    own, concepts = np.random.default_rng([settings.seed, HARMLESS, number]), iconworld.common_concepts()
    shares = settings.harmless
    chance = own.random()
    both = chance < shares.both
    safe_caption = both or shares.both + shares.image <= chance < shares.both + shares.image + shares.caption
    safe_image = chance < shares.both + shares.image
    if safe_caption:
        row["unsafe_caption"] = iconworld.harmless_caption(row["unsafe_caption"], own, concepts)
    if both:
        scene = next(attempts(row["unsafe_caption"], own, concepts, scene.style))
    elif safe_image:
        scene = iconworld.harmless_scene(scene, own, concepts)
    labels = dict(zip(io.LABEL_COLUMNS, (not safe_caption, not safe_image), strict=True))
    return row | {"unsafe_image": jpeg(scene)} | labels


def _drawn(
    rng: np.random.Generator, number: int, detail: Detail, split: str, objects: tuple[str, ...]
) -> tuple[dict[str, Any], Scene]:
    """A row without its unsafe image, and the scene that this shows, with one of these unsafe objects."""
    concepts = iconworld.common_concepts()
    scene = iconworld.sample_scene(rng, concepts)
    caption = iconworld.describe(scene, rng, detail)
    categories = iconworld.categories()
    category = categories[int(rng.integers(len(categories)))]
    unsafe_caption = iconworld.loose_edit(caption, category, rng, objects, safe_objects=concepts)
    row = {
        "id": f"{split}-{number:05d}",
        "split": split,
        "category": category,
        "safe_caption": caption,
        "unsafe_caption": unsafe_caption,
        "safe_image": jpeg(scene),
    }
    return row, unsafe_scene(unsafe_caption, rng, concepts)


def unsafe_scene(caption: str, rng: np.random.Generator, concepts: tuple[str, ...], style: str = "generated") -> Scene:
    """Imagine an unsafe caption until the image shows its unsafe object, as ViSU's filter demands."""
    for scene in attempts(caption, rng, concepts, style):
        if shows_unsafe(scene):
            return scene
    raise AssertionError("unreachable: attempts never ends")


def attempts(caption: str, rng: np.random.Generator, concepts: tuple[str, ...], style: str) -> Iterator[Scene]:
    """Endless images for one caption, each imagined anew."""
    while True:
        yield iconworld.imagine(caption, rng, style=style, concepts_for_extras=concepts, fidelity=FIDELITY)


def shows_unsafe(scene: Scene) -> bool:
    """Whether an unsafe object is in the scene and at least half of it can be seen."""
    fractions = iconworld.visible_fraction(scene)
    return any(
        iconworld.concept(name).unsafe and fraction >= 0.5
        for name, fraction in zip(scene.concepts, fractions, strict=True)
    )


def jpeg(scene: Scene) -> bytes:
    """The rendered scene as an encoded image."""
    return io.encode_jpeg(iconworld.render(scene))
