"""Public zero-shot sets: labelled images with the names of their classes and prompts, as they are downloaded.

Three forms are read, whichever a folder has: the webdatasets of the CLIP benchmarks (``test/nshards.txt``,
``test/0.tar`` ..., ``classnames.txt``, ``zeroshot_classification_templates.txt``), Parquet with an image and a
ClassLabel, as `datasets` writes it, and one folder of pictures for each class.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from tqdm import tqdm

from saferclip import io
from saferclip.config import ZeroShotSource
from saferclip.data import picture_files, pictures, webdatasets
from saferclip.data.streaming import stream
from saferclip.data.validation import Problems

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"

log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One image as it was found; ``place`` says where, for messages."""

    place: str
    label: int
    image: bytes


@dataclass(frozen=True)
class Found:
    """What a folder holds: how many images, and a way to go through them."""

    count: int
    samples: Callable[[], Iterator[Sample]]
    classes: list[str]  # empty where the data do not name them


@dataclass(frozen=True)
class ZeroShotImages:
    """A public set, ready to be written."""

    name: str
    source: ZeroShotSource
    classes: list[str]
    templates: list[str]  # with {} for the class
    found: Found

    @property
    def used(self) -> int:
        return min(self.source.limit or self.found.count, self.found.count)

    def describe(self) -> dict[str, Any]:
        """What zero_shot.json says of it."""
        return {
            "title": self.source.title,
            "classes": self.classes,
            "templates": self.templates,
            "metric": self.source.metric,
            "download": self.source.download,
            "left_out": self.found.count - self.used,
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of zero_shot.parquet; raises DataError naming all images that cannot be used."""
        problems = Problems()
        bar = tqdm(self._chosen(), desc=self.name, total=self.used, unit=" images", disable=None)
        for label, image, problem in picture_files.side_by_side(self._checked, bar):
            if problem:
                problems.add(*problem)
            else:
                yield {"set": self.name, "label": label, "image": image}
        problems.check()

    def _chosen(self) -> Iterator[Sample]:
        """All images, or as many as the limit says, spread evenly over the set, in which classes lie together."""
        taken = 0
        for number, sample in enumerate(self.found.samples()):
            if taken < self.used and number == taken * self.found.count // self.used:
                taken += 1
                yield sample

    def _checked(self, sample: Sample) -> tuple[int, bytes, tuple[str, ...]]:
        """Label and image of a sample, or what is wrong with it."""
        if not 0 <= sample.label < len(self.classes):
            known = f"the set has {len(self.classes)} classes, from 0"
            return -1, b"", (self.name, sample.place, f"label {sample.label}; {known}")
        try:
            return sample.label, picture_files.plain(sample.image), ()
        except pictures.PictureError as error:
            return -1, b"", (self.name, sample.place, str(error))


def read(name: str, source: ZeroShotSource, downloads: Mapping[str, Path]) -> ZeroShotImages:
    """Find a set's images, classes and prompts; images are not decoded yet.

    Raises DataError where something is missing, or where labels and classes do not go together.
    """
    folder = downloads[source.download]
    if not folder.is_dir():
        raise io.DataError(f"{name}: {folder}: there is no such folder; fetch it, or correct downloads.local")
    found = _found(name, source, folder)
    classes = _lines(source.classes) if source.classes else found.classes
    if not classes:
        raise io.DataError(
            f"{name}: {folder}: does not name its classes; write them in a file, 'classes' in the settings"
        )
    if len(set(classes)) < len(classes):
        twice = sorted({phrase for phrase in classes if classes.count(phrase) > 1})
        log.warning("%s: several classes are called %s, and cannot be told apart", name, " and ".join(twice))
    result = ZeroShotImages(name, source, classes, _templates(name, source, folder), found)
    log.info("%s: %d of %d images, %d classes", name, result.used, found.count, len(classes))
    return result


def _found(name: str, source: ZeroShotSource, folder: Path) -> Found:
    if (folder / source.split).is_dir() and any((folder / source.split).glob("*.tar")):
        classes = _lines(folder / CLASS_NAMES) if (folder / CLASS_NAMES).is_file() else []
        shards = webdatasets.shards(folder / source.split)
        count = webdatasets.check(name, shards, len(_lines(source.classes)) if source.classes else len(classes))
        return Found(count, lambda: map(Sample._make, webdatasets.samples(name, shards)), classes)
    parquet = [
        path for path in sorted(folder.rglob("*.parquet")) if _is_of_split(path.relative_to(folder), source.split)
    ]
    if parquet:
        return _parquet(name, source, parquet)
    place = folder / source.split if (folder / source.split).is_dir() else folder
    return _class_folders(picture_files.find(place))


def _is_of_split(path: Path, split: str) -> bool:
    """Whether a file is named, or lies in a folder named, after a split: data/test-00000-of-00002.parquet."""
    return path.stem.split("-")[0] == split or split in path.parts[:-1]


def _parquet(name: str, source: ZeroShotSource, files: list[Path]) -> Found:
    import datasets

    with stream("parquet", files) as rows:
        features = rows.features
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if source.classes and not labels and "label" in features:
        labels = ["label"]
    if len(images) != 1 or len(labels) != 1:
        raise io.DataError(
            f"{name}: {files[0]}: one column of images and one of class labels are needed; it has {', '.join(features)}"
        )
    counts = [pq.read_metadata(path).num_rows for path in files]
    classes = list(getattr(features[labels[0]], "names", None) or [])
    return Found(sum(counts), partial(_parquet_samples, files, counts, images[0], labels[0]), classes)


def _parquet_samples(files: list[Path], counts: list[int], image: str, label: str) -> Iterator[Sample]:
    import datasets

    places = (f"{path}: row {row}" for path, count in zip(files, counts, strict=True) for row in range(count))
    with stream("parquet", files) as rows:
        for place, row in zip(places, rows.cast_column(image, datasets.Image(decode=False)), strict=True):
            yield Sample(place, -1 if row[label] is None else row[label], (row[image] or {}).get("bytes") or b"")


def _class_folders(files: picture_files.PictureFiles) -> Found:
    """Pictures in folders that are called after their classes; '_' stands for a space."""
    folders = sorted({PurePosixPath(name).parts[0] for name in files.names if "/" in name})
    if not folders:
        raise io.DataError(f"{files.place}: pictures must lie in folders, one for each class")
    numbers = {folder: number for number, folder in enumerate(folders)}
    names = [name for name in files.names if "/" in name]

    def samples() -> Iterator[Sample]:
        for name in names:
            yield Sample(f"{files.place}: {name}", numbers[PurePosixPath(name).parts[0]], files.read(name))

    return Found(len(names), samples, [folder.replace("_", " ") for folder in folders])


def _templates(name: str, source: ZeroShotSource, folder: Path) -> list[str]:
    """Prompts with {} for the class; a stranger's prompt may hold no other field."""
    path = source.templates or folder / TEMPLATES
    if not path.is_file():
        raise io.DataError(f"{name}: {path}: no prompts; write a file of them, 'templates' in the settings")
    templates = [line.replace("{c}", "{}") for line in _lines(path)]
    for number, template in enumerate(templates, start=1):
        if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
            raise io.DataError(f"{path}: line {number}: '{template}'; write {{c}} once, where the class stands")
    return templates


def _lines(path: Path) -> list[str]:
    """Lines of a text file, none of which may be empty."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise io.DataError(f"{path}: cannot be read: {error}") from error
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty or not lines:
        raise io.DataError(f"{path}: line {empty[0] if empty else 1} is empty; there must be something in each line")
    return lines
