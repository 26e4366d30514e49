"""Compositional probes of the embedded world: images with their caption and a foil that differs in one respect.

Caption and foil are worded alike and speak of the same objects, so that a model that reads captions as bags of words
cannot tell them apart, except in the control.  The grammar has no words for relations or order that an image could
prove wrong, so there is no probe of these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from saferclip.config import MiniSets
from saferclip.data import embedded, iconworld
from saferclip.data.iconworld import Scene, SceneObject
from saferclip.data.iconworld.captions import word
from saferclip.data.iconworld.grammar import NounPhrase, Sentence
from saferclip.data.iconworld.scenes import MOST_OBJECTS, pick_distinct, random_background, random_layout_seed

STYLE = "photo"
COUNTS = (2, 3, 4)  # as many as are told by a number word
VISIBLE = 0.5  # share of each object that later ones leave to be seen, at least


@dataclass(frozen=True)
class Statement:
    """What a caption says of an image, and what its foil says instead."""

    objects: tuple[SceneObject, ...]
    caption: Sentence
    foil: Sentence


@dataclass(frozen=True)
class Probe:
    """One probe: how it is called in tables, and how its statements are made."""

    title: str
    statement: Callable[[np.random.Generator], Statement]
    control: bool = False  # tells whether the words are known, not how they are put together


def rows(settings: MiniSets) -> list[dict[str, Any]]:
    """Rows of probes.parquet: as many of each probe as the settings say; images are JPEG bytes."""
    return [row for name in PROBES for row in _rows(settings, name)]


def describe() -> dict[str, dict[str, Any]]:
    """What probes.json says of each probe."""
    return {name: {"title": probe.title, "control": probe.control} for name, probe in PROBES.items()}


def _rows(settings: MiniSets, name: str) -> list[dict[str, Any]]:
    # By name, so that adding a probe leaves the images of the others as they are.
    rng = np.random.default_rng([settings.seed, embedded.STREAMS["probes"], *name.encode()])
    return [_row(rng, number, name) for number in range(settings.probe_images or 0)]


def _row(rng: np.random.Generator, number: int, name: str) -> dict[str, Any]:
    statement, scene = seen(rng, PROBES[name].statement)
    return {
        "probe": name,
        "id": f"{name}-{number:05d}",
        "caption": statement.caption.text(),
        "foil": statement.foil.text(),
        "image": embedded.jpeg(scene),
    }


def seen(rng: np.random.Generator, draw: Callable[[np.random.Generator], Statement]) -> tuple[Statement, Scene]:
    """A statement with a scene that shows all its objects, drawn anew until at least half of each can be seen."""
    while True:
        statement = draw(rng)
        order = rng.permutation(len(statement.objects))
        objects = tuple(statement.objects[place] for place in order)
        scene = Scene(objects, random_background(rng), STYLE, random_layout_seed(rng))
        if min(iconworld.visible_fraction(scene)) >= VISIBLE:
            return statement, scene


def _coloured(rng: np.random.Generator, change: Callable[[list[str]], list[str]], colours: int) -> Statement:
    """Two objects in two colours; the foil gives them those that ``change`` makes of all that are drawn."""
    names = pick_distinct(rng, _objects(), 2)
    drawn = pick_distinct(rng, tuple(iconworld.COLOURS), colours)
    things = tuple(SceneObject(name, colour) for name, colour in zip(names, drawn, strict=False))
    said = word(tuple(NounPhrase(thing.concept, thing.colour) for thing in things), None, rng)
    wrong = tuple(replace(item, colour=colour) for item, colour in zip(said.objects, change(drawn), strict=True))
    return Statement(things, said, replace(said, objects=wrong))


def _swapped_colours(rng: np.random.Generator) -> Statement:
    """A red cat and a blue dog, not a blue cat and a red dog."""
    return _coloured(rng, lambda drawn: drawn[::-1], 2)


def _other_colour(rng: np.random.Generator) -> Statement:
    """A red cat and a blue dog, not a green cat and a blue dog."""
    return _coloured(rng, lambda drawn: [drawn[2], drawn[1]], 3)


def _count(rng: np.random.Generator) -> Statement:
    """Three cats, not two."""
    name = pick_distinct(rng, _countable(), 1)[0]
    right, wrong = (COUNTS[place] for place in rng.permutation(len(COUNTS))[:2])
    colour = pick_distinct(rng, tuple(iconworld.COLOURS), 1)[0]
    said = word((NounPhrase(name, count=right),), None, rng)
    return Statement(
        (SceneObject(name, colour),) * right, said, replace(said, objects=(NounPhrase(name, count=wrong),))
    )


def _swapped_counts(rng: np.random.Generator) -> Statement:
    """A cat and two dogs, not two cats and a dog."""
    names = pick_distinct(rng, _countable(), 2)
    many = int(rng.integers(2, MOST_OBJECTS))
    counts = (1, many) if rng.random() < 0.5 else (many, 1)
    colours = pick_distinct(rng, tuple(iconworld.COLOURS), 2)
    things = tuple(
        SceneObject(name, colour)
        for name, colour, count in zip(names, colours, counts, strict=True)
        for _ in range(count)
    )
    said = word(tuple(NounPhrase(name, count=count) for name, count in zip(names, counts, strict=True)), None, rng)
    wrong = tuple(NounPhrase(name, count=count) for name, count in zip(names, counts[::-1], strict=True))
    return Statement(things, said, replace(said, objects=wrong))


def _objects() -> tuple[str, ...]:
    return (*iconworld.common_concepts(), *iconworld.novel_concepts())


def _countable() -> tuple[str, ...]:
    """Objects that have a singular: "some scissors" may be one or many."""
    return tuple(name for name in _objects() if not iconworld.concept(name).plural_only)


PROBES = {
    "colour_binding": Probe("Which colour goes with which object", _swapped_colours),
    "count_binding": Probe("Which number goes with which object", _swapped_counts),
    "counting": Probe("How many", _count),
    "colours": Probe("Which colours (control)", _other_colour, control=True),
}
