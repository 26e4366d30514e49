"""What a scene is, and how one is drawn at random. Nothing here makes pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Clearly distinct under every drawing style; RGB 0..255.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (216, 36, 40),
    "orange": (255, 138, 20),
    "yellow": (252, 222, 48),
    "green": (36, 158, 60),
    "blue": (36, 88, 222),
    "purple": (138, 58, 186),
    "pink": (255, 142, 196),
    "brown": (122, 74, 36),
    "black": (22, 22, 26),
    "white": (250, 250, 250),
}

BACKGROUNDS = (
    "grass",
    "snow",
    "sand",
    "night",
    "brick wall",
    "wooden floor",
    "blue sky",
    "checkered paper",
)

# "photo" stands for real images, "generated" for a diffusion model's; the base model sees all
# of these, and no training set ever shows the held-out ones.
STYLES = ("photo", "generated", "sketch", "sticker", "mosaic")
HELD_OUT_STYLES = ("neon", "icon set")

MOST_OBJECTS = 4


@dataclass(frozen=True)
class SceneObject:
    """One icon in one colour."""

    concept: str
    colour: str


@dataclass(frozen=True)
class Scene:
    """All that decides an image; later objects lie over earlier ones."""

    objects: tuple[SceneObject, ...]
    background: str
    style: str
    layout_seed: int

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the objects, in drawing order."""
        return tuple(item.concept for item in self.objects)


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def pick_distinct(rng: np.random.Generator, items: Sequence[str], count: int) -> list[str]:
    """`count` different items; by rejection, as Generator.choice is slow for few of many."""
    if count > len(items):
        raise ValueError(f"cannot pick {count} different objects from {len(items)}")
    picked: list[str] = []
    while len(picked) < count:
        item = _pick(rng, items)
        if item not in picked:
            picked.append(item)
    return picked


def random_colour(rng: np.random.Generator) -> str:
    """One of COLOURS."""
    return _pick(rng, tuple(COLOURS))


def random_background(rng: np.random.Generator) -> str:
    """One of BACKGROUNDS."""
    return _pick(rng, BACKGROUNDS)


def random_layout_seed(rng: np.random.Generator) -> int:
    """A seed for positions, sizes, angles and textures."""
    return int(rng.integers(2**31))


def sample_scene(
    rng: np.random.Generator,
    concepts: Sequence[str],
    *,
    objects: tuple[int, int] = (2, 3),
    style: str = "photo",
    always: Sequence[str] = (),
    background: str | None = None,
) -> Scene:
    """A random scene of different objects.

    concepts: names to draw from; objects: least and greatest number of objects, at most 4;
    always: names that must be in it; background: fixed, or drawn.
    """
    count = max(int(rng.integers(objects[0], objects[1] + 1)), len(always))
    rest = [name for name in concepts if name not in always] if always else concepts
    names = [*always, *pick_distinct(rng, rest, count - len(always))]
    if always:
        names = [names[i] for i in rng.permutation(count)]
    return Scene(
        objects=tuple(SceneObject(name, random_colour(rng)) for name in names),
        background=background or random_background(rng),
        style=style,
        layout_seed=random_layout_seed(rng),
    )


def count_scene(
    rng: np.random.Generator,
    concept: str,
    count: int,
    *,
    style: str = "photo",
    colour: str | None = None,
    background: str | None = None,
) -> Scene:
    """A scene of `count` (1..4) copies of one object in one colour, for counting tasks."""
    if not 1 <= count <= MOST_OBJECTS:
        raise ValueError(f"a scene holds 1 to {MOST_OBJECTS} objects, not {count}")
    copy = SceneObject(concept, colour or random_colour(rng))
    return Scene(
        objects=(copy,) * count,
        background=background or random_background(rng),
        style=style,
        layout_seed=random_layout_seed(rng),
    )
