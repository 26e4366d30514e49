"""Files appear whole or not at all, `datasets` opens the tables, and errors name the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, load_dataset
from PIL import Image

from saferclip import io
from saferclip.io import DataError

RED = io.encode_png(np.full((4, 6, 3), (255, 0, 0), np.uint8))


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Atomic writing ---------------------------------------------------------------------------------


def test_file_appears_under_its_name_only_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with io.atomic_path(target) as temporary:
        assert temporary.suffix == ".txt"  # writers look at it
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert entries(target.parent) == ["a.txt"]


def test_failed_body_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyError), io.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert target.read_text() == "old"
    assert entries(tmp_path) == ["a.txt"]


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    for name in ("old", "new"):
        with io.atomic_path(target) as temporary:
            (temporary / "deep").mkdir(parents=True)
            (temporary / "deep" / name).write_text(name)
    assert entries(target / "deep") == ["new"]
    assert entries(tmp_path) == ["adapter"]


def test_failed_body_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(KeyError), io.atomic_path(target) as temporary:
        temporary.mkdir()
        raise KeyError
    assert entries(target) == ["old"]
    assert entries(tmp_path) == ["adapter"]


def test_old_folder_comes_back_if_the_new_one_cannot_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old folder is set aside, never deleted, before the new one is in its place."""
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").touch()
    replace = Path.replace

    def failing(source: Path, destination: Path) -> Path:
        if (source / "new").exists():
            raise OSError("no space left")
        return replace(source, destination)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="no space"), io.atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert entries(target) == ["old"]
    assert entries(tmp_path) == ["adapter"]


def test_file_never_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "results"
    target.mkdir()
    (target / "precious").touch()
    with pytest.raises(IsADirectoryError):
        io.write_json(target, {})
    assert entries(target) == ["precious"]
    assert entries(tmp_path) == ["results"]


def test_link_is_replaced_not_what_it_points_to(tmp_path: Path) -> None:
    """DVC may link results to its cache, which must not change."""
    cached, target = tmp_path / "cached.json", tmp_path / "a.json"
    io.write_json(cached, 1)
    target.symlink_to(cached)
    io.write_json(target, 2)
    assert (io.read_json(cached), io.read_json(target)) == (1, 2)
    assert not target.is_symlink()


def test_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "adapter"
    visible: list[bool] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (visible.append(target.exists()), fsync(descriptor))[1])
    with io.atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "a").touch()
        (temporary / "b").touch()
    # Two files and their folder, then, renamed, the name itself.
    assert visible == [False, False, False, True]


# Tables -----------------------------------------------------------------------------------------


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"r{number}", "label": number, "score": number / 2, "unsafe": number % 2 == 0, "image": RED}
        for number in range(count)
    ]


@pytest.mark.parametrize("reader", ["load_dataset", "from_parquet"])
def test_datasets_opens_a_table_and_gives_pictures(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "table.parquet"
    io.write_table(path, rows(3))
    if reader == "load_dataset":
        data = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    else:
        data = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert isinstance(data[2]["image"], Image.Image)
    assert (data[2]["image"].size, data[2]["image"].getpixel((0, 0))) == ((6, 4), (255, 0, 0))
    assert {key: data[2][key] for key in ("id", "label", "score", "unsafe")} == {
        "id": "r2",
        "label": 2,
        "score": 1.0,
        "unsafe": True,
    }


def test_withheld_image_is_none(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    io.write_table(path, [{"id": "a", "image": None}, {"id": "b", "image": RED}])
    data = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert data[0]["image"] is None
    assert io.read_table(path).column("image").to_pylist() == [None, {"bytes": RED, "path": None}]


def test_rows_are_taken_group_by_group(tmp_path: Path) -> None:
    """A table larger than memory can be written: what was taken is written before more is asked for."""
    taken: list[int] = []

    def stream() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows(250)):
            taken.append(number)
            yield row

    path = tmp_path / "table.parquet"
    io.write_table(path, stream())
    groups = pq.ParquetFile(path).metadata
    assert [groups.row_group(index).num_rows for index in range(groups.num_row_groups)] == [100, 100, 50]
    assert io.read_table(path).column("id").to_pylist() == [f"r{number}" for number in taken]


def test_stream_that_fails_leaves_no_table(tmp_path: Path) -> None:
    def stream() -> Iterator[dict[str, Any]]:
        yield from rows(150)
        raise DataError("row 150")

    with pytest.raises(DataError, match="row 150"):
        io.write_table(tmp_path / "table.parquet", stream())
    assert entries(tmp_path) == []


def test_table_is_a_function_of_its_rows(tmp_path: Path) -> None:
    """Byte by byte: DVC and Snakemake tell tables apart by their hash."""
    for name in ("a", "b"):
        io.write_table(tmp_path / name, rows(120))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "without rows"),
        ([{"a": 1}, {"b": 1}], "row with columns b; the first one has a"),
        ([{"a": 1}, {"a": 1, "b": 2}], "row with columns a, b; the first one has a"),
        ([{"a": 1}, {"a": "x"}], "column a: values do not go together"),
        ([{"image": 3}], "column image: values do not go together"),
    ],
)
def test_rows_that_make_no_table_are_refused(tmp_path: Path, content: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        io.write_table(tmp_path / "table.parquet", content)
    assert str(tmp_path / "table.parquet") in str(caught.value)
    assert entries(tmp_path) == []


def test_later_rows_must_suit_the_first_group(tmp_path: Path) -> None:
    content = [{"id": "x", "image": RED} for _ in range(100)] + [{"id": 7, "image": RED}]
    with pytest.raises(DataError, match="column id: values do not go together"):
        io.write_table(tmp_path / "table.parquet", content)
    assert entries(tmp_path) == []


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    io.write_table(path, [{"a": 1, "b": 2}])
    assert io.read_table(path, ["b"]).column_names == ["b"]
    with pytest.raises(DataError, match=r"table\.parquet: missing column\(s\) c, d; it has a, b"):
        io.read_table(path, ["a", "c", "d"])


# The other formats ------------------------------------------------------------------------------


def test_tensors_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor([1], dtype=torch.bfloat16)}
    io.write_tensors(path, tensors, metadata={"format": "pt"})
    found = io.read_tensors(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in found)
    assert io.read_metadata(path) == {"format": "pt"}
    io.write_tensors(path, tensors)
    assert io.read_metadata(path) == {}


def test_json_comes_back_and_keeps_text_readable(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    io.write_json(path, {"b": "Süden", "a": [1.5, None]})
    assert io.read_json(path) == {"b": "Süden", "a": [1.5, None]}
    assert path.read_bytes() == '{\n  "b": "Süden",\n  "a": [\n    1.5,\n    null\n  ]\n}\n'.encode()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        io.write_json(tmp_path / "a.json", {"value": number})
    assert entries(tmp_path) == []


def test_csv_has_the_rows_in_order(tmp_path: Path) -> None:
    io.write_csv(tmp_path / "a.csv", [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
    assert (tmp_path / "a.csv").read_text() == "step,loss\n1,0.5\n2,0.25\n"


@pytest.mark.parametrize(
    ("reader", "kind"),
    [
        (io.read_table, "Parquet"),
        (io.read_tensors, "safetensors"),
        (io.read_metadata, "safetensors"),
        (io.read_json, "JSON"),
    ],
)
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe{", b"PAR1 but not really"])
def test_unreadable_file_is_named(tmp_path: Path, reader: Any, kind: str, content: bytes | None) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path}: cannot be read as {kind}"):
        reader(path)


# Evaluation records -----------------------------------------------------------------------------


def record(**changes: Any) -> dict[str, Any]:
    metrics = {"text_to_image/recall@1": {"value": 50.0, "low": 40.0, "high": 60.0, "count": 10}}
    values = {"method": "clip", "seed": 0, "benchmark": "test", "counts": {"queries": 10}, "metrics": metrics}
    return {**values, "provenance": {}, **changes}


def test_evaluation_record_comes_back(tmp_path: Path) -> None:
    written = io.EvaluationRecord.model_validate(record(metrics={"cosine": {"value": 0.5, "count": 3}}))
    io.write_evaluation(tmp_path / "test.json", written)
    assert io.read_evaluation(tmp_path / "test.json") == written
    assert io.read_json(tmp_path / "test.json")["metrics"] == {"cosine": {"value": 0.5, "count": 3}}


@pytest.mark.parametrize("changes", [{"metrics": {"a": {"value": 1.0, "count": 0}}}, {"seed": "x"}, {"extra": 1}])
def test_wrong_evaluation_record_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    io.write_json(tmp_path / "test.json", record(**changes))
    with pytest.raises(DataError, match=r"test\.json: not an evaluation record"):
        io.read_evaluation(tmp_path / "test.json")


# Pictures ---------------------------------------------------------------------------------------


def test_pictures_survive_encoding() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    decoded = io.decode_image({"bytes": io.encode_png(pixels), "path": None})
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), pixels)
    assert io.encode_png(Image.fromarray(pixels)) == io.encode_png(pixels)


def test_jpeg_is_a_jpeg_and_close() -> None:
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    pixels = np.stack([np.tile(ramp, (64, 1))] * 3, axis=-1)
    data = io.encode_jpeg(pixels)
    assert data.startswith(b"\xff\xd8")
    decoded = np.asarray(io.decode_image({"bytes": data, "path": None}), dtype=int)
    assert np.abs(decoded - pixels).mean() < 3


def test_tensors_are_as_readable_as_other_files(tmp_path: Path) -> None:
    io.write_tensors(tmp_path / "tensors.safetensors", {"a": torch.zeros(2)})
    io.write_json(tmp_path / "record.json", {})

    assert (tmp_path / "tensors.safetensors").stat().st_mode == (tmp_path / "record.json").stat().st_mode


# Reading bit by bit -----------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A table of 250 rows, in three groups; every seventh image is withheld."""
    rows = [{"id": f"{row}", "image": None if row % 7 == 3 else b"%d" % row} for row in range(250)]
    io.write_table(tmp_path / "pictures.parquet", rows)
    assert pq.ParquetFile(tmp_path / "pictures.parquet").num_row_groups == 3
    return tmp_path / "pictures.parquet"


def test_present_says_which_images_are_there(pictures: Path) -> None:
    assert io.column_names(pictures) == ["id", "image"]
    assert io.present(pictures, "image") == [row % 7 != 3 for row in range(250)]


def test_cells_come_in_the_order_asked_for(pictures: Path) -> None:
    rows = [249, 0, 99, 100, 3, 100, 200]
    found = [cell and cell["bytes"] for cell in io.read_cells(pictures, "image", rows)]
    assert found == [b"249", b"0", b"99", b"100", None, b"100", b"200"]
    assert list(io.read_cells(pictures, "id", iter([101, 5]))) == ["101", "5"]


def test_one_group_of_rows_is_read_at_a_time(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []
    read = pq.ParquetFile.read_row_group

    def noted(file: Any, group: int, **options: Any) -> Any:
        groups.append(group)
        return read(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    cells = io.read_cells(pictures, "image", range(250))
    next(cells)
    assert groups == [0]
    list(cells)
    assert groups == [0, 1, 2]


def test_a_table_that_cannot_be_read_bit_by_bit_is_named(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(DataError, match=r"pictures\.parquet: missing column\(s\) safe_image; it has id, image"):
        io.present(pictures, "safe_image")
    (tmp_path / "broken.parquet").write_bytes(b"<html>")
    for read in (
        io.column_names,
        lambda path: io.present(path, "image"),
        lambda path: list(io.read_cells(path, "image", [0])),
    ):
        with pytest.raises(DataError, match=r"broken\.parquet: cannot be read as Parquet"):
            read(tmp_path / "broken.parquet")
