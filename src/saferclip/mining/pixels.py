"""Images decoded and resized once: the pixels that a model is given, computed by threads, and kept in a file.

The file is a safetensors file that is written and read part by part, since all pixels of a large split do not fit into
memory.  For each image column it holds ``{column}``, uint8 (images, height, width, 3) in the table's order without
withheld images, and ``{column}.crc32``, int64 (images,); its metadata say what it was made of.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, Normalize, ToTensor  # type: ignore[import-untyped]

from saferclip import io
from saferclip.config import ConfigError

IMAGES = ("safe_image", "unsafe_image")
MEMORY_BYTES = 2 * 1024**3  # pixels of one split, up to which each training may have them in memory
READ_ROWS = 16  # encoded images that one thread decodes at a time

ToPixels = Callable[[Image.Image], Tensor]
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def split_preprocess(preprocess: Callable[..., Any]) -> tuple[ToPixels, Normalize]:
    """Part open_clip's preprocessing: a picture to uint8 (height, width, 3), and the normalisation.

    ``normalise(pixels.permute(2, 0, 1).float() / 255)`` equals ``preprocess(image)``.
    """
    *steps, normalise = preprocess.transforms if isinstance(preprocess, Compose) else [preprocess]
    if not isinstance(normalise, Normalize) or not steps or not isinstance(steps[-1], ToTensor):
        raise io.DataError("this model's preprocessing does not end in a normalisation; use an open_clip model")
    return partial(_pixels, Compose(steps[:-1])), normalise


def _pixels(resize: Callable[[Image.Image], Image.Image], image: Image.Image) -> Tensor:
    # By numpy: torch would start threads of its own in each of those that decode.
    return torch.from_numpy(np.array(resize(image)))


def shape_of(to_pixels: ToPixels) -> torch.Size:
    """Height, width and channels of a model's input."""
    return to_pixels(Image.new("RGB", (8, 8))).shape


def check_memory(path: Path, size: int) -> None:
    """Raise ConfigError if a table's pixels are more bytes than may be kept in memory."""
    if size > MEMORY_BYTES:
        raise ConfigError(
            f"{path}: decoded images take {size / 1e9:.1f} GB, more than fit into the memory of each training; set "
            "mining.pixels to 'file', and they are decoded once, into a file of that size"
        )


def decoded(path: Path, column: str, to_pixels: ToPixels, threads: int) -> Iterator[Tensor]:
    """Pixels of a column's images in the table's order, without those that are withheld: uint8 (images, ...) each.

    Images are decoded by threads; Pillow lets them run at once.  Raises DataError naming the row of an image that
    cannot be decoded.
    """
    work = partial(_decode_all, path, column, to_pixels)
    for images in ahead(work, _cells(path, column), threads, 2 * threads):
        yield from images


def _decode_all(path: Path, column: str, to_pixels: ToPixels, cells: Sequence[tuple[int, Any]]) -> list[Tensor]:
    return [to_pixels(decode(cell, f"{path}: row {row}, {column}")) for row, cell in cells]


def _cells(path: Path, column: str) -> Iterator[list[tuple[int, Any]]]:
    """The images of a few rows at a time, still encoded, with their rows."""
    start = 0
    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(READ_ROWS, columns=[column]):
            cells = batch[column].to_pylist()
            yield [(start + place, cell) for place, cell in enumerate(cells) if cell is not None]
            start += len(cells)


def decode(cell: Mapping[str, Any], origin: str) -> Image.Image:
    """Decode one image cell, or raise DataError that starts with ``origin``."""
    if cell["bytes"] is None:
        raise io.DataError(f"{origin}: the image has no bytes; make the table again")
    try:
        return io.decode_image(cell)
    except io.ImageError as error:
        raise io.DataError(f"{origin}: the image cannot be decoded: {error}") from error


def ahead(work: Callable[[ItemT], ResultT], items: Iterable[ItemT], threads: int, count: int) -> Iterator[ResultT]:
    """What ``work`` makes of each item, in the items' order; threads prepare up to ``count`` before they are asked for.

    An error comes where its result would.  Threads end with the iterator, however that ends.
    """
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[ResultT]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def made_of(table_sha256: str, to_pixels: ToPixels) -> dict[str, str]:
    """What pixels depend on: the table, and the preprocessing, known by what it makes of one picture."""
    height, width = 211, 337
    noise = np.arange(height * width * 3, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(24)
    picture = Image.fromarray(noise.astype(np.uint8).reshape(height, width, 3))
    return {"table_sha256": table_sha256, "preprocessing": sha256(to_pixels(picture).numpy().tobytes()).hexdigest()}


class Writer:
    """Appends pixels to a file: all of one column, then all of the next."""

    def __init__(
        self, file: BinaryIO, counts: Mapping[str, int], shape: torch.Size, made_of: Mapping[str, str]
    ) -> None:
        self.file = file
        self.total = sum(counts.values())
        self.sums: list[int] = []
        header: dict[str, Any] = {"__metadata__": dict(made_of)}
        end = 0
        # Checksums first: what is larger than a byte has to be aligned.
        for column, count in counts.items():
            start, end = end, end + 8 * count
            header[f"{column}.crc32"] = {"dtype": "I64", "shape": [count], "data_offsets": [start, end]}
        for column, count in counts.items():
            start, end = end, end + count * shape.numel()
            header[column] = {"dtype": "U8", "shape": [count, *shape], "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        self.start_of_sums = file.tell()
        file.seek(8 * self.total, os.SEEK_CUR)

    def add(self, pixels: Tensor) -> None:
        """The next image, uint8 (height, width, 3)."""
        content = pixels.numpy().tobytes()
        self.file.write(content)
        self.sums.append(zlib.crc32(content))

    def finish(self) -> None:
        """Write the checksums; ValueError if images are missing, or too many."""
        if len(self.sums) != self.total:
            raise ValueError(f"{len(self.sums)} images instead of {self.total}")
        self.file.seek(self.start_of_sums)
        self.file.write(np.array(self.sums, dtype="<i8").tobytes())


@contextmanager
def writing(path: Path, counts: Mapping[str, int], shape: torch.Size, made_of: Mapping[str, str]) -> Iterator[Writer]:
    """A file of ``counts`` images in each column, whole once the block has added them all."""
    with io.atomic_path(path) as temporary, temporary.open("wb") as file:
        writer = Writer(file, counts, shape, made_of)
        yield writer
        writer.finish()


class PixelFile:
    """A file of pixels, of which single images are read."""

    def __init__(self, path: Path, counts: Mapping[str, int], shape: torch.Size, made_of: Mapping[str, str]) -> None:
        """Raises DataError if it is not whole, or not of this table, these images or this preprocessing."""
        self.path = path
        self.size = shape.numel()
        # safetensors checks that the file is as long as its header says.
        names = [f"{column}.crc32" for column in counts]
        self.sums = {name: sums.tolist() for name, sums in io.read_tensors(path, names).items()}
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        if header.get("__metadata__") != dict(made_of):
            raise io.DataError(f"{path}: made of another table, or for another model's preprocessing; embed again")
        for column, count in counts.items():
            if header.get(column, {}).get("shape") != [count, *shape]:
                raise io.DataError(f"{path}: not {count} images of {tuple(shape)} in {column}; embed again")
        self.starts = {column: 8 + length + header[column]["data_offsets"][0] for column in counts}

    def read(self, column: str, places: Sequence[int], pixels: np.ndarray) -> None:
        """Fill ``pixels``, uint8 (n, height, width, 3); raises DataError naming an image that is damaged."""
        sums = self.sums[f"{column}.crc32"]
        with self.path.open("rb", buffering=0) as file:
            for image, place in zip(pixels, places, strict=True):
                # Not from a mapped file, where each page would be waited for, and a file cut short would be a crash.
                size = os.preadv(file.fileno(), [image.data], self.starts[column] + place * self.size)
                if size != self.size or zlib.crc32(image.data) != sums[place]:
                    raise io.DataError(
                        f"{self.path}: image {place} of {column} is damaged; remove the file, and embed again"
                    )
