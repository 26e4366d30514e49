"""Images for a step of training: decoded and resized each time, or read from a file of pixels.

    python benchmarks/image_loading.py [images of the file ...] [--full]          about a minute on one core

JPEGs are made here: noise of all scales, as photographs have, so that 1024 x 1024 pixels take some 200 kB.

JPEG 1024 x 1024   decoded and resized by open_clip's preprocessing, as the step `embedding` does: size of unsafe images
JPEG 640 x 480     the same: size of COCO's images
draft              JPEG 1024 x 1024, decoded by Pillow at half the size, or less, then resized
torchvision        JPEG 1024 x 1024, decoded and resized by torchvision on tensors
file               read in random order from a file of pixels, and checked against its checksums
batches            the same through what training calls: batches of 96 images, read ahead by threads
batches, memory    the same, from memory

Time is processor time, of all threads together; `per_core` is images in a second of it, `cores` what 825 images in a
second take.  `per_second` is images in a second on the wall, from the file as the system's cache has it and, in `cold`,
once the system was told to forget it.  `same` is the share of values that are those of the first way for the same JPEG,
or those that were written; `off_by` is the largest difference.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

import common
import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize

from saferclip.mining import pixels
from saferclip.training.inputs import Images, Memory, Pictures, ReadAhead

WANTED = 825  # images a second: 165,000 pairs, 9 epochs, an hour
EDGE = 224  # of ViT-L/14
SOURCES = 8  # different JPEGs of each size
DECODED = 32  # images in a measurement of decoding
PAIRS = 48  # in a batch
SHAPE = torch.Size((EDGE, EDGE, 3))
MADE_OF = {"table_sha256": "none", "preprocessing": "none"}
FIRST = "JPEG 1024 x 1024"
Way = Callable[[bytes], Tensor]


def jpeg(width: int, height: int, seed: int) -> bytes:
    """A picture of noise whose strength grows with its scale."""
    random = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128.0)
    scale = 1
    while scale <= max(width, height):
        size = (max(2, width // scale), max(2, height // scale))
        noise = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        strength = 0.06 * scale**0.5
        picture += strength * (np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), float) - 128)
        scale *= 2
    buffer = BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def decoding() -> dict[str, tuple[Way, tuple[int, int]]]:
    """Ways from a JPEG to pixels, each with the size of JPEG that it is given."""
    to_pixels, _ = pixels.split_preprocess(open_clip.image_transform(EDGE, is_train=False))

    def plain(data: bytes) -> Tensor:
        return to_pixels(pixels.decode({"bytes": data}, "benchmark"))

    def draft(data: bytes) -> Tensor:
        image = Image.open(BytesIO(data))
        image.draft("RGB", (EDGE, EDGE))
        return to_pixels(image)

    def torchvision(data: bytes) -> Tensor:
        image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        small = resize(image, [EDGE], InterpolationMode.BICUBIC, antialias=True)
        return center_crop(small, [EDGE, EDGE]).permute(1, 2, 0)

    large = (1024, 1024)
    return {
        FIRST: (plain, large),
        "JPEG 640 x 480": (plain, (640, 480)),
        "draft": (draft, large),
        "torchvision": (torchvision, large),
    }


def write(file: Path, count: int) -> dict[str, np.ndarray]:
    """A file of ``count`` images, half of them safe, and what it holds by column."""
    random = np.random.default_rng(0)
    columns = {column: random.integers(0, 256, (count // 2, *SHAPE), dtype=np.uint8) for column in pixels.IMAGES}
    with pixels.writing(file, dict.fromkeys(columns, count // 2), SHAPE, MADE_OF) as writer:
        for images in columns.values():
            for image in images:
                writer.add(torch.from_numpy(image))
    return columns


def forget(file: Path) -> None:
    """Tell the system to drop the file from its cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare(count: int, rounds: int) -> Iterator[common.Row]:
    """Time all ways in turn, and look whether they give the same pixels."""
    ways = decoding()
    sources = {size: [jpeg(*size, seed) for seed in range(SOURCES)] for size in {size for _, size in ways.values()}}
    seconds: dict[str, list[float]] = {}
    walls: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pixels.safetensors"
        columns = write(file, count)
        reader = pixels.PixelFile(file, dict.fromkeys(columns, count // 2), SHAPE, MADE_OF)
        there = torch.ones(count // 2, dtype=torch.bool)
        stored, held = (ReadAhead(source, Images(there, there), SHAPE) for source in (reader, Memory(columns)))
        order = torch.randperm(count // 2, generator=torch.Generator().manual_seed(0))
        work = {name: (DECODED, partial(repeat, way, sources[size])) for name, (way, size) in ways.items()}
        batches = {
            "file": partial(read, reader, order),
            "batches": partial(ahead, stored, order),
            "batches, memory": partial(ahead, held, order),
        }
        work |= {name: (count, partial(consume, read_all)) for name, read_all in batches.items()}
        for _ in range(rounds):
            for name, (images, call) in work.items():
                start = time.perf_counter()
                seconds.setdefault(name, []).append(common.timed(call)[0] / images)
                walls.setdefault(name, []).append((time.perf_counter() - start) / images)
            forget(file)
            start = time.perf_counter()
            consume(batches["batches"])
            walls.setdefault("cold", []).append((time.perf_counter() - start) / count)
        agree = {name: same(batches[name](), written(columns, order)) for name in ("file", "batches")}
    way, large = ways[FIRST]
    expected = [[way(data)] for data in sources[large]]
    for name, (way, size) in ways.items():
        if size == large:
            agree[name] = same([[way(data)] for data in sources[size]], expected)
    for name, spent in seconds.items():
        row: common.Row = {"images": count, "way": name}
        if name in ways:
            row["kilobytes"] = round(np.mean([len(data) for data in sources[ways[name][1]]]) / 1000)
        row |= rates(spent) | {"to_first": common.median_ratio(spent, seconds[FIRST])}
        row["per_second"] = round(1 / min(walls[name]))
        if name == "batches":
            row["cold"] = round(1 / min(walls["cold"]))
        yield row | agree.get(name, {})


def rates(seconds: Sequence[float]) -> common.Row:
    """What the least of some rounds' seconds for an image means."""
    least = min(seconds)
    return {"milliseconds": round(1000 * least, 4), "per_core": round(1 / least), "cores": round(WANTED * least, 2)}


def written(columns: Mapping[str, np.ndarray], order: Tensor) -> Iterator[list[Tensor]]:
    """What batches have to hold."""
    for rows in torch.split(order, PAIRS):
        yield [torch.from_numpy(columns[column][rows]) for column in pixels.IMAGES]


def repeat(way: Way, sources: Sequence[bytes]) -> None:
    """Decode ``DECODED`` images."""
    for place in range(DECODED):
        way(sources[place % len(sources)])


def read(reader: pixels.PixelFile, order: Tensor) -> Iterator[list[Tensor]]:
    """All images of the file by column, a batch at a time, each into the place of the one before."""
    place = [np.empty((PAIRS, *SHAPE), dtype=np.uint8) for _ in pixels.IMAGES]
    for rows in torch.split(order, PAIRS):
        parts = [images[: len(rows)] for images in place]
        for column, images in zip(pixels.IMAGES, parts, strict=True):
            reader.read(column, rows.tolist(), images)
        yield [torch.from_numpy(images) for images in parts]


def ahead(pictures: Pictures, order: Tensor) -> Iterator[Sequence[Tensor]]:
    """All images by column, in training's batches."""
    for batch in pictures.batches(torch.split(order, PAIRS)):
        yield batch.permute(0, 2, 3, 1).chunk(2)


def consume(batches: Callable[[], Iterator[object]]) -> None:
    """Take all batches, one after the other, and let them go."""
    deque(batches(), maxlen=0)


def same(found: Iterable[Sequence[Tensor]], expected: Iterable[Sequence[Tensor]]) -> common.Row:
    """Share of values that are equal, and the largest difference, of images in parts."""
    equal, values, largest = 0, 0, 0
    for one, other in zip(found, expected, strict=True):
        for images, wanted in zip(one, other, strict=True):
            apart = (images.short() - wanted.short()).abs()
            equal, values = equal + int((apart == 0).sum()), values + apart.numel()
            largest = max(largest, int(apart.max()))
    return {"same": round(100 * equal / values, 2), "off_by": largest}


def main() -> None:
    """Print one line for each way, then write them."""
    chosen = common.arguments(__doc__, sizes=(960,), full=(3200,), rounds=5)
    common.one_thread()
    common.report(chosen.sizes, lambda count: compare(count, chosen.rounds), chosen.output)


if __name__ == "__main__":
    main()
