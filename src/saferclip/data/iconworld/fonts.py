"""Icon fonts as package data: where they are, and one icon drawn from them.

QtAwesome ships the fonts with maps from icon name to code point. It is located, never imported:
importing it would ask for a Qt installation.
"""

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Name used in vocabulary.yaml -> start of the file names, without the version that follows it.
FONT_FILES = {
    "material": "materialdesignicons6-webfont-",
    "awesome": "fontawesome6-solid-webfont-",
    "phosphor": "phosphor-",
}
MASTER_SIZE = 128  # pixels of the master drawing from which all smaller sizes are made


def font_folder() -> Path:
    """The folder of font files inside the installed QtAwesome package."""
    spec = find_spec("qtawesome")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "IconWorld draws with the fonts of the package QtAwesome, which is not installed: "
            "run `pip install qtawesome` (Qt itself is not needed)"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "fonts"


def _find(font: str, ending: str) -> Path:
    if font not in FONT_FILES:
        raise KeyError(f"unknown icon font {font!r}; known are {', '.join(FONT_FILES)}")
    pattern = f"{FONT_FILES[font]}{ending}"
    found = sorted(font_folder().glob(pattern))
    if not found:
        raise FileNotFoundError(
            f"no file {pattern} in {font_folder()}: this QtAwesome lacks an icon font of IconWorld; "
            "install the version that the lock file names"
        )
    return found[-1]


@cache
def _code_points(font: str) -> dict[str, int]:
    names = json.loads(_find(font, "charmap-*.json").read_text())
    return {name: int(code, 16) for name, code in names.items()}  # with or without "0x"


@cache
def font_at(font: str, size: int) -> ImageFont.FreeTypeFont:
    """The font `font` (a key of FONT_FILES) at `size` pixels."""
    return ImageFont.truetype(str(_find(font, "[0-9]*.ttf")), size)


def character(glyph: str) -> str:
    """The character that draws `glyph`, written "font/icon name"."""
    font, name = glyph.split("/")
    try:
        return chr(_code_points(font)[name])
    except KeyError:
        raise KeyError(f"icon font {font!r} has no icon {name!r}") from None


@cache
def master(glyph: str) -> Image.Image:
    """The icon as a square 8-bit image (255 = ink), its longer side filling MASTER_SIZE pixels."""
    font = font_at(glyph.partition("/")[0], 2 * MASTER_SIZE)
    text = character(glyph)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    canvas = Image.new("L", (right - left + 8, bottom - top + 8))
    ImageDraw.Draw(canvas).text((4 - left, 4 - top), text, font=font, fill=255)
    inked = canvas.getbbox()
    if inked is None:
        raise ValueError(f"icon {glyph!r} draws nothing")
    icon = canvas.crop(inked)
    scale = MASTER_SIZE / max(icon.size)
    width, height = (max(1, round(side * scale)) for side in icon.size)
    square = Image.new("L", (MASTER_SIZE, MASTER_SIZE))
    square.paste(
        icon.resize((width, height), Image.Resampling.LANCZOS),
        ((MASTER_SIZE - width) // 2, (MASTER_SIZE - height) // 2),
    )
    return square


def mask(glyph: str, size: int, angle: float = 0.0, margin: int = 0) -> NDArray[np.uint8]:
    """Ink of an icon, 0..255, shape (size + 2 margin, size + 2 margin).

    `angle` turns it counter-clockwise, in degrees; it is shrunk enough to stay inside `size`.
    """
    icon = master(glyph)
    if angle:
        icon = icon.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        box = icon.getbbox()
        if box is not None:
            icon = icon.crop(box)
    scale = size / max(icon.size)
    width, height = (max(1, round(side * scale)) for side in icon.size)
    small = icon.resize((width, height), Image.Resampling.BOX)
    square = Image.new("L", (size + 2 * margin,) * 2)
    square.paste(small, ((square.width - width) // 2, (square.height - height) // 2))
    return np.asarray(square, dtype=np.uint8)
