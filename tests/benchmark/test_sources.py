"""NoCaps' captions and the public release, in the forms in which they are published; images by their addresses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from saferclip import io
from saferclip.benchmark import images, sources
from saferclip.config import BenchmarkImages, NocapsSettings
from saferclip.downloads import DownloadError, web

RNG = np.random.default_rng(0)
CAPTIONS = [[f"caption {caption} of image {image}" for caption in range(4)] for image in range(9)]


def settings(**changes: Any) -> NocapsSettings:
    return NocapsSettings.model_validate({"captions": "nocaps-validation", **changes})


@pytest.fixture
def nocaps(llm: ModuleType, tmp_path: Path) -> Path:
    path: Path = llm.write_nocaps(tmp_path / "nocaps/nocaps_val_4500_captions.json", CAPTIONS, "http://nocaps.invalid")
    return path


def test_every_image_comes_once_with_all_its_captions(nocaps: Path) -> None:
    found = sources.nocaps(settings(), nocaps.parent, seed=1)
    assert {image.url for image in found} == {f"http://nocaps.invalid/val/{number:016x}.jpg" for number in range(9)}
    for image in found:
        number = int(image.url[-20:-4], 16)
        assert sorted(image.captions) == CAPTIONS[number]
    assert found == sources.nocaps(settings(), nocaps, seed=1)
    assert found != sources.nocaps(settings(), nocaps, seed=2)
    assert sources.nocaps(settings(pool=4), nocaps, seed=1) == found[:4]


def test_domains_choose_images(nocaps: Path) -> None:
    found = sources.nocaps(settings(domains=["out-domain"]), nocaps, seed=1)
    assert {int(image.url[-20:-4], 16) % 3 for image in found} == {2}
    values = json.loads(nocaps.read_text())
    for image in values["images"]:
        del image["domain"]
    nocaps.write_text(json.dumps(values))
    assert len(sources.nocaps(settings(), nocaps, seed=1)) == 9
    with pytest.raises(io.DataError, match="no image with captions of domains out-domain"):
        sources.nocaps(settings(domains=["out-domain"]), nocaps, seed=1)


@pytest.mark.parametrize("text", ['{"images": []}', '{"images": [{"id": "x"}], "annotations": []}', "[]"])
def test_a_file_in_another_layout_is_named(nocaps: Path, text: str) -> None:
    nocaps.write_text(text)
    with pytest.raises(io.DataError, match=r"nocaps_val_4500_captions.json: not captions in COCO's layout"):
        sources.nocaps(settings(), nocaps, seed=1)


# The release ------------------------------------------------------------------------------------

PAIRS = [(f"A bus number {row}.", f"A bus number {row} next to a pistol.", "violence") for row in range(5)]


@pytest.mark.parametrize(
    "name", ["data/train.csv", "nsfw_caps.json", "data.jsonl", "data/train-00000-of-00001.parquet"]
)
@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
def test_the_release_is_read_whatever_file_it_is_in(llm: ModuleType, tmp_path: Path, name: str, whole: bool) -> None:
    file = llm.write_release(tmp_path / "release" / name, PAIRS, "http://nocaps.invalid")
    (tmp_path / "release/README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# NSFWCaps\n")
    rows = sources.release(tmp_path / "release" if whole else file, size=3)
    assert [(row.caption, row.edit.caption, row.edit.category) for row in rows] == PAIRS[:3]
    assert rows[1].url == "http://nocaps.invalid/val/0000000000000001.jpg"
    assert len(sources.release(file, size=100)) == 5


def test_a_damaged_release_is_named(llm: ModuleType, tmp_path: Path) -> None:
    file = llm.write_release(tmp_path / "a.csv", [*PAIRS, ("A tram.", "", "violence")], "http://nocaps.invalid")
    with pytest.raises(io.DataError, match=r"row 6: column nsfw_caption is empty"):
        sources.release(file, size=100)
    assert len(sources.release(file, size=5)) == 5
    (tmp_path / "b.csv").write_text("image_coco_url,caption\nx,y\n")
    with pytest.raises(io.DataError, match=r"missing column\(s\) nsfw_caption, chosen_category; it has image_coco_url"):
        sources.release(tmp_path / "b.csv", size=5)
    with pytest.raises(io.DataError, match="does not exist; fetch it"):
        sources.release(tmp_path / "nothing", size=5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(io.DataError, match="cannot be read as a data set"):
        sources.release(tmp_path / "empty", size=5)


# Images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://a.invalid/val/0013ea2087020901.jpg", "0013ea2087020901.jpg"),
        ("http://a.invalid/val/0013ea2087020901.PNG?size=1", "0013ea2087020901.PNG"),
        ("http://a.invalid/%2e%2e%2fpasswd", "passwd.jpg"),
        ("http://a.invalid/", ".jpg"),
        ("http://a.invalid/a b&c.webp", "a_b_c.webp"),
    ],
)
def test_file_names_are_safe_and_distinct(url: str, name: str) -> None:
    found = sources.file_name(url)
    assert found[12:] == f"-{name}"
    assert found != sources.file_name(url.replace("a.invalid", "b.invalid"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A web server of a folder; returns its address."""
    import functools
    import threading
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    for name in ("http_proxy", "HTTP_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(web, "FIRST_PAUSE", 0.002)
    (tmp_path / "served/val").mkdir(parents=True)
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()


def fetch(path: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    chosen = BenchmarkImages.model_validate({"release": {"table": "nsfw-caps"}, "size": 10, "seed": 1, **changes})
    images.fetch(chosen, {"nsfw-caps": path, "nocaps-validation": path}, connections=2, retries=1, output=folder)
    found: dict[str, Any] = io.read_json(folder / "manifest.json")
    return found


def test_images_are_fetched_checked_and_listed(
    server: str, llm: ModuleType, kit: SimpleNamespace, tmp_path: Path
) -> None:
    table = llm.write_release(tmp_path / "release.csv", PAIRS, server)
    whole = io.encode_jpeg(np.asarray(kit.picture(1)))
    served = tmp_path / "served/val"
    for number, data in enumerate([whole, whole[:-400], b"<html>log in</html>", whole]):
        (served / f"{number:016x}.jpg").write_bytes(data)

    found = fetch(table, tmp_path / "out")

    urls = [f"{server}/val/{number:016x}.jpg" for number in range(5)]
    assert list(found["images"]) == [urls[0], urls[3]]
    assert set(found["missing"]) == {urls[1], urls[2], urls[4]}
    assert "not a whole one" in found["missing"][urls[1]]
    assert "not found" in found["missing"][urls[4]]
    files = sources.Images.read(tmp_path / "out/manifest.json")
    assert files.get(urls[0]) == whole and files.get(urls[4]) is None and files.get("else") is None

    (served / f"{1:016x}.jpg").write_bytes(whole)  # the server was mended: only what is missing is fetched
    (served / f"{0:016x}.jpg").unlink()
    assert list(fetch(table, tmp_path / "out")["images"]) == [urls[0], urls[1], urls[3]]


def test_nocaps_images_are_those_of_the_pool(
    server: str, llm: ModuleType, kit: SimpleNamespace, tmp_path: Path
) -> None:
    for number in range(9):
        (tmp_path / f"served/val/{number:016x}.jpg").write_bytes(io.encode_jpeg(np.asarray(kit.picture(number))))
    path = llm.write_nocaps(tmp_path / "nocaps.json", CAPTIONS, server)
    found = fetch(path, tmp_path / "out", release=None, nocaps={"captions": "nocaps-validation", "pool": 4})
    assert list(found["images"]) == [image.url for image in sources.nocaps(settings(pool=4), path, seed=1)]


def test_no_image_at_all_is_an_error_and_so_is_no_server(server: str, llm: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(io.DataError, match=r"none of 5 images could be fetched; the first: .*not found"):
        fetch(llm.write_release(tmp_path / "release.csv", PAIRS, server), tmp_path / "out")
    with pytest.raises(DownloadError):
        fetch(llm.write_release(tmp_path / "release.csv", PAIRS, "http://127.0.0.1:9"), tmp_path / "out")


def test_a_list_that_is_none_is_named(tmp_path: Path) -> None:
    io.write_json(tmp_path / "manifest.json", {"images": 3})
    with pytest.raises(io.DataError, match=r"manifest.json: not a list of images"):
        sources.Images.read(tmp_path / "manifest.json")


def test_images_that_are_missing_are_passed_over_and_counted(kit: SimpleNamespace, tmp_path: Path) -> None:
    found = [sources.Captioned(f"http://a.invalid/{n}.jpg", (f"caption {n}", f"also {n}")) for n in range(4)]
    manifest = kit.write_images(tmp_path, [image.url for image in found], missing=[found[1].url])
    captions = sources.NocapsCaptions(found, sources.Images.read(manifest))
    drawn = [captions.draw(RNG) for _ in range(5)]
    assert [source and source.caption for source in drawn] == ["caption 0", "caption 2", "caption 3", None, None]
    assert drawn[0] is not None and drawn[0].captions == ("caption 0", "also 0") and drawn[0].image
    assert captions.report() == {
        "captions": "NoCaps, validation split",
        "images": 4,
        "used": 3,
        "image missing": 1,
    }
