"""The eight backgrounds in each drawing style, as cached textures."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Texture = NDArray[np.floating[Any]]  # (side, side, 3), RGB 0..255

# Every background is drawn a few times; one of these is picked per scene.
VARIANTS = 16

_BASE: dict[str, tuple[int, int, int]] = {
    "grass": (110, 170, 80),
    "snow": (228, 236, 244),
    "sand": (226, 200, 146),
    "night": (20, 24, 62),
    "brick wall": (168, 92, 74),
    "wooden floor": (172, 126, 80),
    "blue sky": (140, 196, 240),
    "checkered paper": (240, 238, 226),
}


def backdrop(background: str, style: str, which: float, side: int) -> NDArray[np.uint8]:
    """A texture of shape (side, side, 3), uint8; `which`, 0..1, picks the variant."""
    index = int(which * 2 * VARIANTS)
    texture = _texture(background, style, index // 2, side)
    return texture[:, ::-1] if index % 2 else texture


@cache
def _texture(background: str, style: str, variant: int, side: int) -> NDArray[np.uint8]:
    # Text seeds keep a texture the same whatever else is drawn before it.
    seed = [*f"{background}/{style}".encode(), variant]
    rng = np.random.default_rng(seed)
    plain = np.broadcast_to(np.array(_BASE[background], np.float32), (side, side, 3))
    painted = _painted(background, side, rng)
    match style:
        case "photo":
            result = painted
        case "generated":
            result = _vignette(0.75 * _smooth(painted, side // 12) + 0.25 * plain, rng)
        case "sketch":
            paper = np.array([246, 243, 234], np.float32) * (0.35 if background == "night" else 1)
            result = 0.45 * _grey_lines(painted, plain) + 0.55 * paper
        case "sticker":
            result = 0.5 * painted + 0.5 * plain
        case "mosaic":
            result = painted
        case "neon":
            result = 0.22 * (1.6 * painted - 0.6 * plain)
        case "icon set":
            result = 0.2 * painted + 0.8 * plain
        case _:
            raise KeyError(f"unknown style {style!r}")
    return np.clip(result, 0, 255).astype(np.uint8)


def _cloudy(rng: np.random.Generator, side: int, cells: int) -> NDArray[np.float32]:
    """Smooth noise of about unit variance, shape (side, side, 1)."""
    coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    fine = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    return fine[..., None]


def _smooth(texture: Texture, radius: int) -> Texture:
    side = len(texture)
    small = max(2, side // max(1, radius))
    image = Image.fromarray(np.clip(texture, 0, 255).astype(np.uint8))
    image = image.resize((small, small), Image.Resampling.BOX)
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)


def _vignette(texture: Texture, rng: np.random.Generator) -> Texture:
    """Darker towards the edges, around a centre that varies."""
    side = len(texture)
    centre = rng.uniform(0.35, 0.65, size=2) * side
    rows, columns = np.indices((side, side), dtype=np.float32)
    distance = np.hypot(rows - centre[0], columns - centre[1]) / side
    return texture * (1.12 - 0.75 * distance**2)[..., None].astype(np.float32)


def _grey_lines(texture: Texture, plain: Texture) -> Texture:
    """The texture's drawing with its contrast raised, in the plain colour."""
    return plain + 1.5 * (texture.mean(axis=2) - texture.mean())[..., None]


def _painted(background: str, side: int, rng: np.random.Generator) -> Texture:
    base = np.array(_BASE[background], np.float32)
    texture = base + 5 * _cloudy(rng, side, 5)
    unit = side / 64  # drawn for 64 pixels, scaled to the others
    match background:
        case "grass":
            blades = rng.normal(size=(side // 4, side, 1)).astype(np.float32)
            texture = texture + 15 * np.repeat(blades, 4, axis=0)[:side][_fill(side)] * (0.9, 1, 0.6)
        case "snow":
            texture = texture + 5 * _cloudy(rng, side, 10)
            _dots(texture, rng, 30, (255, 255, 255), round(unit))
            _dots(texture, rng, 20, (196, 212, 232), round(unit))
        case "sand":
            rows, columns = np.indices((side, side), dtype=np.float32)
            bend = 3 * unit * _cloudy(rng, side, 4)[..., 0]
            ripples = np.sin((rows + bend + 0.2 * columns) * (0.9 / unit))
            texture = texture + 9 * ripples[..., None] + 4 * _cloudy(rng, side, side // 2)
        case "night":
            texture = texture + 4 * _cloudy(rng, side, 3)
            _dots(texture, rng, 26, (236, 236, 200), round(unit))
        case "brick wall":
            texture = _bricks(texture, rng, round(9 * unit), round(18 * unit))
        case "wooden floor":
            texture = _planks(texture, rng, round(13 * unit))
        case "blue sky":
            fade = np.linspace(-14, 22, side, dtype=np.float32)[:, None, None]
            clouds = np.clip(_cloudy(rng, side, 5) - 0.5, 0, 1)
            texture = texture + fade + (255 - texture) * 0.75 * clouds
        case "checkered paper":
            start, step = int(rng.integers(8)), max(2, round(8 * unit))
            texture[start::step] -= (60, 40, 14)
            texture[:, start::step] -= (60, 40, 14)
    return texture.astype(np.float32)


def _fill(side: int) -> NDArray[np.intp]:
    """Row numbers that stretch an array of 4 * (side // 4) rows to `side`."""
    return np.minimum(np.arange(side), 4 * (side // 4) - 1)


def _dots(
    texture: Texture,
    rng: np.random.Generator,
    count: int,
    colour: tuple[int, int, int],
    width: int,
) -> None:
    for row, column in rng.integers(len(texture), size=(count, 2)):
        texture[row : row + width, column : column + width] = colour


def _bricks(texture: Texture, rng: np.random.Generator, height: int, width: int) -> Texture:
    texture = texture.copy()
    shift = int(rng.integers(height))
    for course, top in enumerate(range(-shift, len(texture), height)):
        offset = course % 2 * (width // 2) + shift
        for left in range(-offset, len(texture), width):
            rows = slice(max(0, top), max(0, top + height))
            columns = slice(max(0, left), max(0, left + width))
            texture[rows, columns] += 12 * rng.normal()
        texture[max(0, top + height - 1) : max(0, top + height)] = (206, 190, 176)
        for left in range(-offset, len(texture), width):
            joint = left + width - 1
            if 0 <= joint < len(texture):
                texture[max(0, top) : max(0, top + height), joint] = (206, 190, 176)
    return texture


def _planks(texture: Texture, rng: np.random.Generator, width: int) -> Texture:
    texture = texture.copy()
    side = len(texture)
    fibres = rng.normal(size=(1, side, 1)).astype(np.float32)
    texture += 6 * fibres * (1 + 0.4 * _cloudy(rng, side, 4))
    for left in range(-int(rng.integers(width)), side, width):
        columns = slice(max(0, left), max(0, left + width))
        texture[:, columns] += 9 * rng.normal()
        texture[:, max(0, left) : max(0, left + 1)] -= 52
    return texture
