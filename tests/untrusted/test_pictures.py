"""Pictures of every kind, through every reader: the right pixels, or a refusal that says where."""

from __future__ import annotations

import csv
import json
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from saferclip import io
from saferclip.benchmark import duplicates, sources
from saferclip.config import LocalData, ZeroShotSource
from saferclip.data import labelled_images, local, picture_files, pictures
from saferclip.mining import pixels

SIDE = 8
PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG that says any size, with chunks of one's own before its (empty) pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(bytes((width + 1) * min(height, 8)))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


RGB = Image.fromarray(PIXELS)
BOMB = png(20_000, 20_000)
LARGE = png(9_500, 9_500)  # Pillow only warns of it
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
INFLATED = zlib.compress(bytes(80_000_000))
HOSTILE = {
    "empty": b"",
    "a bomb": BOMB,
    "a large one": LARGE,
    "half": encoded(RGB)[:120],
    "half a JPEG": encoded(RGB, "JPEG")[:-40],
    "only a head": b"\x89PNG\r\n\x1a\n",
    "text": b"not a picture",
    "SVG": SVG,
    "EPS": encoded(RGB, "EPS"),
    "PDF": encoded(RGB, "PDF"),
    "ICO": encoded(RGB, "ICO"),
    "PPM": encoded(RGB, "PPM"),
    "no width": png(0, 5),
    "text that unpacks to 80 MB": png(8, 8, (b"zTXt", b"a\0\0" + INFLATED)),
    "animated": encoded(RGB, "GIF", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))]),
    "32-bit": encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
}
# Readers of our own tables do not look for these, as the reader of pictures has let none of them in.
DECODED_IN_TABLES = {"half a JPEG", "animated", "32-bit", "text that unpacks to 80 MB"}

Reader = Callable[[bytes, Path], Any]


def from_own_table(data: bytes, folder: Path) -> Any:
    (folder / "theirs.png").write_bytes(data)
    tables = {}
    for split in ("train", "validation", "test"):
        tables[split] = folder / f"{split}.csv"
        with tables[split].open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(local.QUADRUPLES.required)
            writer.writerow([split, "a cat", "a cat there", "theirs.png", "theirs.png"])
    rows = local.quadruples(LocalData(**tables))["train"]
    return pictures.read(next(rows)["safe_image"])


def from_a_folder(data: bytes, folder: Path) -> Any:
    (folder / "theirs.png").write_bytes(data)
    return pictures.read(picture_files.find(folder).plain("theirs.png"))


def from_class_folders(data: bytes, folder: Path) -> Any:
    (folder / "a_class").mkdir()
    (folder / "a_class/theirs.png").write_bytes(data)
    (folder / "templates.txt").write_text("a photo of {c}\n")
    source = ZeroShotSource(
        title="T", download="d", split="test", metric="accuracy", templates=folder / "templates.txt"
    )
    (row,) = labelled_images.read("set", source, {"d": folder}).rows()
    return pictures.read(row["image"])


READERS: dict[str, Reader] = {
    "own table": from_own_table,
    "folder of a gallery": from_a_folder,
    "folders of classes": from_class_folders,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_picture_or_too_much_of_one_is_refused_by_name(name: str, reader: str, tmp_path: Path) -> None:
    with pytest.raises(io.DataError, match=r"theirs\.png: |train\.csv: line 2: safe_image: "):
        READERS[reader](HOSTILE[name], tmp_path)


@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in DECODED_IN_TABLES])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_nor_is_it_decoded_out_of_a_table_or_for_the_benchmark(name: str) -> None:
    with pytest.raises(io.DataError, match=r"^table: row 3: the image"):
        pixels.decode({"bytes": HOSTILE[name], "path": None}, "table: row 3")
    assert not sources.is_image(HOSTILE[name])
    with pytest.raises(Exception, match=r"picture|too large|truncated"):
        duplicates.image_hash(HOSTILE[name])


def rotated() -> tuple[bytes, np.ndarray]:
    """A photograph that was held sideways, and how it is to be seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(RGB, "PNG", exif=exif), np.rot90(PIXELS, -1)


def half_transparent() -> tuple[bytes, np.ndarray]:
    alpha = np.full((SIDE, SIDE, 1), 255, np.uint8)
    alpha[:, :4] = 0
    shown = PIXELS.copy()
    shown[:, :4] = 255
    return encoded(Image.fromarray(np.concatenate([PIXELS, alpha], axis=2))), shown


def palette_with_transparency() -> tuple[bytes, np.ndarray]:
    image = Image.fromarray((np.arange(SIDE * SIDE, dtype=np.uint8) % 4).reshape(SIDE, SIDE), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    colours = np.array([[255, 255, 255], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)  # the first is transparent
    return encoded(image, transparency=0), colours[np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 4]


def sixteen_bits() -> tuple[bytes, np.ndarray]:
    values = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    shown = (values / 257).round().astype(np.uint8)
    return encoded(Image.fromarray(values)), np.stack([shown] * 3, axis=2)


def cmyk() -> tuple[bytes, np.ndarray]:
    """Only grey: what a mixture of inks looks like is a matter of the printer."""
    ink = np.zeros((SIDE, SIDE, 4), np.uint8)
    ink[:, :4, 3] = 255
    shown = np.full((SIDE, SIDE, 3), 255, np.uint8)
    shown[:, :4] = 0
    return encoded(Image.fromarray(ink, "CMYK"), "TIFF"), shown


def with_comments() -> tuple[bytes, np.ndarray]:
    comments = PngImagePlugin.PngInfo()
    comments.add_text("a", "<script>\x00\n" + "x" * 1000, zip=True)
    return encoded(RGB, pnginfo=comments), PIXELS


LEGAL: dict[str, Callable[[], tuple[bytes, np.ndarray]]] = {
    "plain": lambda: (encoded(RGB), PIXELS),
    "of another kind than its name": lambda: (encoded(RGB, "BMP"), PIXELS),
    "WebP": lambda: (encoded(RGB, "WEBP", lossless=True), PIXELS),
    "one frame": lambda: (
        encoded(Image.fromarray(PIXELS[:, :, 0]), "GIF"),
        np.repeat(PIXELS[:, :, :1], 3, axis=2),
    ),
    "held sideways": rotated,
    "half transparent": half_transparent,
    "a palette": palette_with_transparency,
    "16 bits": sixteen_bits,
    "CMYK": cmyk,
    "with comments": with_comments,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", LEGAL)
def test_every_legal_kind_has_the_pixels_that_it_shows(name: str, reader: str, tmp_path: Path) -> None:
    data, shown = LEGAL[name]()
    assert np.array_equal(np.asarray(READERS[reader](data, tmp_path)), shown)


def test_a_device_a_pipe_and_a_folder_are_no_pictures(tmp_path: Path) -> None:
    for name, target in (("device.png", "/dev/zero"), ("folder.png", "/etc")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(io.DataError, match="is no file"):
            picture_files.read_file(tmp_path / name)


def test_the_list_of_fetched_images_names_only_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("nobody's business")
    manifest = tmp_path / "images" / "manifest.json"
    manifest.parent.mkdir()
    for name in ("../secret", str(tmp_path / "secret"), "files/../../secret", "a\0b"):
        manifest.write_text(json.dumps({"images": {"https://a/b.jpg": name}, "missing": {}}))
        with pytest.raises(io.DataError, match=r"manifest\.json: names the image .* which leads out of its folder"):
            sources.Images.read(manifest)
