"""A small ViSU in the forms of the public one: the release's folder, and COCO's archives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import pytest

from saferclip import io
from saferclip.config import DataSettings, UnsafeImages, VisuData

COUNTS = {"train": 7, "validation": 3, "test": 4}
THINGS = ("cat", "bus", "tree", "clock", "violin", "cup", "house")
UNSAFE = ("pistol", "syringe", "skull")
DIFFUSION = {
    "model": "painter",
    "steps": 2,
    "guidance": 5.0,
    "image_size": 32,
    "precision": "fp32",
    "batch_size": 3,
}
MADE = {
    "diffusion": DIFFUSION,
    "filter": {"nudenet": {"threshold": 0.5}},
    "candidates": 3,
    "seeds": [1234, 1999, 8185],
    "shards": 2,
}


def photograph(number: int) -> bytes:
    """A JPEG that no other number has."""
    random = np.random.default_rng(number)
    return io.encode_jpeg(random.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1))


def record(split: str, number: int) -> dict[str, Any]:
    """A record with the fields of the release; COCO's numbers lie far apart, as they do there."""
    place = list(COUNTS).index(split) * 100 + number
    return {
        "incremental_id": number,
        "safe": f"A {THINGS[number % 7]} on a table in {split}.",
        "nsfw": f"A {THINGS[number % 7]} beside a {UNSAFE[number % 3]} in {split}.",
        "coco_id": 1000 + 37 * place,
        "tag": "weapons" if number % 2 else "harrassment",
        "prompt_id": number * 3,
    }


@dataclass
class Visu:
    """The folders of a small ViSU; ``records`` is what was written."""

    folder: Path
    records: dict[str, list[dict[str, Any]]]

    @property
    def text(self) -> Path:
        return self.folder / "visu-text"

    @property
    def downloads(self) -> dict[str, Path]:
        names = ("visu-text", "coco-train2017", "coco-val2017", "painter")
        return {name: self.folder / name for name in names}

    def file(self, split: str) -> Path:
        return self.text / f"ViSU-Text_{split}.json"

    def write_text(self) -> None:
        """The release as its repository has it: a list of records in each file, and a README."""
        self.text.mkdir(parents=True, exist_ok=True)
        (self.text / "README.md").write_text("# ViSU\n")
        (self.text / ".gitattributes").write_text("*.json filter=lfs\n")
        for split, rows in self.records.items():
            self.file(split).write_text(json.dumps(rows, indent=1))

    def write_archives(self, without: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        """train2017.zip has the training split's images, val2017.zip the others'."""
        for name, splits in (("train2017", ["train"]), ("val2017", ["validation", "test"])):
            folder = self.folder / f"coco-{name}"
            folder.mkdir(parents=True, exist_ok=True)
            with ZipFile(folder / f"{name}.zip", "w", ZIP_STORED) as archive:
                archive.writestr(f"{name}/", b"")
                for number in (row["coco_id"] for split in splits for row in self.records[split]):
                    if number not in without:
                        archive.writestr(f"{name}/{number:012d}.jpg", photograph(number))

    def settings(self, **changes: Any) -> VisuData:
        values = {"text": "visu-text", "images": ["coco-train2017", "coco-val2017"], "missing_images": "keep"}
        data = DataSettings.model_validate({"source": "visu", "visu": {**values, **changes}})
        assert data.visu is not None
        return data.visu

    def unsafe_settings(self, **changes: Any) -> UnsafeImages:
        return UnsafeImages.model_validate({"text": "visu-text", **MADE, **changes})


@pytest.fixture
def small_visu(tmp_path: Path) -> Visu:
    visu = Visu(tmp_path / "downloads", {split: [record(split, n) for n in range(c)] for split, c in COUNTS.items()})
    visu.write_text()
    visu.write_archives()
    return visu


@pytest.fixture
def unsafe_images_section() -> dict[str, Any]:
    """Settings of unsafe images, as a configuration holds them."""
    return MADE


@pytest.fixture
def tables() -> Callable[[Path], dict[str, list[dict[str, Any]]]]:
    """A function that reads all splits of a folder."""
    return lambda folder: {split: io.read_table(folder / f"{split}.parquet").to_pylist() for split in COUNTS}
