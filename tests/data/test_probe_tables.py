"""Compositional probes from tables of one's own: what is accepted, and that all that is wrong is told."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saferclip import io
from saferclip.config import ProbeSource, PublicSets, SetsStep
from saferclip.data import test_sets

COLUMNS = ("id", "image", "caption", "foil")


def write(folder: Path, name: str, **changes: Any) -> ProbeSource:
    """A table of three rows, the second one changed, and its images; a change to None removes a column."""
    random = np.random.default_rng(5)
    rows = []
    for number in range(3):
        picture = folder / f"{name}-{number}.png"
        picture.write_bytes(io.encode_png(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)))
        captions = {"caption": f"a dog {number} chases a cat", "foil": f" a cat chases a dog {number}"}
        rows.append({"id": number, "image": picture.name, **captions} | (changes if number == 1 else {}))
    names = [column for column in COLUMNS if changes.get(column, "") is not None]
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return ProbeSource(title=name.capitalize(), table=folder / f"{name}.csv")


def build(folder: Path, **probes: ProbeSource) -> Path:
    sizes = {"gallery_unsafe": 4, "gallery_safe_ratio": 2, "gallery_minimum": 1, "seed": 0}
    settings = PublicSets.model_validate({**sizes, "probes": probes})
    test_sets.build(SetsStep(public=settings), {}, None, folder / "out")
    return folder / "out"


def problem(folder: Path, **changes: Any) -> str:
    with pytest.raises(io.DataError) as refused:
        build(folder, order=write(folder, "order", **changes))
    assert not (folder / "out" / "probes.parquet").exists()
    return str(refused.value)


def test_tables_become_one_with_their_images(tmp_path: Path) -> None:
    output = build(tmp_path, order=write(tmp_path, "order"), parts=write(tmp_path, "parts"))
    rows = io.read_table(output / "probes.parquet").to_pylist()
    assert [(row["probe"], row["id"]) for row in rows] == [
        (name, str(n)) for name in ("order", "parts") for n in range(3)
    ]
    assert rows[2]["caption"] == "a dog 2 chases a cat" and rows[2]["foil"] == "a cat chases a dog 2"
    assert rows[4]["image"]["bytes"] == (tmp_path / "parts-1.png").read_bytes()
    assert io.read_json(output / "probes.json") == {
        "order": {"title": "Order", "control": False},
        "parts": {"title": "Parts", "control": False},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"foil": " a dog 1 chases a cat "}, "line 3: foil: is the caption; write what the image does not show"),
        ({"foil": ""}, "line 3: foil: empty"),
        ({"foil": None}, "column 'foil': missing; the table has id, image, caption"),
        ({"image": ""}, "line 3: image: no image; every row needs one: make the missing one, or remove the row"),
        ({"image": "away.png"}, "away.png does not exist; correct the path, or set test_sets.public.probes.image_root"),
        ({"id": 0}, "line 3: id: '0' is the id of"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in problem(tmp_path, **changes)


def test_a_missing_table_is_named_with_its_setting(tmp_path: Path) -> None:
    gone = ProbeSource(title="Gone", table=tmp_path / "gone.csv")
    with pytest.raises(
        io.DataError, match=r"gone\.csv: does not exist; correct test_sets\.public\.probes in the config"
    ):
        build(tmp_path, gone=gone)
