"""Public zero-shot sets in the forms of the hubs: what is read, and what each kind of damage is answered with."""

from __future__ import annotations

import logging
import runpy
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import load_dataset

from saferclip import io
from saferclip.config import PublicSets, SetsStep
from saferclip.data import pictures, test_sets

public = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "rehearsal" / "public_sets.py")))
CLASSES = public.class_names(4)
IMAGES = public.labelled(11, CLASSES)
Damage = Callable[[Path], object]


def built(tmp_path: Path, folder: Path, **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and description of a set, as the step writes them."""
    source = {"title": "Things", "download": "wds-things", "split": "test", "metric": "accuracy"} | changes
    sets = {
        "zero_shot": {"things": source},
        "gallery_unsafe": 1,
        "gallery_safe_ratio": 1,
        "gallery_minimum": 1,
        "seed": 0,
    }
    output = tmp_path / "test_sets"
    test_sets.build(SetsStep(public=PublicSets.model_validate(sets)), {"wds-things": folder}, None, output)
    assert sorted(path.name for path in output.iterdir()) == ["zero_shot.json", "zero_shot.parquet"]
    return io.read_table(output / "zero_shot.parquet").to_pylist(), io.read_json(output / "zero_shot.json")["things"]


@pytest.fixture
def wds(tmp_path: Path) -> Path:
    return public.write_webdataset(tmp_path / "wds [1]", CLASSES, IMAGES)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_a_webdataset_is_read_in_its_order(tmp_path: Path, extension: str) -> None:
    images = public.labelled(11, CLASSES, extension=extension)
    folder = public.write_webdataset(tmp_path / "wds", CLASSES, images, shards=3, extension=extension)
    rows, described = built(tmp_path, folder)
    assert [(row["set"], row["label"], row["image"]["bytes"]) for row in rows] == [
        ("things", image.label, image.image) for image in images
    ]
    assert described == {
        "title": "Things",
        "classes": CLASSES,
        "templates": ["a photo of {}.", "a picture of {}."],
        "metric": "accuracy",
        "download": "wds-things",
        "left_out": 0,
    }


def test_parquet_and_class_folders_hold_the_same(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("{c}, drawn\n")
    rows, described = built(
        tmp_path, public.write_parquet(tmp_path / "parquet", CLASSES, IMAGES), templates=str(prompts)
    )
    assert [(row["label"], row["image"]["bytes"]) for row in rows] == [(image.label, image.image) for image in IMAGES]
    assert (described["classes"], described["templates"]) == (CLASSES, ["{}, drawn"])

    folders = public.write_class_folders(tmp_path / "folders", CLASSES, IMAGES)
    rows, described = built(tmp_path, folders, templates=str(prompts))
    assert described["classes"] == sorted(CLASSES)
    found = sorted((described["classes"][row["label"]], row["image"]["bytes"]) for row in rows)
    assert found == sorted((CLASSES[image.label], image.image) for image in IMAGES)


def test_only_the_split_is_read(tmp_path: Path) -> None:
    for write in (public.write_parquet, public.write_webdataset):
        folder = tmp_path / write.__name__
        write(folder, CLASSES, IMAGES[:3], split="validation")
        write(folder, CLASSES, IMAGES[3:], split="test")
        prompts = folder / "prompts.txt"
        prompts.write_text("{c}\n")
        assert len(built(tmp_path, folder, split="validation", templates=str(prompts))[0]) == 3
        assert len(built(tmp_path, folder, templates=str(prompts))[0]) == 8


def test_the_written_table_is_one_that_datasets_opens(tmp_path: Path, wds: Path) -> None:
    built(tmp_path, wds)
    files = str(tmp_path / "test_sets" / "zero_shot.parquet")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows[0]["image"].size == (64, 64)


@pytest.mark.parametrize(("limit", "chosen"), [(1, [0]), (4, [0, 2, 5, 8]), (11, range(11)), (99, range(11))])
def test_a_limit_spreads_over_the_whole_set(tmp_path: Path, wds: Path, limit: int, chosen: Any) -> None:
    rows, described = built(tmp_path, wds, limit=limit)
    assert [row["image"]["bytes"] for row in rows] == [IMAGES[place].image for place in chosen]
    assert described["left_out"] == 11 - len(rows)


def test_names_and_prompts_can_be_given(tmp_path: Path, wds: Path) -> None:
    names, prompts = tmp_path / "names.txt", tmp_path / "prompts.txt"
    names.write_text("one\ntwo\nthree\nfour\n")
    prompts.write_text("a bad photo of {c}\n")
    _, described = built(tmp_path, wds, classes=str(names), templates=str(prompts))
    assert (described["classes"], described["templates"]) == (["one", "two", "three", "four"], ["a bad photo of {}"])


def test_classes_of_one_name_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = public.write_webdataset(tmp_path / "wds", ["cat", "dog", "cat", "bird"], IMAGES)
    with caplog.at_level(logging.WARNING):
        built(tmp_path, folder)
    assert "several classes are called cat, and cannot be told apart" in caplog.text


def test_nothing_is_unpacked_or_left_in_a_cache(tmp_path: Path, wds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    built(tmp_path, wds)
    assert not (tmp_path / "cache").exists()
    assert not list((tmp_path / "scratch").iterdir())


# Damage -----------------------------------------------------------------------------------------


def rewrite(folder: Path, files: dict[str, bytes | None], shard: int = 1) -> None:
    """Change files of a tar, or take them out, or put new ones at its end."""
    path = folder / "test" / f"{shard}.tar"
    with tarfile.open(path) as tar:
        content = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for name, data in (content | files).items():
            if data is not None:
                public.add(tar, name, data)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (
            lambda f: rewrite(f, {"s0000007.jpg": b"<html>", "s0000009.jpg": IMAGES[9].image[:900]}),
            ["2 problems", "things: {tar}: s0000007: not a JPEG", "things: {tar}: s0000009: damaged picture"],
        ),
        (
            lambda f: rewrite(f, {"s0000007.cls": b"4", "s0000008.cls": b"-1"}),
            ["{tar}: s0000007: label 4; the set has 4 classes", "{tar}: s0000008: label '-1' is no number"],
        ),
        (lambda f: rewrite(f, {"s0000007.cls": b"cat"}), ["{tar}: s0000007: label 'cat' is no number"]),
        (lambda f: rewrite(f, {"s0000007.cls": None}), ["{tar}: s0000007: no label (.cls)"]),
        (lambda f: rewrite(f, {"s0000007.jpg": None}), ["{tar}: s0000007: 0 images"]),
        (lambda f: rewrite(f, {"s0000007.png": b"x"}), ["{tar}: s0000007: 2 images"]),
        (
            lambda f: rewrite(f, {"../../s1.jpg": b"x", "../../s1.cls": b"1", "/s2.jpg": b"x", "/s2.cls": b"1"}),
            ["{tar}: not a tar that can be read (holds '../../s1.jpg', which leads out of it)"],
        ),
        (
            lambda f: rewrite(f, {"s0000006.jpg": None, "s0000010.cls": b"1", "s0000006.JPG": b"x"}),
            ["{tar}: s0000006: 0 images"],
        ),
        (lambda f: (f / "test/1.tar").unlink(), ["nshards.txt says 2, but 1.tar missing"]),
        (lambda f: (f / "test/nshards.txt").write_text("many"), ["nshards.txt: does not say how many tars"]),
        (lambda f: (f / "test/nshards.txt").unlink(), ["nshards.txt: does not say how many tars"]),
        (lambda f: (f / "test/1.tar").write_bytes(b"<html>" * 500), ["{tar}: not a tar that can be read"]),
        (lambda f: (f / "test/1.tar").write_bytes(b""), ["{tar}: not a tar that can be read"]),
        (lambda f: cut(f / "test/1.tar", 4000), ["{tar}: not a tar that can be read"]),
        (lambda f: (f / "classnames.txt").unlink(), ["does not name its classes"]),
        (lambda f: (f / "classnames.txt").write_text("cat\n\ndog\n"), ["classnames.txt: line 2 is empty"]),
        (lambda f: (f / "zeroshot_classification_templates.txt").unlink(), ["no prompts; write a file"]),
        (
            lambda f: (f / "zeroshot_classification_templates.txt").write_text("a {c}\na {c.__class__}\n"),
            ["line 2: 'a {c.__class__}'; write {c} once"],
        ),
        (lambda f: (f / "zeroshot_classification_templates.txt").write_text("a photo\n"), ["line 1: 'a photo'"]),
    ],
)
def test_damage_is_told_with_set_tar_and_key(tmp_path: Path, wds: Path, damage: Damage, messages: list[str]) -> None:
    damage(wds)
    with pytest.raises(io.DataError) as caught:
        built(tmp_path, wds)
    for message in messages:
        assert message.replace("{tar}", str((wds / "test/1.tar").resolve())) in str(caught.value)
    assert not (tmp_path / "test_sets").exists() or not list((tmp_path / "test_sets").iterdir())


def test_a_tar_without_its_end_is_refused(tmp_path: Path, wds: Path) -> None:
    path = wds / "test" / "1.tar"
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    cut(path, last.offset)
    with pytest.raises(io.DataError, match="its end is missing; fetch it again"):
        built(tmp_path, wds)


def test_files_of_one_image_that_are_apart_are_refused(tmp_path: Path, wds: Path) -> None:
    with tarfile.open(wds / "test" / "1.tar", "w") as tar:
        for name, data in {"a.cls": b"1", "b.cls": b"1", "a.jpg": IMAGES[0].image, "b.jpg": IMAGES[1].image}.items():
            public.add(tar, name, data)
    with pytest.raises(io.DataError, match=r"1\.tar: a: image and label do not lie beside each other"):
        built(tmp_path, wds)


def test_links_in_a_tar_lead_nowhere(tmp_path: Path, wds: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(IMAGES[0].image)
    with tarfile.open(wds / "test" / "1.tar", "a") as tar:
        link = tarfile.TarInfo("s9.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
        public.add(tar, "s9.cls", b"1")
    with pytest.raises(io.DataError, match=r"holds 's9\.jpg', a link, device or file with gaps"):
        built(tmp_path, wds)


def test_parquet_without_names_of_classes_needs_them(tmp_path: Path) -> None:
    rows = [{"image": image.image, "label": image.label} for image in IMAGES]
    io.write_table(tmp_path / "plain" / "test.parquet", rows)
    names, prompts = tmp_path / "names.txt", tmp_path / "prompts.txt"
    names.write_text("".join(f"{name}\n" for name in CLASSES))
    prompts.write_text("{c}\n")
    with pytest.raises(io.DataError, match="one column of images and one of class labels are needed"):
        built(tmp_path, tmp_path / "plain", templates=str(prompts))
    found, described = built(tmp_path, tmp_path / "plain", templates=str(prompts), classes=str(names))
    assert [row["label"] for row in found] == [image.label for image in IMAGES]
    assert described["classes"] == CLASSES


def test_a_parquet_row_without_a_picture_is_named(tmp_path: Path) -> None:
    images = [*IMAGES[:2], public.Labelled(b"no picture", 1)]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("{c}\n")
    with pytest.raises(io.DataError, match=r"test-00000-of-00001\.parquet: row 2: not a JPEG"):
        built(tmp_path, public.write_parquet(tmp_path / "set", CLASSES, images), templates=str(prompts))


def test_a_folder_that_is_none_of_the_forms(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(io.DataError, match="holds no pictures"):
        built(tmp_path, tmp_path / "empty")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.jpg").write_bytes(IMAGES[0].image)
    with pytest.raises(io.DataError, match="pictures must lie in folders, one for each class"):
        built(tmp_path, tmp_path / "flat")
    with pytest.raises(io.DataError, match="there is no such folder"):
        built(tmp_path, tmp_path / "nowhere")


def test_a_set_without_a_place_is_named(tmp_path: Path) -> None:
    source = {"title": "Things", "download": "wds-things", "split": "test", "metric": "accuracy"}
    sets = {
        "zero_shot": {"things": source},
        "gallery_unsafe": 1,
        "gallery_safe_ratio": 1,
        "gallery_minimum": 1,
        "seed": 0,
    }
    with pytest.raises(io.DataError, match="no place is given for wds-things; write --download wds-things=<folder>"):
        test_sets.build(SetsStep(public=PublicSets.model_validate(sets)), {}, None, tmp_path)


def test_other_pictures_are_made_plain(tmp_path: Path, wds: Path) -> None:
    """What a table holds opens without a look at orientation or transparency."""
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(buffer, "WEBP", lossless=True)
    rewrite(wds, {"s0000007.jpg": buffer.getvalue()})
    rows, _ = built(tmp_path, wds)
    assert pictures.read(rows[7]["image"]["bytes"]).getpixel((0, 0)) == (255, 255, 255)


def test_prompts_that_come_with_this_repository_are_in_order(tmp_path: Path, wds: Path) -> None:
    files = sorted((Path(__file__).parents[2] / "config" / "prompts").glob("*.txt"))
    assert files
    for prompts in files:
        _, described = built(tmp_path, wds, templates=str(prompts))
        assert len(set(described["templates"])) == len(prompts.read_text().splitlines())
