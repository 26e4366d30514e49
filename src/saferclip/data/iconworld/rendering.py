"""Pixels from a scene: cached sprites laid on cached backdrops.

One formula serves every drawing style. A sprite is three maps, 0..1, premultiplied by coverage:
`cover` (how much of what lies behind is hidden), `tint` (how much of the object's colour is added) and
`light` (how much white is added), so that

    canvas = canvas * (1 - cover) + colour * tint + 255 * light.

Sprites come from a few sizes and angles per icon, so after a while no font is touched any more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from saferclip.data.iconworld import backdrops, sprites
from saferclip.data.iconworld.scenes import COLOURS, MOST_OBJECTS, Scene
from saferclip.data.iconworld.sprites import Sprite, Style, sprite
from saferclip.data.iconworld.vocabulary import concept

REFERENCE_SIZE = 64  # pixels for which the sizes and slots below are given
_MARGIN = sprites.MARGIN  # the canvas is wider by this, so that sprites may reach over the edge

# Per number of objects: the icons' sizes and the centres of their slots, in pixels of 64. The
# slots are turned and mirrored at random, so that no object has a place of its own.
_SIZES = {1: (42, 47, 52), 2: (30, 32, 34), 3: (26, 28, 30), 4: (25, 26, 28)}
_SLOTS = {
    1: ((32, 32),),
    2: ((17, 25), (47, 39)),
    3: ((16, 17), (48, 19), (32, 47)),
    4: ((16, 16), (48, 16), (16, 48), (48, 48)),
}
_JITTER = {1: 5.0, 2: 3.0, 3: 2.0, 4: 1.5}
_ANGLES = (-10, 0, 10)


@dataclass(frozen=True)
class Placement:
    """Where one object goes: top left corner (row, column) of its icon on the image, in pixels."""

    row: int
    column: int
    size: int
    angle: int
    mirrored: bool


@cache
def _slots(count: int) -> NDArray[np.float64]:
    """All eight turned and mirrored versions of the slots, shape (8, count, 2)."""
    centres = np.array(_SLOTS[count], dtype=float) - 32
    turns = []
    for _ in range(4):
        centres = centres @ np.array([[0.0, 1.0], [-1.0, 0.0]])
        turns += [centres, centres * (1, -1)]
    return np.stack(turns) + 32


def layout(scene: Scene, size: int = REFERENCE_SIZE) -> tuple[Placement, ...]:
    """Where each object of the scene lies on an image of `size` pixels; a function of the scene alone."""
    return _layout(len(scene.objects), np.random.default_rng(scene.layout_seed), size)


def _layout(count: int, rng: np.random.Generator, size: int) -> tuple[Placement, ...]:
    if not 1 <= count <= MOST_OBJECTS:
        raise ValueError(f"a scene holds 1 to {MOST_OBJECTS} objects, not {count}")
    draws = rng.random(1 + 5 * count).tolist()
    slots = _slots(count)[int(draws[0] * 8)].tolist()
    order = sorted(range(count), key=lambda i: draws[1 + 5 * i])
    scale = size / REFERENCE_SIZE
    placements = []
    for i in range(count):
        _, down, across, which, turn = draws[1 + 5 * i : 6 + 5 * i]
        side = round(_SIZES[count][int(which * 3)] * scale)
        angle = _ANGLES[int(turn * 3)]
        corner = [
            centre * scale + (2 * shift - 1) * _JITTER[count] * scale - side / 2
            for centre, shift in zip(slots[order[i]], (down, across), strict=True)
        ]
        row, column = (min(max(round(edge), 0), size - side) for edge in corner)
        placements.append(Placement(row, column, side, angle, mirrored=turn * 3 % 1 < 0.5))
    return tuple(placements)


def render(scene: Scene, size: int = REFERENCE_SIZE) -> NDArray[np.uint8]:
    """The image of a scene, uint8, shape (size, size, 3); a function of its arguments alone."""
    rng = np.random.default_rng(scene.layout_seed)
    placements = _layout(len(scene.objects), rng, size)
    style = sprites.style(scene.style)
    mood = rng.random(3).tolist()  # backdrop, brightness, grain
    brightness = 1.0 + style.variation * (mood[1] - 0.5)
    behind = backdrops.backdrop(scene.background, scene.style, mood[0], size + 2 * _MARGIN)
    canvas: NDArray[np.float32] = np.multiply(behind, np.float32(brightness), dtype=np.float32)
    for item, place in zip(scene.objects, placements, strict=True):
        colour = COLOURS[item.colour]
        drawing = sprite(
            _glyph(item.concept, style),
            scene.style,
            place.size,
            place.angle if style.tilts else 0,
            style.is_bright(item.colour),
        )
        _paint(canvas, drawing, place, colour, brightness)
    image = canvas[_MARGIN : _MARGIN + size, _MARGIN : _MARGIN + size]
    return _FINISHES.get(scene.style, _plain)(image, mood[2])


def _glyph(name: str, style: Style) -> str:
    """The icon with which a style draws an object."""
    thing = concept(name)
    return thing.alternative or thing.glyph if style.other_icons else thing.glyph


def _paint(
    canvas: NDArray[np.float32],
    drawing: Sprite,
    place: Placement,
    colour: tuple[int, int, int],
    brightness: float,
) -> None:
    maps = drawing[:, :, ::-1] if place.mirrored else drawing
    behind, tint, light = np.multiply(maps, np.float32(1 / 255), dtype=np.float32)[..., None]
    rows = slice(place.row, place.row + len(behind))
    columns = slice(place.column, place.column + len(behind))
    spot = canvas[rows, columns]
    spot *= behind
    spot += tint * np.array(colour, dtype=np.float32) * np.float32(brightness)
    spot += light * np.float32(255)


def visible_fraction(scene: Scene) -> tuple[float, ...]:
    """For each object the share of its ink that no later object covers, 0..1."""
    style = sprites.style(scene.style)
    hidden = np.zeros((REFERENCE_SIZE, REFERENCE_SIZE), dtype=bool)
    shares = []
    pairs = zip(scene.objects, layout(scene), strict=True)
    for item, place in reversed(tuple(pairs)):
        angle = place.angle if style.tilts else 0
        ink = sprites.ink(_glyph(item.concept, style), place.size, angle)
        ink = ink[:, ::-1] if place.mirrored else ink
        spot = hidden[place.row : place.row + place.size, place.column : place.column + place.size]
        shares.append(1.0 - float((ink & spot).sum()) / max(1, int(ink.sum())))
        spot |= ink
    return tuple(reversed(shares))


def _plain(image: NDArray[np.float32], _: float) -> NDArray[np.uint8]:
    return np.clip(image, 0, 255).astype(np.uint8)


@cache
def _grain(size: int) -> NDArray[np.float32]:
    """Fixed film grain, twice as wide as an image so that any window of it can be cut out."""
    noise = np.random.default_rng(0).normal(0, 5.0, (2 * size, 2 * size, 1))
    return noise.astype(np.float32)


def _grainy(image: NDArray[np.float32], where: float) -> NDArray[np.uint8]:
    size = len(image)
    offset = int(where * size)
    image += _grain(size)[offset : offset + size, size - offset : 2 * size - offset]
    return _plain(image, where)


@cache
def _grout(size: int) -> NDArray[np.float32]:
    """Darkening of the joints between tiles two pixels wide, shape (size, size, 1)."""
    across = np.where(np.arange(size) % 4 == 3, 0.86, 1.0)
    return (across[:, None] * across)[..., None].astype(np.float32)


def _tiled(image: NDArray[np.float32], _: float) -> NDArray[np.uint8]:
    size = len(image)
    even = size - size % 2
    cells = image[:even, :even]
    tiles = cells[::2, ::2] + cells[1::2, ::2] + cells[::2, 1::2] + cells[1::2, 1::2]
    # Few tones, as of glazed stones: 12 steps between black and white.
    tiles = np.rint(tiles * np.float32(12 / 1020)) * np.float32(255 / 12)
    wide = np.repeat(np.repeat(tiles, 2, axis=0), 2, axis=1)
    if even != size:
        wide = np.pad(wide, ((0, 1), (0, 1), (0, 0)), mode="edge")
    return _plain(wide * _grout(size), 0)


_FINISHES: dict[str, Callable[[NDArray[np.float32], float], NDArray[np.uint8]]] = {
    "photo": _grainy,
    "mosaic": _tiled,
}
