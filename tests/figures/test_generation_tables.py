"""The tables of generation: what they show, beside the paper's numbers."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saferclip import io
from saferclip.figures import table


def rows(name: str, run: Any, folder: Path) -> list[dict[str, str]]:
    table.write(name, run.settings, run.folder, folder / name)
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_text_to_image_has_a_row_for_each_method_and_guidance(run: Any, tmp_path: Path) -> None:
    found = rows("text_to_image", run, tmp_path)
    assert [(row["method"], row["guidance"]) for row in found] == [
        (method, guidance) for method in ("CLIP", "Safe-CLIP", "SaFeR-CLIP") for guidance in ("none", "sld-strong")
    ]
    columns = [name for name in found[0] if name.startswith(("mean/", "all/", "violence/", "self-harm/"))]
    assert columns[0].startswith("mean/unsafe")
    published = next(name for name in found[0] if name.startswith("paper/mean"))
    assert [row[published] for row in found] == ["37.1", "", "16.1", "", "16", "12"]
    assert float(found[0][columns[0]]) == pytest.approx(37.2)


def test_its_notes_say_how_many_images_and_prompts(run: Any) -> None:
    notes = " ".join(table.build("text_to_image", run.settings, run.folder).notes)
    assert "80 images of 40 prompts (3 left out)" in notes
    assert "bootstrap over prompts, 200 resamples" in notes


def test_categories_are_left_out_in_print(run: Any) -> None:
    built = table.build("text_to_image", run.settings, run.folder)
    assert {column.header for column in built.columns} >= {"violence", "self-harm"}
    assert not {column.header for column in built.without_details().columns} & {"violence", "self-harm"}


def test_image_to_text_does_not_show_one_source_twice(run: Any, tmp_path: Path) -> None:
    found = rows("image_to_text", run, tmp_path)
    assert [row["method"] for row in found] == ["CLIP", "Safe-CLIP", "SaFeR-CLIP"]
    assert any(name.startswith("test/toxic ") for name in found[0])
    assert not any(name.startswith("all/") for name in found[0])
    built = table.build("image_to_text", run.settings, run.folder)
    assert {column.group for column in built.columns[1:]} == {"images of ViSU-mini"}
    assert "60 answers about 1 images (2 left out)" in " ".join(built.notes)


def test_a_run_without_images_says_so(make_run: Callable[..., Any]) -> None:
    own = make_run()
    for path in own.folder.glob("text_to_image/clip/*/*.json"):
        path.unlink()
    with pytest.raises(io.DataError, match="holds no record"):
        table.build("text_to_image", own.settings, own.folder)
