"""How each drawing style draws one icon: three cached maps per icon, size and angle."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from saferclip.data.iconworld.fonts import mask
from saferclip.data.iconworld.scenes import COLOURS

MARGIN = 5  # pixels around an icon for halo, border, shadow or glow

Map = NDArray[np.floating[Any]]  # (side, side), 0..1
Sprite = NDArray[np.uint8]  # (3, side, side): 255 x (1 - cover, tint, light)
Maps = tuple[Map, Map, Map]  # cover, tint, light; tint and light premultiplied by coverage


@dataclass(frozen=True)
class Style:
    """One way of drawing. `bright_from` is the luminance (0..1) from which an object's colour
    is set off by a dark edge instead of a light one; `variation` is the range of brightness."""

    draw: Callable[[Map, bool], Maps]
    bright_from: float
    tilts: bool = False
    variation: float = 0.0
    other_icons: bool = False

    def is_bright(self, colour: str) -> bool:
        """Whether this style sets `colour` off by a dark edge."""
        return luminance(colour) >= self.bright_from


def luminance(colour: str) -> float:
    """Perceived lightness of a named colour, 0..1."""
    red, green, blue = COLOURS[colour]
    return (0.3 * red + 0.59 * green + 0.11 * blue) / 255


def _grown(shape: Map, pixels: int) -> Map:
    """The shape made thicker by `pixels` on every side."""
    image = Image.fromarray((shape * 255).astype(np.uint8))
    # Twice a small blurred maximum is rounder than one wide square.
    for _ in range(pixels):
        image = image.filter(ImageFilter.MaxFilter(3))
    image = image.filter(ImageFilter.GaussianBlur(0.5))
    return np.asarray(image, dtype=np.float32) / 255


def _thinned(shape: Map, pixels: int) -> Map:
    return 1 - _grown(1 - shape, pixels)


def _blurred(shape: Map, radius: float) -> Map:
    image = Image.fromarray((shape * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255


def _ramp(shape: Map) -> Map:
    """0 at the top left to 1 at the bottom right."""
    steps = np.linspace(0, 1, len(shape), dtype=np.float32)
    return (steps[:, None] + steps) / 2


def _over(fill: Map, around: Map) -> tuple[Map, Map]:
    """Coverage of a fill on top of what surrounds it, and the part of the surrounding still seen."""
    rest = np.maximum(around, fill) - fill
    return fill + rest, rest


def _photo(shape: Map, bright: bool) -> Maps:
    cover, halo = _over(shape, 0.85 * _grown(shape, 1))
    shade = 1.0 - 0.15 * _ramp(shape)
    return cover, shape * shade, halo * (0.08 if bright else 0.92)


def _generated(shape: Map, bright: bool) -> Maps:
    cover, outline = _over(shape, _grown(shape, 2))
    ramp = _ramp(shape)
    gloss = np.clip(0.75 - 2.0 * ramp, 0, 0.5)
    tint = shape * (1.0 - 0.3 * ramp) * (1 - gloss)
    return cover, tint, outline * (0.04 if bright else 0.7) + shape * gloss


def _sketch(shape: Map, bright: bool) -> Maps:
    rows, columns = np.indices(shape.shape)
    hatch = ((rows + columns) % 4 < 2).astype(np.float32)
    fill = shape * (0.4 + 0.45 * hatch)
    if bright:  # a pale colour is outlined in pencil, and only around it, or it would be lost
        pencil = 0.85 * np.maximum(_grown(shape, 1) - shape, 0)
        return np.maximum(fill, pencil), np.minimum(fill, 1 - pencil), 0.12 * pencil
    line = np.maximum(np.clip((shape - _thinned(shape, 1)) * 1.4, 0, 1), fill)
    return line, line, np.zeros_like(shape)


def _sticker(shape: Map, bright: bool) -> Maps:
    paper = _grown(shape, 3)
    shadow = np.zeros_like(shape)
    shadow[2:, 2:] = 0.6 * _blurred(paper, 1.2)[:-2, :-2]
    cover, white = _over(shape, paper)
    cover, _ = _over(cover, shadow)
    contour = (_grown(shape, 1) - shape) * (0.6 if bright else 0.0)
    return cover, shape, np.clip(white - contour, 0, 1)


def _flat(shape: Map, bright: bool) -> Maps:
    cover, halo = _over(shape, 0.9 * _grown(shape, 1))
    return cover, shape, halo * (0.1 if bright else 0.95)


def _neon(shape: Map, bright: bool) -> Maps:
    tube = np.clip((_grown(shape, 1) - _thinned(shape, 1)) * 1.1, 0, 1)
    glow = 0.55 * _blurred(tube, 2.0)
    core = np.clip(tube - 0.5, 0, 1) * (0.3 if bright else 0.9)
    inside = 0.35 * shape
    cover = np.maximum(np.maximum(tube, 0.5 * glow), inside)
    return cover, np.clip(np.maximum(np.maximum(tube, glow), inside) - core, 0, 1), core


STYLES: dict[str, Style] = {
    "photo": Style(_photo, bright_from=0.5, tilts=True, variation=0.2),
    "generated": Style(_generated, bright_from=0.15, tilts=True, variation=0.1),
    "sketch": Style(_sketch, bright_from=0.55, tilts=True),
    "sticker": Style(_sticker, bright_from=0.8),
    "mosaic": Style(_flat, bright_from=0.5, variation=0.1),
    "neon": Style(_neon, bright_from=0.15),
    "icon set": Style(_flat, bright_from=0.5, other_icons=True),
}


def style(name: str) -> Style:
    """The drawing style called `name`."""
    try:
        return STYLES[name]
    except KeyError:
        raise KeyError(f"unknown style {name!r}; known are {', '.join(STYLES)}") from None


@cache
def sprite(glyph: str, style_name: str, size: int, angle: int, bright: bool) -> Sprite:
    """One icon drawn in one style, uint8, shape (3, size + 2 MARGIN, size + 2 MARGIN)."""
    shape = mask(glyph, size, angle, MARGIN).astype(np.float32) / 255
    return quantised(style(style_name).draw(shape, bright))


def quantised(maps: Maps) -> Sprite:
    """Cover, tint and light as a sprite; bytes, not floats, as thousands of sprites are kept."""
    cover, tint, light = maps
    return np.rint(np.clip(np.stack([1 - cover, tint, light]), 0, 1) * 255).astype(np.uint8)


@cache
def ink(glyph: str, size: int, angle: int) -> NDArray[np.bool_]:
    """Which pixels the bare icon covers, shape (size, size)."""
    return mask(glyph, size, angle) > 127
