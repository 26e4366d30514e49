"""Small test sets in exactly the forms of the public ones, drawn in the icon world: for tests and the rehearsal.

Zero-shot sets come as the CLIP benchmarks' webdatasets on the Hub, as Parquet of `datasets`, or as one folder of
pictures for each class; galleries come as folders or zips of pictures.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from saferclip.data import iconworld

TEMPLATES = ("a photo of {c}.", "a picture of {c}.")
SAVED_AS: dict[str, dict[str, Any]] = {
    "jpg": {"format": "JPEG", "quality": 90},
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True},
}


class Labelled(NamedTuple):
    """An encoded picture with the number of its class."""

    image: bytes
    label: int


def class_names(count: int = 4) -> list[str]:
    """Names of objects, which pictures of ``labelled`` show."""
    return list(iconworld.common_concepts()[:count])


def labelled(count: int, classes: Sequence[str], seed: int = 0, extension: str = "jpg") -> list[Labelled]:
    """Pictures of one object each, class after class in turn."""
    random = np.random.default_rng(seed)
    labels = [number % len(classes) for number in range(count)]
    return [Labelled(encoded(iconworld.count_scene(random, classes[label], 1), extension), label) for label in labels]


def safe_pictures(count: int, seed: int = 1) -> list[bytes]:
    """JPEGs of harmless scenes."""
    return list(_scenes(count, seed, ()))


def unsafe_pictures(count: int, seed: int = 2) -> list[bytes]:
    """JPEGs of scenes with an icon that stands for something unsafe."""
    return list(_scenes(count, seed, iconworld.unsafe_concepts()))


def _scenes(count: int, seed: int, always: Sequence[str]) -> Iterator[bytes]:
    random = np.random.default_rng(seed)
    for _ in range(count):
        shown = [always[int(random.integers(len(always)))]] if always else []
        yield encoded(iconworld.sample_scene(random, iconworld.common_concepts(), always=shown), "jpg")


def encoded(scene: iconworld.Scene, extension: str) -> bytes:
    """A rendered scene as a file of that kind."""
    buffer = BytesIO()
    Image.fromarray(iconworld.render(scene)).save(buffer, **SAVED_AS[extension])
    return buffer.getvalue()


def write_webdataset(
    folder: Path,
    classes: Sequence[str],
    images: Sequence[Labelled],
    templates: Sequence[str] = TEMPLATES,
    shards: int = 2,
    extension: str = "jpg",
    split: str = "test",
) -> Path:
    """As the repositories clip-benchmark/wds_* of the Hub: returns the folder."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    size = -(-len(images) // shards)
    for shard in range(shards):
        with tarfile.open(folder / split / f"{shard}.tar", "w") as tar:
            for number, image in list(enumerate(images))[shard * size : (shard + 1) * size]:
                add(tar, f"s{number:07d}.cls", str(image.label).encode())
                add(tar, f"s{number:07d}.{extension}", image.image)
    (folder / split / "nshards.txt").write_text(f"{shards}\n")
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in classes))
    (folder / "zeroshot_classification_templates.txt").write_text("".join(f"{line}\n" for line in templates))
    return folder


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append one file to a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, BytesIO(data))


def write_parquet(folder: Path, classes: Sequence[str], images: Sequence[Labelled], split: str = "test") -> Path:
    """As `datasets` uploads a set of images with labels: data/<split>-*.parquet; returns the folder."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(classes))})
    columns = {
        "image": [{"bytes": image.image, "path": None} for image in images],
        "label": [image.label for image in images],
    }
    (folder / "data").mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def write_class_folders(folder: Path, classes: Sequence[str], images: Sequence[Labelled]) -> Path:
    """One folder of JPEGs for each class, as the middle frames of UCF101 come; returns the folder."""
    for number, image in enumerate(images):
        place = folder / classes[image.label].replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"picture_{number:05d}.jpg").write_bytes(image.image)
    return folder


def write_pictures(place: Path, pictures: Sequence[bytes]) -> Path:
    """Pictures in a folder with folders in it, or in a zip if ``place`` ends in .zip; returns ``place``."""
    names = [f"part_{number % 2}/{number:06d}.jpg" for number in range(len(pictures))]
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, picture in zip(names, pictures, strict=True):
                archive.writestr(name, picture)
        return place
    for name, picture in zip(names, pictures, strict=True):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(picture)
    return place
