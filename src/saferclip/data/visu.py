"""ViSU's quadruples: the released captions, COCO's images, and the unsafe images where they were made again."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from tqdm import tqdm

from saferclip import io
from saferclip.config import VisuData
from saferclip.data import pictures, visu_text
from saferclip.data.coco import CocoImages
from saferclip.data.validation import Problems
from saferclip.data.visu_text import Record, Release
from saferclip.io import DataError

BATCH = 64  # rows held at once
MADE, MINOR = "made", "a minor could be meant"

logger = logging.getLogger(__name__)


class Unsafe(NamedTuple):
    """What became of a record's unsafe image."""

    id: str
    reason: str
    image: bytes | None


def write(settings: VisuData, output: Path, downloads: Mapping[str, Path], shards: Sequence[Path]) -> None:
    """Write a table for each split (columns `io.QUADRUPLE_COLUMNS`), and summary.json, which counts images.

    ``shards`` are the tables of unsafe images, in order; without them, unsafe images are withheld.  Raises DataError
    listing all records without an image, unless they may be kept so, and all images that are damaged.
    """
    release = visu_text.read(settings, downloads)
    images = CocoImages([downloads[name] for name in settings.images])
    _check(settings, release, images, shards)
    unsafe = _unsafe_images(shards) if shards else None
    summary = {}
    for split in release.rows:
        counts: Counter[str] = Counter()
        io.write_table(output / f"{split}.parquet", _quadruples(release, split, images, unsafe, counts))
        summary[split] = dict(counts)
        logger.info("%s: %s", split, ", ".join(f"{count} {name}" for name, count in counts.items()))
    io.write_json(output / "summary.json", {**summary, "corrected_tags": dict(release.corrected)})


def _check(settings: VisuData, release: Release, images: CocoImages, shards: Sequence[Path]) -> None:
    """Raise DataError if images are missing that must not be, before any image is read."""
    problems = Problems()
    reasons = _reasons(shards)
    if shards and len(reasons) != len(release):
        raise DataError(f"{shards[0].parent}: {len(reasons)} unsafe images, but {len(release)} records; make them anew")
    sources = ", ".join(settings.images)
    for number, record in enumerate(release.all_records()):
        made = reasons[number] if shards else Unsafe(record.id, "withheld", None)
        if made.id != record.id:
            raise DataError(f"{shards[0].parent}: holds {made.id} in place of {record.id}; make unsafe images anew")
        if settings.missing_images == "keep":
            continue
        advice = "or set data.visu.missing_images to 'keep'"
        if record.image not in images:
            problems.add(record.id, f"image {record.image:012d} is in none of {sources}; get them whole, {advice}")
        reason = MINOR if record.minor is not None else made.reason
        if reason != MADE:
            problems.add(record.id, f"has no unsafe image ({reason}); make it, {advice}")
    problems.check()


def _quadruples(
    release: Release, split: str, images: CocoImages, unsafe: Iterator[Unsafe] | None, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Rows of a split; ``counts`` is filled on the way."""
    problems = Problems()
    records = iter(tqdm(release.records(split), desc=split, total=len(release.rows[split]), unit=" rows", disable=None))

    def safe_image(record: Record) -> bytes | str | None:
        return _safe_image(images, record)

    with ThreadPool() as pool:
        while batch := list(islice(records, BATCH)):
            for record, safe in zip(batch, pool.map(safe_image, batch), strict=True):
                made = next(unsafe).image if unsafe else None
                # Once more: images are not made anew when the list of words has grown since.
                made = None if record.minor is not None else made
                counts.update(rows=1, safe_images=safe is not None, unsafe_images=made is not None)
                counts.update(without_safe_image=safe is None, without_unsafe_image=made is None)
                if isinstance(safe, str):
                    problems.add(record.id, safe)
                else:
                    yield _row(record, safe, made)
    problems.check(f"{split}.parquet was not written")


def _row(record: Record, safe: bytes | None, unsafe: bytes | None) -> dict[str, Any]:
    return {
        "id": record.id,
        "split": record.split,
        "category": record.category,
        "safe_caption": record.safe,
        "unsafe_caption": record.unsafe,
        "safe_image": safe,
        "unsafe_image": unsafe,
    }


def _safe_image(images: CocoImages, record: Record) -> bytes | str | None:
    """An image's bytes, None if it is not there, or in words what is wrong with it."""
    if record.image not in images:
        return None
    try:
        data = images.read(record.image)
        pictures.read(data)  # all of it: a header alone does not tell that the rest is damaged
        return pictures.plain(data)
    except DataError as error:
        return str(error)
    except pictures.PictureError as error:
        return f"{images.place(record.image)}: {error}"


def _reasons(shards: Sequence[Path]) -> list[Unsafe]:
    """What became of every unsafe image, without the images."""
    tables = (io.read_table(path, ["id", "reason"]).to_pylist() for path in shards)
    return [Unsafe(row["id"], row["reason"], None) for table in tables for row in table]


def _unsafe_images(shards: Sequence[Path]) -> Iterator[Unsafe]:
    """All unsafe images in order; only a few are in memory at once."""
    for path in shards:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(BATCH, columns=["id", "reason", "image"]):
                for row in batch.to_pylist():
                    yield Unsafe(row["id"], row["reason"], row["image"] and row["image"]["bytes"])
