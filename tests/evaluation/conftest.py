"""Test sets small enough to search by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saferclip import io
from saferclip.config import EvaluationSettings
from saferclip.evaluation.encoder import Encoders

COUNT = 24
UNSAFE, SAFE = 4, 20
CLASSES = {"objects": ["a cat", "a bus", "a tree"], "colours": ["something red", "something blue"]}
TEMPLATES = ["a photo of {}", "a picture of {}", "there is {}"]


@pytest.fixture
def settings() -> EvaluationSettings:
    return EvaluationSettings(
        benchmarks=("test", "nsfw_caps", "gallery", "zero_shot", "drift"),
        batch_size=7,
        block_size=5,
        bootstrap=50,
        bootstrap_seed=1,
    )


@pytest.fixture
def encoders(tiny_resnet_clip_folder: Path, tiny_clip_folder: Path) -> Encoders:
    """One tiny model in the role of the tuned one, another in that of its base."""
    return Encoders.load(tiny_resnet_clip_folder, tiny_clip_folder, batch_size=7)


@pytest.fixture
def files(tmp_path: Path, tiny_quadruples: Callable[..., Path]) -> dict[str, Path]:
    random = np.random.default_rng(3)

    def image() -> bytes:
        return io.encode_png(random.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1))

    pairs = [
        {"id": f"pair-{row}", "unsafe": row % 6 == 0, "caption": f"a caption about thing {row}", "image": image()}
        for row in range(UNSAFE + SAFE)
    ]
    images = [
        {"set": name, "label": row % len(classes), "image": image()}
        for name, classes in CLASSES.items()
        for row in range(8)
    ]
    io.write_table(tmp_path / "gallery.parquet", pairs)
    io.write_table(tmp_path / "zero_shot.parquet", images)
    sets = {name: {"title": name, "classes": classes, "templates": TEMPLATES} for name, classes in CLASSES.items()}
    io.write_json(tmp_path / "zero_shot.json", sets)
    return {
        "test": tiny_quadruples(COUNT, "test"),
        "nsfw_caps": tiny_quadruples(COUNT, "nsfw_caps", seed=1),
        "gallery": tmp_path / "gallery.parquet",
        "zero_shot": tmp_path / "zero_shot.parquet",
    }


@pytest.fixture
def without() -> Callable[[Path, str, list[int]], None]:
    """A function that takes the images of some rows out of a table."""

    def remove(path: Path, column: str, rows: list[int]) -> None:
        table: list[dict[str, Any]] = io.read_table(path).to_pylist()
        for place, row in enumerate(table):
            for name in io.IMAGE_COLUMNS & row.keys():
                row[name] = None if name == column and place in rows else row[name] and row[name]["bytes"]
        io.write_table(path, table)

    return remove
