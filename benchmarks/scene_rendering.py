"""Scenes per second on one core, against rasterising every icon with ImageDraw.text.

    python benchmarks/scene_rendering.py [scenes ...] [--full]          about 30 s

"afresh" draws like pictures (edges differ a little), but takes each object's icon from the font anew, as the plain way
would; "bare text" only stamps each icon flat on the backdrop, without halo, shading or turning, and
so says what PIL's text drawing alone costs. The ways are interleaved: a change of the machine's pace
hits all of them.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import common
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from saferclip.data.iconworld import (
    COLOURS,
    HELD_OUT_STYLES,
    STYLES,
    Scene,
    common_concepts,
    concept,
    render,
    rendering,
    sample_scene,
)
from saferclip.data.iconworld.backdrops import backdrop
from saferclip.data.iconworld.fonts import character, font_at
from saferclip.data.iconworld.sprites import MARGIN, Sprite, quantised, style


def stamp(pen: ImageDraw.ImageDraw, glyph: str, middle: tuple[float, float], size: int, fill: Any) -> None:
    """Draw one icon from its font."""
    font = font_at(glyph.partition("/")[0], size)
    pen.text(middle, character(glyph), font=font, fill=fill, anchor="mm")


def sprite_afresh(glyph: str, style_name: str, size: int, angle: int, bright: bool) -> Sprite:
    """Much as rendering.sprite draws it, from the font each time."""
    side = size + 2 * MARGIN
    image = Image.new("L", (side, side))
    stamp(ImageDraw.Draw(image), glyph, (side / 2, side / 2), size, 255)
    turned = image.rotate(angle, Image.Resampling.BICUBIC) if angle else image
    return quantised(style(style_name).draw(np.asarray(turned, dtype=np.float32) / 255, bright))


def draw_afresh(scene: Scene) -> NDArray[np.uint8]:
    """A like picture without the cache of sprites."""
    with patch.object(rendering, "sprite", sprite_afresh):
        return render(scene)


def draw_bare_text(scene: Scene) -> NDArray[np.uint8]:
    """Flat icons on the backdrop and nothing else."""
    image = Image.fromarray(backdrop(scene.background, scene.style, 0.0, 64))
    pen = ImageDraw.Draw(image)
    for item, place in zip(scene.objects, rendering.layout(scene), strict=True):
        middle = (place.column + place.size / 2, place.row + place.size / 2)
        stamp(pen, concept(item.concept).glyph, middle, place.size, COLOURS[item.colour])
    return np.asarray(image)


def pace(draw: Callable[[Scene], Any], scenes: list[Scene]) -> float:
    """Scenes per second."""
    start = time.process_time()
    for scene in scenes:
        draw(scene)
    return len(scenes) / (time.process_time() - start)


def compare(count: int, rounds: int) -> Iterator[common.Row]:
    """Median paces of the rounds, and the median ratio of ours to afresh, in every style."""
    ways = {"ours": render, "afresh": draw_afresh, "bare text": draw_bare_text}
    for name in STYLES + HELD_OUT_STYLES:
        rng = np.random.default_rng(0)
        scenes = [sample_scene(rng, common_concepts(), style=name) for _ in range(count)]
        for way in ways.values():  # fill the caches
            pace(way, scenes)
        paces = [[pace(way, scenes) for way in ways.values()] for _ in range(rounds)]
        middle = [round(statistics.median(column)) for column in zip(*paces, strict=True)]
        yield {
            "scenes": count,
            "style": name,
            **{f"{way}_per_second": value for way, value in zip(ways, middle, strict=True)},
            "to_afresh": common.median_ratio(*zip(*((row[0], row[1]) for row in paces), strict=True)),
        }


def main() -> None:
    """Print one line for each style, then write them."""
    chosen = common.arguments(__doc__, sizes=(500,), full=(5000,), rounds=5)
    common.report(chosen.sizes, lambda count: compare(count, chosen.rounds), chosen.output)


if __name__ == "__main__":
    main()
