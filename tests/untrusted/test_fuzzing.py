"""Thousands of damaged and made-up inputs for every reader: a message that names the file, or a result; nothing else.

Examples are the same in every run. docs/security.md says how many there are.
"""

from __future__ import annotations

import csv
import io as streams
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from saferclip import io, pickles
from saferclip.benchmark import sources
from saferclip.benchmark.journal import Journal
from saferclip.config import (
    ConfigError,
    LocalData,
    NocapsSettings,
    VisuText,
    ZeroShotSource,
    load,
    parse_settings,
    validate,
)
from saferclip.data import labelled_images, local, picture_files, pictures, visu_text, webdatasets
from saferclip.downloads import manifest, read_table
from saferclip.generation import i2p

ROOT = Path(__file__).parents[2]
ALLOWED = (io.DataError, ConfigError, pictures.PictureError)


def fuzz(examples: int) -> Callable[[Any], Any]:
    return settings(
        derandomize=True,
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


def tried(read: Callable[[], Any], name: str = "") -> None:
    """Read; an error has to be one of ours, in words, with the file's name."""
    try:
        read()
    except ALLOWED as error:
        assert str(error).strip() and "Traceback" not in str(error)
        assert name in str(error)


# Made-up tables and documents -------------------------------------------------------------------

CHARACTERS = st.characters(exclude_categories=["Cs"])
CELLS = st.sampled_from(
    [
        "",
        " ",
        "a cat",
        "0",
        "-1",
        "1e999",
        "nan",
        "²",
        "9" * 30,
        "../x",
        "/dev/zero",
        "a\0b",
        "a\nb",
        '"',
        "=1",
        "\ufffd",
    ]
) | st.text(CHARACTERS, max_size=12)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["²", "nan", "1" * 30, "../x", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def rows_of(*columns: str) -> st.SearchStrategy[str]:
    """CSV with these columns, some missing or twice, and cells of any kind; sometimes not even CSV."""
    header = st.lists(st.sampled_from([*columns, "other"]), min_size=1, max_size=len(columns) + 1) | st.just(
        list(columns)
    )
    body = st.lists(st.lists(CELLS, max_size=len(columns) + 1), max_size=4)
    return st.builds(_as_csv, header, body) | st.text(CHARACTERS, max_size=60)


def _as_csv(header: list[str], body: list[list[str]]) -> str:
    stream = streams.StringIO()
    csv.writer(stream).writerows([header, *body])
    return stream.getvalue()


@fuzz(400)
@given(text=rows_of(*local.QUADRUPLES.columns))
def test_tables_of_quadruples(folder: Path, text: str) -> None:
    for split in ("train", "validation", "test"):
        (folder / f"{split}.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    values = {split: folder / f"{split}.csv" for split in ("train", "validation", "test")}
    for gaps in ("refuse", "keep"):
        tried(
            lambda gaps=gaps: [
                list(rows) for rows in local.quadruples(LocalData(**values, missing_images=gaps)).values()
            ],
            ".csv",
        )


VERSIONS = ("name", "kind", "source", "revision", "sha256", "bytes", "files", "licence", "terms", "note")


@fuzz(400)
@given(text=rows_of(*VERSIONS))
def test_tables_of_downloads(folder: Path, text: str) -> None:
    (folder / "versions.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    tried(lambda: read_table(folder / "versions.csv"), "versions")


@fuzz(200)
@given(text=rows_of("prompt", "categories", "sd_seed", "sd_guidance_scale"))
def test_tables_of_prompts(folder: Path, text: str) -> None:
    (folder / "i2p.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    tried(lambda: i2p.read(folder / "i2p.csv", None), "i2p.csv")


RECORD = {"method": "m", "seed": 0, "benchmark": "b", "counts": {}, "metrics": {"x": {"value": 1.0, "count": 1}}}


@fuzz(300)
@given(value=st.fixed_dictionaries({}, optional=dict.fromkeys((*RECORD, "provenance", "x"), JSON)) | JSON)
def test_records_of_evaluations(folder: Path, value: Any) -> None:
    changed = RECORD | {"provenance": {}} | value if isinstance(value, dict) else value
    (folder / "a.json").write_text(json.dumps(changed))
    tried(lambda: io.read_evaluation(folder / "a.json"), "a.json")


@fuzz(200)
@given(files=JSON, other=JSON)
def test_manifests_and_lists_of_images(folder: Path, files: Any, other: Any) -> None:
    place = folder / "download"
    place.mkdir(exist_ok=True)
    values = {"name": "d", "kind": "url", "source": "s", "revision": "", "patterns": [], "files": files}
    (place / manifest.INNER).write_text(json.dumps(values))
    tried(lambda: manifest.read(place))
    (folder / "images.json").write_text(json.dumps({"images": files, "missing": other}))
    tried(lambda: sources.Images.read(folder / "images.json"), "images.json")


@fuzz(200)
@given(images=JSON, annotations=JSON)
def test_captions_of_nocaps(folder: Path, images: Any, annotations: Any) -> None:
    (folder / "nocaps.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    given_settings = NocapsSettings(captions="d", domains=None, pool=3)
    tried(lambda: sources.nocaps(given_settings, folder / "nocaps.json", 0), "nocaps.json")


VISU = st.fixed_dictionaries(
    {},
    optional={name: JSON | st.just("a cat") for name in ("incremental_id", "safe", "nsfw", "tag", "coco_id", "seeds")},
)


@fuzz(200)
@given(content=st.dictionaries(st.sampled_from(["0", "1", "²", "data", "x"]), VISU | st.lists(VISU, max_size=2) | JSON))
def test_releases_of_visu(folder: Path, content: Any) -> None:
    place = folder / "visu"
    place.mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        (place / f"ViSU-Text_{split}.json").write_text(json.dumps(content, indent=1))
    release = VisuText(text="d")
    tried(lambda: list(visu_text.read(release, {"d": place}).all_records()), "ViSU-Text")


@fuzz(200)
@given(text=st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=40))
def test_files_of_lines(folder: Path, text: bytes) -> None:
    place = folder / "set"
    (place / "test").mkdir(parents=True, exist_ok=True)
    for name in (labelled_images.CLASS_NAMES, labelled_images.TEMPLATES, "test/nshards.txt"):
        (place / name).write_bytes(text)
    tried(lambda: labelled_images._lines(place / labelled_images.CLASS_NAMES), "classnames.txt")
    source = ZeroShotSource(title="T", download="d", split="test", metric="accuracy")
    tried(lambda: labelled_images._templates("n", source, place), labelled_images.TEMPLATES)
    tried(lambda: webdatasets.shards(place / "test"), "test")
    (folder / "journal.jsonl").write_bytes(text + b"\n")
    tried(lambda: Journal(folder / "journal.jsonl"), "journal.jsonl")


# Configurations ---------------------------------------------------------------------------------

CONFIGURATIONS = {name: yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()) for name in ("mini", "paper")}
TEXTS = {name: (ROOT / f"config/{name}.yaml").read_text() for name in CONFIGURATIONS}
ODD = JSON | st.sampled_from(["../x", "$(x)", "a\nb", True, 10**30, "2020-01-01", [], {}, -0.0])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something in a configuration may be put in the place of what is there."""
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


PLACES = {name: sorted(places(values), key=str) for name, values in CONFIGURATIONS.items()}


@fuzz(500)
@given(data=st.data(), name=st.sampled_from(sorted(CONFIGURATIONS)))
def test_configurations_with_something_else_somewhere(data: st.DataObject, name: str) -> None:
    values = yaml.safe_load(TEXTS[name]) if name == "mini" else json.loads(json.dumps(CONFIGURATIONS[name]))
    for _ in range(data.draw(st.integers(1, 2))):
        *parents, last = data.draw(st.sampled_from(PLACES[name]))
        section: Any = values
        for parent in parents:
            try:
                section = section[parent]
            except (KeyError, IndexError, TypeError):
                return  # the first change took it away
        kind = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if not isinstance(section, dict):
            continue
        if kind == "remove":
            section.pop(last, None)
        else:
            section[last if kind == "replace" else data.draw(st.text(max_size=8))] = data.draw(ODD)
    tried(lambda: _use(values))


def _use(values: Any) -> None:
    """What a workflow does with a configuration before anything runs."""
    run = validate(values)
    for step in ("data", "base_model", "mining", "evaluation", "figure"):
        json.loads(run.settings_of(step))


@fuzz(300)
@given(data=st.data(), name=st.sampled_from(sorted(TEXTS)))
def test_texts_of_configurations_with_other_characters(folder: Path, data: st.DataObject, name: str) -> None:
    text = TEXTS[name][: data.draw(st.integers(0, 3000))].encode()
    (folder / "theirs.yaml").write_bytes(damaged(data, text))
    tried(lambda: load(folder / "theirs.yaml"), "theirs.yaml")


@fuzz(200)
@given(text=JSON.map(json.dumps) | st.text(max_size=30))
def test_settings_on_the_command_line(text: str) -> None:
    tried(lambda: parse_settings(LocalData, text), "--settings")


# Damaged files ----------------------------------------------------------------------------------


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """The content with some bytes changed, cut out, doubled or added, or its end missing."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(changed) - 1)))
        match data.draw(st.sampled_from(["set", "cut", "insert", "end", "double"])):
            case "set":
                changed[place : place + 1] = data.draw(st.binary(min_size=1, max_size=4))
            case "cut":
                del changed[place : place + data.draw(st.integers(1, 32))]
            case "insert":
                changed[place:place] = data.draw(st.binary(max_size=8))
            case "end":
                del changed[place:]
            case _:
                changed[place:place] = changed[max(0, place - 16) : place]
    return bytes(changed)


def _picture(kind: str, **options: Any) -> bytes:
    stream = streams.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


PICTURES = {kind: _picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")}


def _table() -> bytes:
    with TemporaryDirectory() as name:
        path = Path(name, "t.parquet")
        row = {"id": "a", "safe_caption": "a cat", "unsafe_caption": "b", "safe_image": PICTURES["PNG"]}
        io.write_table(path, [row | {"unsafe_image": None, "category": "c"}] * 3)
        return path.read_bytes()


def _tensors() -> bytes:
    with TemporaryDirectory() as name:
        io.write_tensors(Path(name, "t.safetensors"), {"a": torch.ones(2, 3), "b": torch.zeros(1)})
        return Path(name, "t.safetensors").read_bytes()


def _zip() -> bytes:
    stream = streams.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", PICTURES["PNG"])
        archive.writestr("a/2.jpg", PICTURES["JPEG"])
    return stream.getvalue()


def _tar() -> bytes:
    stream = streams.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in (
            ("s0.png", PICTURES["PNG"]),
            ("s0.cls", b"0"),
            ("s1.png", PICTURES["PNG"]),
            ("s1.cls", b"1"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, streams.BytesIO(content))
    return stream.getvalue()


FILES = {"parquet": _table(), "safetensors": _tensors(), "zip": _zip(), "tar": _tar()}


def _read_parquet(path: Path) -> None:
    io.read_table(path, ["id", "safe_image"]).to_pylist()
    io.column_names(path)
    io.present(path, "safe_image")
    for cell in io.read_cells(path, "safe_image", [0, 2]):
        if cell:
            io.decode_image(cell)


def _read_own_parquet(path: Path) -> None:
    values = dict.fromkeys(("train", "validation", "test"), path)
    [list(rows) for rows in local.quadruples(LocalData(**values, missing_images="keep")).values()]


def _read_zip(path: Path) -> None:
    files = picture_files.find(path)
    for name in files.names:
        files.plain(name)


READERS: dict[str, Callable[[Path], Any]] = {
    "parquet": _read_parquet,
    "safetensors": io.read_tensors,
    "zip": _read_zip,
    "tar": lambda path: webdatasets.check("set", [path], 2),
}


@pytest.mark.parametrize("kind", FILES)
@fuzz(250)
@given(data=st.data())
def test_damaged_files(folder: Path, kind: str, data: st.DataObject) -> None:
    path = folder / f"theirs.{kind}"
    path.write_bytes(damaged(data, FILES[kind]))
    tried(lambda: READERS[kind](path), "theirs" if kind != "parquet" else "")


@fuzz(150)
@given(data=st.data())
def test_damaged_tables_of_quadruples(folder: Path, data: st.DataObject) -> None:
    path = folder / "own.parquet"
    path.write_bytes(damaged(data, FILES["parquet"]))
    tried(lambda: _read_own_parquet(path), "own.parquet")


@pytest.mark.parametrize("kind", PICTURES)
@fuzz(150)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures(kind: str, data: st.DataObject) -> None:
    content = damaged(data, PICTURES[kind])
    tried(lambda: pictures.plain(content))
    tried(lambda: pictures.read(content))
    tried(lambda: io.decode_image({"bytes": content, "path": None}))
    sources.is_image(content)


@fuzz(200)
@given(data=st.data())
def test_damaged_pickles_of_numbers(folder: Path, data: st.DataObject) -> None:
    import pickle

    protocol = data.draw(st.integers(0, 5))
    path = folder / "prompts.p"
    path.write_bytes(damaged(data, pickle.dumps(np.ones((2, 3), np.float32), protocol)))
    tried(lambda: pickles.read_numbers(path), "prompts.p")
