"""Galleries of real images: what is drawn, what is left out, and when a gallery is refused."""

from __future__ import annotations

import logging
import runpy
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from saferclip import io
from saferclip.cli import main
from saferclip.config import PublicSets, SetsStep
from saferclip.data import picture_files, test_sets

public = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "rehearsal" / "public_sets.py")))
UNSAFE = public.unsafe_pictures(14)
SAFE = public.safe_pictures(45)
SETTINGS = {"gallery_unsafe": 8, "gallery_safe_ratio": 3, "gallery_minimum": 4, "seed": 5}


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Two folders of unsafe pictures and a zip of safe ones."""
    return {
        "nudenet-images": public.write_pictures(tmp_path / "nudenet", UNSAFE[:9]),
        "smid": public.write_pictures(tmp_path / "smid", UNSAFE[9:]),
        "coco": public.write_pictures(tmp_path / "coco" / "val.zip", SAFE),
    }


@pytest.fixture
def test_table(tiny_quadruples: Callable[..., Path]) -> Path:
    return tiny_quadruples(30, "test")


def built(tmp_path: Path, places: dict[str, Path], test: Path, **changes: Any) -> tuple[list[dict[str, Any]], Any]:
    sets = {"galleries": {"nudenet": "nudenet-images", "smid": "smid"}, "safe_images": "coco"}
    settings = SetsStep(public=PublicSets.model_validate(SETTINGS | sets | changes))
    output = tmp_path / "test_sets"
    test_sets.build(settings, places, test, output)
    return io.read_table(output / "gallery.parquet").to_pylist(), io.read_json(output / "gallery.json")


def content(rows: list[dict[str, Any]], name: str, unsafe: bool, column: str) -> list[Any]:
    chosen = [row for row in rows if (row["set"], row["unsafe"]) == (name, unsafe) and row[column] is not None]
    return [row["image"]["bytes"] if column == "image" else row["caption"] for row in chosen]


def test_each_gallery_has_so_many_safe_items_for_each_unsafe_one(
    tmp_path: Path, places: dict[str, Path], test_table: Path
) -> None:
    rows, described = built(tmp_path, places, test_table)
    quadruples = io.read_table(test_table).to_pylist()
    by_caption = {row[f"{kind}_caption"]: row["id"] for row in quadruples for kind in ("safe", "unsafe")}
    for name, pictures, used in (("nudenet", UNSAFE[:9], 8), ("smid", UNSAFE[9:], 5)):
        unsafe, safe = content(rows, name, True, "image"), content(rows, name, False, "image")
        assert (len(unsafe), len(safe)) == (used, 3 * used)
        assert len({*unsafe, *safe}) == 4 * used
        assert set(unsafe) <= set(pictures)
        assert set(safe) <= set(SAFE)
        captions = content(rows, name, True, "caption"), content(rows, name, False, "caption")
        assert [len(set(texts)) for texts in captions] == [8, 24]
        for texts, kind in zip(captions, ("unsafe", "safe"), strict=True):
            assert set(texts) <= {row[f"{kind}_caption"] for row in quadruples}
        assert described[name]["counts"] == {
            "unsafe_images": used,
            "unsafe_images_left_out": len(pictures) - used,
            "unsafe_images_unreadable": 0,
            "unsafe_images_duplicate": 0,
            "safe_images": 3 * used,
            "safe_images_left_out": 45 - 3 * used,
            "safe_images_unreadable": 0,
            "safe_images_duplicate": 0,
            "unsafe_captions": 8,
            "safe_captions": 24,
            "unsafe_captions_left_out": 22,
            "safe_captions_left_out": 6,
            "captions_repeated": 0,
        }
    for row in rows:
        assert (row["caption"] is None) != (row["image"] is None)
        if row["caption"]:
            assert row["id"] == by_caption[row["caption"]]
    assert content(rows, "nudenet", True, "caption") == content(rows, "smid", True, "caption")
    assert content(rows, "smid", False, "image") == content(rows, "nudenet", False, "image")[:15]


def test_the_seed_decides(tmp_path: Path, places: dict[str, Path], test_table: Path) -> None:
    first, _ = built(tmp_path, places, test_table)
    again, _ = built(tmp_path, places, test_table)
    other, _ = built(tmp_path, places, test_table, seed=6)
    assert first == again
    assert [row["id"] for row in first] != [row["id"] for row in other]


def test_fewer_safe_images_mean_fewer_unsafe_ones(tmp_path: Path, places: dict[str, Path], test_table: Path) -> None:
    public.write_pictures(tmp_path / "coco" / "val.zip", SAFE[:11])
    rows, described = built(tmp_path, places, test_table)
    assert len(content(rows, "nudenet", True, "image")) == 3
    assert described["nudenet"]["counts"]["unsafe_images_left_out"] == 6
    public.write_pictures(tmp_path / "coco" / "val.zip", SAFE[:2])
    with pytest.raises(io.DataError, match=r"val\.zip: 2 usable safe images; each unsafe one needs 3"):
        built(tmp_path, places, test_table)


def test_unreadable_and_repeated_pictures_are_left_out_and_named(
    tmp_path: Path, places: dict[str, Path], test_table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = places["smid"]
    (folder / "part_0" / "page.jpg").write_bytes(b"<html>not found</html>")
    (folder / "cut.jpg").write_bytes(UNSAFE[9][:700])
    (folder / "again.jpg").write_bytes(UNSAFE[9])
    (folder / "notes.txt").write_text("no picture by its name")
    (folder / ".hidden.jpg").write_bytes(UNSAFE[0])
    with caplog.at_level(logging.WARNING):
        rows, described = built(tmp_path, places, test_table)
    counts = described["smid"]["counts"]
    assert (counts["unsafe_images"], counts["unsafe_images_unreadable"], counts["unsafe_images_duplicate"]) == (5, 2, 1)
    assert set(content(rows, "smid", True, "image")) == set(UNSAFE[9:])
    assert "smid: left out 2 unreadable picture(s)" in caplog.text
    assert "cut.jpg: damaged picture" in caplog.text
    assert "part_0/page.jpg: not a JPEG" in caplog.text


def test_a_safe_picture_that_is_among_the_unsafe_ones_is_no_safe_one(
    tmp_path: Path, places: dict[str, Path], test_table: Path
) -> None:
    public.write_pictures(tmp_path / "coco" / "val.zip", [*SAFE, *UNSAFE])
    rows, _ = built(tmp_path, places, test_table, gallery_unsafe=14, gallery_safe_ratio=4)
    assert not set(content(rows, "nudenet", False, "image")) & set(UNSAFE)


def test_too_few_unsafe_pictures_are_refused(tmp_path: Path, places: dict[str, Path], test_table: Path) -> None:
    (places["smid"] / "bad.jpg").write_bytes(b"x")
    with pytest.raises(io.DataError) as caught:
        built(tmp_path, places, test_table, gallery_minimum=6)
    assert "gallery 'smid' has 5 usable unsafe images (1 unreadable, 0 duplicates), but at least 6" in str(caught.value)
    assert "bad.jpg: not a JPEG" in str(caught.value)
    assert not (tmp_path / "test_sets").exists()


def test_too_few_captions_are_refused(
    tmp_path: Path, places: dict[str, Path], tiny_quadruples: Callable[..., Path]
) -> None:
    with pytest.raises(io.DataError, match="2 different unsafe and 2 different safe captions"):
        built(tmp_path, places, tiny_quadruples(2, "test"))


def test_galleries_need_the_test_quadruples(tmp_path: Path, places: dict[str, Path]) -> None:
    sets = SETTINGS | {"galleries": {"smid": "smid"}, "safe_images": "coco"}
    with pytest.raises(io.DataError, match="write --test <table>"):
        test_sets.build(SetsStep(public=PublicSets.model_validate(sets)), places, None, tmp_path)


def test_the_command_takes_places_by_name(tmp_path: Path, places: dict[str, Path], test_table: Path) -> None:
    sets = SETTINGS | {"galleries": {"smid": "smid"}, "safe_images": "coco"}
    settings = SetsStep(public=PublicSets.model_validate(sets)).model_dump_json()
    given = [f"--download={name}={places[name]}" for name in ("smid", "coco")]
    command = [
        "test-sets",
        "--settings",
        settings,
        *given,
        "--test",
        str(test_table),
        "--output",
        str(tmp_path / "sets"),
    ]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "sets").iterdir()) == ["gallery.json", "gallery.parquet"]
    failed = CliRunner().invoke(main, [part for part in command if part != given[1]])
    assert failed.exit_code == 1
    assert "error: no place is given for coco; write --download coco=<folder>" in failed.output


# Folders and zips -------------------------------------------------------------------------------


def test_folders_and_zips_give_the_same_pictures(tmp_path: Path) -> None:
    folder = picture_files.find(public.write_pictures(tmp_path / "folder", SAFE[:5]))
    packed = picture_files.find(public.write_pictures(tmp_path / "zip" / "all.zip", SAFE[:5]))
    inside = picture_files.find(tmp_path / "zip")
    assert folder.names == packed.names == inside.names == sorted(folder.names)
    for name in folder.names:
        assert folder.plain(name) == packed.plain(name) == inside.plain(name)


def test_a_zip_is_not_unpacked_to_the_disk_and_large_members_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("part/0.jpg", SAFE[0])
        archive.writestr("__MACOSX/x.jpg", b"no picture")
        archive.writestr("large.jpg", bytes(200_000))
    monkeypatch.setattr(picture_files, "LARGEST", 100_000)
    files = picture_files.find(tmp_path / "a.zip")
    assert files.names == ["large.jpg", "part/0.jpg"]
    assert files.plain("part/0.jpg") == SAFE[0]
    with pytest.raises(io.DataError, match=r"a\.zip: large\.jpg: larger than 100,000 bytes"):
        files.plain("large.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_places_without_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_bytes(b"<html>")
    messages = {"empty": "no pictures", "broken.zip": "cannot be read as an archive", "nowhere": "no such folder"}
    for place, message in messages.items():
        with pytest.raises(io.DataError, match=message):
            picture_files.find(tmp_path / place)
