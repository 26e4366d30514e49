"""Every mode that pictures come in becomes the RGB picture that a person sees."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from saferclip.data import pictures
from saferclip.data.pictures import PictureError

Pixels = NDArray[Any]

# Four colours in a 3 x 4 picture, no two edges alike: every turn and mirroring shows.
PIXELS = np.zeros((3, 4, 3), np.uint8)
PIXELS[0, :] = (255, 0, 0)
PIXELS[:, 0] = (0, 255, 0)
PIXELS[2, 3] = (0, 0, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> Pixels:
    """What the rest of the program sees of a picture."""
    kept = pictures.plain(data)
    with Image.open(BytesIO(kept)) as image:
        assert image.mode == "RGB"
        assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        found = np.asarray(image)
    assert np.array_equal(found, np.asarray(pictures.read(data)))
    return found


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_formats_are_exact(kind: str) -> None:
    assert np.array_equal(pixels(encoded(Image.fromarray(PIXELS), kind)), PIXELS)
    assert np.array_equal(pixels(encoded(Image.fromarray(PIXELS), "WEBP", lossless=True)), PIXELS)


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {"icc_profile": b"x"})]
)
def test_upright_rgb_is_kept_byte_by_byte(kind: str, options: dict[str, Any]) -> None:
    data = encoded(Image.fromarray(PIXELS), kind, **options)
    assert pictures.plain(data) == data


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF", "WEBP"])
def test_formats_that_are_not_kept_become_png(kind: str) -> None:
    assert pictures.plain(encoded(Image.fromarray(PIXELS), kind)).startswith(b"\x89PNG")


def test_grey() -> None:
    grey = PIXELS[:, :, 0]
    assert np.array_equal(pixels(encoded(Image.fromarray(grey))), np.stack([grey] * 3, axis=-1))


def test_black_and_white() -> None:
    assert np.array_equal(
        pixels(encoded(Image.fromarray(PIXELS[:, :, 0]).convert("1"))), np.stack([PIXELS[:, :, 0]] * 3, axis=-1)
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_not_clipped(kind: str) -> None:
    grey = np.array([[0, 256, 257], [32896, 65534, 65535]], np.uint16)
    found = pixels(encoded(Image.fromarray(grey), kind))
    assert np.array_equal(found[:, :, 0], [[0, 1, 1], [128, 255, 255]])
    assert np.array_equal(found[:, :, 0], found[:, :, 2])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_of_32_bits_is_refused(dtype: type) -> None:
    with pytest.raises(PictureError, match="32-bit grey has no agreed white; save it with 8 or 16 bits"):
        pictures.plain(encoded(Image.fromarray(np.ones((2, 2), dtype)), "TIFF"))


def test_transparency_is_put_on_white() -> None:
    alpha = np.full((3, 4, 1), 255, np.uint8)
    alpha[0], alpha[2] = 0, 51  # clear, and a fifth
    found = pixels(encoded(Image.fromarray(np.concatenate([PIXELS, alpha], axis=-1))))
    assert (found[0] == 255).all()
    assert np.array_equal(found[1], PIXELS[1])
    assert np.abs(found[2].astype(float) - (0.8 * 255 + 0.2 * PIXELS[2])).max() <= 1


def test_grey_with_transparency() -> None:
    image = Image.merge("LA", [Image.new("L", (2, 1), 0), Image.fromarray(np.array([[0, 255]], np.uint8))])
    assert np.array_equal(pixels(encoded(image)), [[[255] * 3, [0] * 3]])


def test_palette() -> None:
    assert np.array_equal(pixels(encoded(Image.fromarray(PIXELS).quantize(4))), PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_a_transparent_colour(kind: str) -> None:
    image = Image.fromarray(PIXELS).quantize(4)
    red = image.getpixel((1, 0))
    found = pixels(encoded(image, kind, transparency=red))
    assert (found[0, 1:] == 255).all()
    assert np.array_equal(found[1:], PIXELS[1:])


def test_rgb_with_a_transparent_colour() -> None:
    data = encoded(Image.fromarray(PIXELS), transparency=(255, 0, 0))
    assert pictures.plain(data) != data
    assert (pixels(data)[0, 1:] == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_print_colours(kind: str) -> None:
    image = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
    found = pixels(encoded(image, kind, icc_profile=b"a profile for CMYK"))
    assert np.abs(found.astype(int) - (200, 40, 90)).max() <= 3
    assert "icc_profile" not in Image.open(BytesIO(pictures.plain(encoded(image, kind, icc_profile=b"x")))).info


# EXIF orientations, by what has to be done to the stored picture (EXIF 2.32, section 4.6.4).
TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    found = pixels(encoded(Image.fromarray(PIXELS), kind, exif=exif))
    assert np.array_equal(found, TURNS[orientation](PIXELS))


@pytest.mark.parametrize("orientation", [0, 9])
def test_orientation_that_does_not_exist_means_none(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(Image.fromarray(PIXELS), exif=exif)
    assert pictures.plain(data) == data


def test_unreadable_exif_does_not_matter_but_is_not_passed_on() -> None:
    data = encoded(Image.fromarray(PIXELS), exif=b"Exif\0\0nonsense")
    assert np.array_equal(np.asarray(pictures.read(data)), PIXELS)
    assert b"nonsense" not in pictures.plain(data)


def test_phone_jpeg_with_a_second_picture_shows_the_first() -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(BytesIO(data)).format == "MPO"
    assert pictures.plain(data) == data
    assert np.abs(pixels(data).astype(int) - (255, 0, 0)).max() <= 3


def test_thumbnail_does_not_hide_a_missing_end() -> None:
    """A thumbnail is a JPEG inside a JPEG, with an end marker of its own."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    thumbnail = encoded(Image.fromarray(PIXELS), "JPEG")
    data = encoded(Image.fromarray(noise), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail)
    assert data.count(b"\xff\xd9") == 2
    assert pictures.read(data).size == (64, 64)
    half = data[: (len(data) + len(thumbnail)) // 2]
    with pytest.raises(PictureError, match="damaged picture"):
        pictures.read(half.ljust(len(data), b"\0"))


def test_document_is_not_handed_to_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would run Ghostscript for PostScript."""
    data = encoded(Image.fromarray(PIXELS), "EPS")
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(PictureError, match="not a JPEG"):
        pictures.read(data)


def test_large_pictures_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 11)
    with warnings.catch_warnings(), pytest.raises(PictureError, match=r"too large \(4 x 3, at most 11 pixels\)"):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        pictures.plain(encoded(Image.fromarray(PIXELS)))
