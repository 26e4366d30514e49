"""ViSU joined with COCO, from files in the forms in which both are published."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import datasets
import numpy as np
import pytest
from PIL import Image

from saferclip import io
from saferclip.config import Config, ConfigError, DataSettings, validate
from saferclip.data import build, coco, visu, visu_text

Tables = Callable[[Path], dict[str, list[dict[str, Any]]]]


def test_rows_hold_the_releases_captions_and_cocos_images(small_visu: Any, tmp_path: Path, tables: Tables) -> None:
    visu.write(small_visu.settings(), tmp_path / "out", small_visu.downloads, [])
    found = tables(tmp_path / "out")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 7, "validation": 3, "test": 4}
    for split, rows in found.items():
        for number, (row, record) in enumerate(zip(rows, small_visu.records[split], strict=True)):
            number_in_coco = record["coco_id"]
            assert list(row) == list(io.QUADRUPLE_COLUMNS)
            assert row["id"] == f"{split}-{number}" and row["split"] == split
            assert (row["safe_caption"], row["unsafe_caption"]) == (record["safe"], record["nsfw"])
            random = np.random.default_rng(number_in_coco)
            tiles = random.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            assert row["safe_image"]["bytes"] == io.encode_jpeg(tiles)
            assert row["unsafe_image"] is None
    counts = {"rows": 7, "safe_images": 7, "unsafe_images": 0, "without_safe_image": 0, "without_unsafe_image": 7}
    summary = io.read_json(tmp_path / "out" / "summary.json")
    assert summary["train"] == counts
    assert datasets.Dataset.from_parquet(str(tmp_path / "out" / "train.parquet")).features["safe_image"] is not None


def test_the_misspelt_tag_is_corrected_and_told(
    small_visu: Any, tmp_path: Path, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    small_visu.records["test"][0]["tag"] = "Something  New"
    small_visu.records["test"][1]["tag"] = None
    small_visu.write_text()
    with caplog.at_level(logging.WARNING):
        visu.write(small_visu.settings(), tmp_path / "out", small_visu.downloads, [])
    found = tables(tmp_path / "out")
    assert {row["category"] for row in found["train"]} == {"harassment", "weapons"}
    assert [row["category"] for row in found["test"][:2]] == ["something new", "unsafe"]
    assert "tag 'harrassment' (7 records) is taken for 'harassment'" in caplog.text
    assert "tag 'something new' (1 records) is none of ViSU's concepts" in caplog.text
    assert io.read_json(tmp_path / "out" / "summary.json")["corrected_tags"] == {"harrassment": "harassment"}


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def numbered(rows: list[Any]) -> dict[str, Any]:
    """Not in order, as JSON objects need not be."""
    return {str(number): {k: v for k, v in rows[number].items() if k != "incremental_id"} for number in (2, 0, 1)}


LAYOUTS: dict[str, Callable[[list[Any]], str]] = {
    "list": json.dumps,
    "list with a byte order mark": lambda rows: "\ufeff" + json.dumps(rows, indent=2),
    "lines": lines,
    "by number": lambda rows: json.dumps(numbered(rows)),
    "by number, over lines": lambda rows: json.dumps(numbered(rows), indent=2),
    "below data": lambda rows: json.dumps({"info": {"version": 1}, "data": numbered(rows)}),
    "list below data": lambda rows: json.dumps({"info": {}, "data": rows}, indent=1),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_of_the_release_gives_the_same_records(small_visu: Any, layout: str) -> None:
    expected = list(visu_text.read(small_visu.settings(), small_visu.downloads).records("validation"))
    small_visu.file("validation").write_text(LAYOUTS[layout](small_visu.records["validation"]))
    assert list(visu_text.read(small_visu.settings(), small_visu.downloads).records("validation")) == expected


def test_fields_may_have_other_names_and_splits_other_files(small_visu: Any) -> None:
    small_visu.file("validation").unlink()
    rows = [
        {"number": 5, "ok": "A cup.", "not_ok": "A skull.", "kind": "blood", "picture": "000000000042", "s": [7, 8]}
    ]
    for split in ("train", "test"):
        small_visu.file(split).write_text(json.dumps(rows))
    (small_visu.text / "data").mkdir()
    (small_visu.text / "data" / "visu_val.jsonl").write_text(lines(rows))
    columns = {"id": "number", "safe": "ok", "unsafe": "not_ok", "tag": "kind", "image": "picture", "seeds": "s"}
    release = visu_text.read(small_visu.settings(columns=columns), small_visu.downloads)
    expected = visu_text.Record("validation-5", "validation", "blood", "A cup.", "A skull.", 42, (7, 8))
    assert list(release.records("validation")) == [expected]


@pytest.mark.parametrize("limit", [2, 3, 100])
def test_limit_takes_the_first_rows_of_each_split(small_visu: Any, tmp_path: Path, tables: Tables, limit: int) -> None:
    visu.write(small_visu.settings(limit=limit), tmp_path / "out", small_visu.downloads, [])
    counts = {split: len(rows) for split, rows in tables(tmp_path / "out").items()}
    assert counts == {"train": min(7, limit), "validation": min(3, limit), "test": min(4, limit)}


def test_folders_serve_as_well_as_archives(small_visu: Any, tmp_path: Path, tables: Tables) -> None:
    visu.write(small_visu.settings(), tmp_path / "zip", small_visu.downloads, [])
    folder = tmp_path / "unpacked"
    for path in small_visu.folder.glob("coco-*/*.zip"):
        with ZipFile(path) as archive:
            archive.extractall(folder / path.stem)
    places = {
        **small_visu.downloads,
        "coco-train2017": folder / "train2017",
        "coco-val2017": folder / "val2017" / "val2017",
    }
    visu.write(small_visu.settings(), tmp_path / "folder", places, [])
    archive_itself = {**small_visu.downloads, "coco-train2017": small_visu.folder / "coco-train2017" / "train2017.zip"}
    visu.write(small_visu.settings(), tmp_path / "file", archive_itself, [])
    assert tables(tmp_path / "zip") == tables(tmp_path / "folder") == tables(tmp_path / "file")


def test_missing_images_are_refused_all_at_once_or_kept_as_gaps(
    small_visu: Any, tmp_path: Path, tables: Tables
) -> None:
    gone = {small_visu.records["train"][2]["coco_id"], small_visu.records["test"][0]["coco_id"]}
    small_visu.write_archives(without=gone)
    with pytest.raises(io.DataError) as error:
        visu.write(small_visu.settings(missing_images="refuse"), tmp_path / "out", small_visu.downloads, [])
    message = str(error.value)
    assert "16 problems in the data; nothing was written" in message
    assert f"train-2: image {1000 + 74:012d} is in none of coco-train2017, coco-val2017" in message
    assert "test-0: has no unsafe image (withheld); make it, or set data.visu.missing_images to 'keep'" in message
    assert not (tmp_path / "out").exists()
    visu.write(small_visu.settings(), tmp_path / "out", small_visu.downloads, [])
    found = tables(tmp_path / "out")
    assert [row["id"] for rows in found.values() for row in rows if row["safe_image"] is None] == ["train-2", "test-0"]
    assert io.read_json(tmp_path / "out" / "summary.json")["train"]["without_safe_image"] == 1


def replace_member(path: Path, name: str, data: bytes) -> None:
    with ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, data if member == name else content)


@pytest.mark.parametrize("damage", ["truncated", "page", "checksum"])
def test_damaged_images_are_always_errors_that_name_them(small_visu: Any, tmp_path: Path, damage: str) -> None:
    path = small_visu.folder / "coco-train2017" / "train2017.zip"
    name = f"train2017/{1000 + 37:012d}.jpg"
    with ZipFile(path) as archive:
        data, place = archive.read(name), archive.getinfo(name).header_offset
    if damage == "checksum":
        content = bytearray(path.read_bytes())
        content[place + 30 + len(name) + 200] ^= 0xFF
        path.write_bytes(bytes(content))
    else:
        replace_member(path, name, data[: len(data) // 2] if damage == "truncated" else b"<html>not found</html>")
    settings = small_visu.settings(missing_images="keep")  # which is about images that are not there
    with pytest.raises(io.DataError, match=rf"1 problem in the data; train\.parquet was not written\n.*{name}"):
        visu.write(settings, tmp_path / "out", small_visu.downloads, [])
    assert not (tmp_path / "out" / "train.parquet").exists()


def test_grey_and_rotated_images_become_plain_ones(small_visu: Any, tmp_path: Path, tables: Tables) -> None:
    grey = Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64))
    grey.save(tmp_path / "grey.jpg")
    path = small_visu.folder / "coco-train2017" / "train2017.zip"
    replace_member(path, f"train2017/{1000:012d}.jpg", (tmp_path / "grey.jpg").read_bytes())
    visu.write(small_visu.settings(), tmp_path / "out", small_visu.downloads, [])
    data = tables(tmp_path / "out")["train"][0]["safe_image"]["bytes"]
    assert data.startswith(b"\x89PNG") and io.decode_image({"bytes": data}).mode == "RGB"


@pytest.mark.parametrize("name", ["../000000001000.jpg", "/etc/000000001000.jpg", "a/../../b.jpg", "C:\\b.jpg"])
def test_archives_that_lead_out_of_themselves_are_refused(small_visu: Any, tmp_path: Path, name: str) -> None:
    with ZipFile(small_visu.folder / "coco-val2017" / "val2017.zip", "a") as archive:
        archive.writestr(name, b"anything")
    with pytest.raises(io.DataError, match=r"val2017\.zip: holds .* which leads out of it"):
        visu.write(small_visu.settings(), tmp_path / "out", small_visu.downloads, [])


def test_archives_are_read_without_unpacking(small_visu: Any) -> None:
    before = sorted(small_visu.folder.rglob("*"))
    images = coco.CocoImages([small_visu.downloads["coco-train2017"], small_visu.downloads["coco-val2017"]])
    assert len(images) == 14 and 1000 in images and 1001 not in images
    assert images.read(1000).startswith(b"\xff\xd8")
    assert sorted(small_visu.folder.rglob("*")) == before


def test_an_archive_bomb_is_refused(small_visu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "LARGEST", 100)
    images = coco.CocoImages([small_visu.downloads["coco-train2017"]])
    with pytest.raises(io.DataError, match=r"000000001000\.jpg: larger than 100 bytes \([\d,]+\)"):
        images.read(1000)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"<html>"])
def test_half_an_archive_is_named(small_visu: Any, tmp_path: Path, content: bytes) -> None:
    (small_visu.folder / "coco-val2017" / "val2017.zip").write_bytes(content)
    with pytest.raises(io.DataError, match=r"val2017\.zip: cannot be read as an archive"):
        visu.write(small_visu.settings(), tmp_path / "out", small_visu.downloads, [])


def test_all_wrong_records_are_told_at_once(small_visu: Any) -> None:
    rows = small_visu.records["train"]
    rows[0]["safe"] = "  "
    rows[1]["nsfw"] = "two\nlines"
    rows[2]["coco_id"] = -3
    rows[4]["incremental_id"] = 3
    small_visu.write_text()
    with pytest.raises(io.DataError) as error:
        visu_text.read(small_visu.settings(), small_visu.downloads)
    message = str(error.value)
    assert "4 problems" in message
    for part in (
        "record 0: safe: empty",
        "record 1: nsfw: ",
        "record 2: coco_id: -3 is not",
        "record 4: incremental_id",
    ):
        assert f"ViSU-Text_train.json: {part}" in message


def test_a_field_by_another_name_is_suggested(small_visu: Any) -> None:
    for row in small_visu.records["test"]:
        row["cocoid"] = row.pop("coco_id")
    small_visu.write_text()
    with pytest.raises(io.DataError, match=r"field 'coco_id': missing; set data\.visu\.columns\.image to 'cocoid'\?"):
        visu_text.read(small_visu.settings(), small_visu.downloads)


@pytest.mark.parametrize(
    "content", ["", "[]", "<html>", '[{"safe": "a cat"', '{"a": {"safe": 1}}', '{"1": 5, "2": {}}']
)
def test_what_is_no_list_of_records_is_named(small_visu: Any, content: str) -> None:
    small_visu.file("test").write_text(content)
    with pytest.raises(io.DataError, match=r"ViSU-Text_test\.json: "):
        visu_text.read(small_visu.settings(), small_visu.downloads)


def test_splits_are_known_by_their_files(small_visu: Any) -> None:
    (small_visu.text / "more-train.json").write_text("[]")
    with pytest.raises(
        io.DataError, match=r"2 files of the split 'train', not one; there are: ViSU-Text_train\.json, mo"
    ):
        visu_text.read(small_visu.settings(), small_visu.downloads)
    small_visu.file("train").unlink()
    (small_visu.text / "more-train.json").unlink()
    with pytest.raises(io.DataError, match="0 files of the split 'train', not one; there are: ViSU-Text_test"):
        visu_text.read(small_visu.settings(), small_visu.downloads)


# Unsafe images ----------------------------------------------------------------------------------


def shard(folder: Path, number: int, ids: list[str], made: set[str]) -> Path:
    """A table as the step unsafe_images writes it."""
    rows = [
        {
            "id": name,
            "reason": visu.MADE if name in made else "none flagged",
            "image": name.encode() if name in made else None,
            "seed": 1,
            "candidates": 1,
            "scores": "[]",
        }
        for name in ids
    ]
    io.write_table(folder / f"{number}.parquet", rows)
    return folder / f"{number}.parquet"


def all_ids(small_visu: Any) -> list[str]:
    return [f"{split}-{number}" for split, rows in small_visu.records.items() for number in range(len(rows))]


def test_shards_of_unsafe_images_are_joined(small_visu: Any, tmp_path: Path, tables: Tables) -> None:
    ids = all_ids(small_visu)
    made = set(ids) - {"train-1", "test-3"}
    shards = [shard(tmp_path, 0, ids[:5], made), shard(tmp_path, 1, ids[5:9], made), shard(tmp_path, 2, ids[9:], made)]
    settings = DataSettings.model_validate({"source": "visu", "visu": small_visu.settings().model_dump()})
    build.build(settings, tmp_path / "out", small_visu.downloads, shards)
    for rows in tables(tmp_path / "out").values():
        for row in rows:
            expected = row["id"].encode() if row["id"] in made else None
            assert (row["unsafe_image"] and row["unsafe_image"]["bytes"]) == expected
    summary = io.read_json(tmp_path / "out" / "summary.json")
    assert summary["train"]["without_unsafe_image"] == summary["test"]["without_unsafe_image"] == 1
    with pytest.raises(io.DataError) as error:
        visu.write(small_visu.settings(missing_images="refuse"), tmp_path / "no", small_visu.downloads, shards)
    assert "2 problems" in str(error.value) and "train-1: has no unsafe image (none flagged)" in str(error.value)


def test_an_image_made_before_a_word_was_listed_is_left_out(small_visu: Any, tmp_path: Path, tables: Tables) -> None:
    ids = all_ids(small_visu)
    shards = [shard(tmp_path, 0, ids, set(ids))]
    small_visu.records["train"][1]["nsfw"] = "A boy beside a pistol."
    small_visu.write_text()
    visu.write(small_visu.settings(), tmp_path / "out", small_visu.downloads, shards)
    found = [row["id"] for rows in tables(tmp_path / "out").values() for row in rows if not row["unsafe_image"]]
    assert found == ["train-1"]
    assert io.read_json(tmp_path / "out/summary.json")["train"]["without_unsafe_image"] == 1
    with pytest.raises(io.DataError, match=r"train-1.*has no unsafe image \(a minor could be meant\)"):
        visu.write(small_visu.settings(missing_images="refuse"), tmp_path / "no", small_visu.downloads, shards)


def test_shards_of_other_captions_are_refused(small_visu: Any, tmp_path: Path) -> None:
    ids = all_ids(small_visu)
    for wrong, message in (
        (ids[1:], "13 unsafe images, but 14 records"),
        ([*ids[1:], ids[0]], "holds train-1 in place"),
    ):
        with pytest.raises(io.DataError, match=message):
            visu.write(
                small_visu.settings(), tmp_path / "out", small_visu.downloads, [shard(tmp_path, 0, wrong, set(ids))]
            )


# Settings ---------------------------------------------------------------------------------------


def config(**visu_settings: Any) -> Config:
    from saferclip.config import read

    values = read(Path(__file__).parents[2] / "config/own-pairs.yaml")
    section = {"text": "visu-text", "images": ["coco-train2017"], "missing_images": "keep", **visu_settings}
    values["data"] = {"source": "visu", "visu": section}
    values["downloads"] = {
        "table": "config/versions.csv",
        "folder": "downloads",
        "local": {},
        "connections": 2,
        "retries": 1,
    }
    return validate(values)


def test_each_step_is_given_its_own_settings_and_downloads(unsafe_images_section: dict[str, Any]) -> None:
    made = {
        **unsafe_images_section,
        "filter": {"q16": {"prompts": "q16-prompts", "clip": "vit-l-14-openai", "batch_size": 4}},
    }
    settings = config(unsafe_images=made)
    assert list(settings.downloads_of("data")) == ["coco-train2017", "visu-text"]
    assert list(settings.downloads_of("unsafe_images")) == ["painter", "q16-prompts", "visu-text", "vit-l-14-openai"]
    assert "steps" not in settings.settings_of("data")
    assert "coco-train2017" not in settings.settings_of("unsafe_images")
    with pytest.raises(ConfigError, match="has no settings for it"):
        config().section("unsafe_images")


def test_withheld_images_must_be_wanted() -> None:
    with pytest.raises(ConfigError, match=r"unsafe_images is not given.*set data\.visu\.missing_images to 'keep'"):
        config(missing_images="refuse")


def test_each_candidate_needs_a_seed(unsafe_images_section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="3 candidates, but 2 seeds; give one to each"):
        config(unsafe_images={**unsafe_images_section, "seeds": [1, 2]})
