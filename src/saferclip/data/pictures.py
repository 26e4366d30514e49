"""Pictures as people have them, made plain: RGB, upright, on white where they were transparent."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
from PIL import ExifTags, Image, ImageOps

from saferclip import io

KEPT = frozenset({"JPEG", "MPO", "PNG"})  # MPO: a JPEG with more pictures behind the first, as phones write it
TURNED = range(2, 9)  # EXIF orientations that are not upright


class PictureError(Exception):
    """A file is no usable picture; the message says why and what to do."""


def read(data: bytes) -> Image.Image:
    """Decode to RGB: upright by its EXIF orientation, transparency on white, 16-bit grey scaled to 8.

    Colour profiles are not applied.  Raises PictureError.
    """
    with _open(data) as image:
        try:
            image.load()
            if image.format in {"JPEG", "MPO"} and not _has_end(data):
                raise ValueError("its end is missing")
            return _rgb(ImageOps.exif_transpose(image) if _orientation(image) in TURNED else image)
        # Pillow's decoders answer damaged files with many kinds of exception.
        except Exception as error:
            raise _damaged(error) from error


def plain(data: bytes, kept: Set[str] = KEPT) -> bytes:
    """The same bytes if they are an upright RGB picture of a ``kept`` format already, else the picture as PNG.

    Raises PictureError if it must be decoded and cannot be.
    """
    with _open(data) as image:
        upright = _orientation(image) not in (None, *TURNED)
        if image.format in kept and image.mode == "RGB" and upright and not image.has_transparency_data:
            return data
    return io.encode_png(read(data))


def _open(data: bytes) -> Image.Image:
    """Read the header, and refuse what should not be decoded at all."""
    try:
        image = io.open_image(data)
        frames = getattr(image, "n_frames", 1)
    except io.ImageError as error:
        raise PictureError(str(error)) from error
    except Exception as error:
        raise _damaged(error) from error
    if frames > 1 and image.format != "MPO":
        raise PictureError(f"holds {frames} pictures; save one of them alone")
    return image


def _has_end(jpeg: bytes) -> bool:
    """Whether an end marker follows the first picture's scan; a rest of zeros decodes silently as grey."""
    place = 2
    while jpeg[place : place + 1] == b"\xff" and jpeg[place + 1 : place + 2] != b"\xda":  # start of scan
        # Segments carry their length; a thumbnail, with an end of its own, lies inside one.
        padding = jpeg[place + 1 : place + 2] == b"\xff"
        place += 1 if padding else 2 + int.from_bytes(jpeg[place + 2 : place + 4])
    return jpeg.find(b"\xff\xd9", place) >= 0


def _orientation(image: Image.Image) -> int | None:
    """EXIF orientation, 1 if it says nothing, None if it cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # 65535 is white; Pillow's own conversion would turn all above 255 white.
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise ValueError("32-bit grey has no agreed white; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info.clear()  # a CMYK colour profile, say, that would be written along
    return image


def _damaged(error: Exception) -> PictureError:
    return PictureError(f"damaged picture ({error}); copy it again or replace it")
