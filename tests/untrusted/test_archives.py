"""Archives and manifests whose names lead elsewhere, or that unpack to more than they say, are refused by name."""

from __future__ import annotations

import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from saferclip import io
from saferclip.data import archives, coco, picture_files, webdatasets
from saferclip.downloads import DownloadError, hub, leads_out, manifest, table
from saferclip.downloads.manifest import File, Manifest

PICTURE = io.encode_png(Image.new("RGB", (4, 4), "red"))
LEADING_OUT = ["../x.jpg", "a/../../x.jpg", "/x.jpg", "C:x.jpg", "a\\x.jpg", "a\nx.jpg", "\x1b[2Jx.jpg", "a/..", ""]


@pytest.mark.parametrize("name", LEADING_OUT)
def test_names_that_lead_out_or_hide(name: str) -> None:
    assert leads_out(name)


@pytest.mark.parametrize("name", ["x.jpg", "a/b/x.jpg", "a..b/x..jpg", "été/猫.jpg", "a b.jpg", "...", "-x.jpg"])
def test_names_that_do_not(name: str) -> None:
    assert not leads_out(name)


def zipped(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


READERS: dict[str, Callable[[Path], object]] = {
    "pictures": picture_files.find,
    "COCO": lambda path: coco.CocoImages([path]),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", [name for name in LEADING_OUT if name])
def test_a_zip_with_a_name_that_leads_out(name: str, reader: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", ("000000000001.jpg", PICTURE), (name, PICTURE))
    with pytest.raises(io.DataError, match=r"a\.zip: holds .*, which leads out of it") as found:
        READERS[reader](path)
    assert repr(name) in str(found.value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]


def test_a_zip_with_a_name_that_is_cut_at_nul(tmp_path: Path) -> None:
    """Python's reader cuts it there: what is shown would not be what is asked for."""
    path = zipped(tmp_path / "a.zip", ("aXb.jpg", PICTURE))
    path.write_bytes(path.read_bytes().replace(b"aXb.jpg", b"a\0b.jpg"))
    with pytest.raises(io.DataError, match=r"holds 'a\\x00b\.jpg', which leads out"):
        archives.Archive(path)


@pytest.mark.parametrize("kind", [0o120000, 0o020000, 0o060000, 0o010000])
def test_a_zip_with_a_link_or_device(kind: int, tmp_path: Path) -> None:
    member = zipfile.ZipInfo("x.jpg")
    member.external_attr = (kind | 0o777) << 16
    with pytest.raises(io.DataError, match=r"holds 'x\.jpg', a link or device"):
        archives.Archive(zipped(tmp_path / "a.zip", (member, b"/etc/passwd")))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_a_name_twice(tmp_path: Path) -> None:
    with pytest.raises(io.DataError, match=r"holds 'x\.jpg' twice"):
        archives.Archive(zipped(tmp_path / "a.zip", ("x.jpg", PICTURE), ("x.jpg", b"other")))


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    archive = archives.Archive(zipped(tmp_path / "a.zip", ("x.jpg", bytes(3_000_000))))
    assert archive.path.stat().st_size < 10_000
    with pytest.raises(io.DataError, match=r"larger than 1,000,000 bytes \(3,000,000\)"):
        archive.read("x.jpg", 1_000_000)


def test_a_zip_that_lies_about_sizes_is_unpacked_to_what_it_says_at_most(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", ("x.jpg", bytes(3_000_000)))
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 3_000_000), struct.pack("<I", 5)))
    with pytest.raises(io.DataError, match=r"cannot be unpacked|unpacks to other than the 5 bytes"):
        archives.Archive(path).read("x.jpg", 1_000_000)


def test_members_are_not_unpacked_by_methods_that_know_no_limit(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.jpg", PICTURE)
    with pytest.raises(io.DataError, match="is packed in an unusual way"):
        archives.Archive(tmp_path / "a.zip").read("x.jpg", 1000)


def tarred(path: Path, *members: tuple[str, bytes], **changes: object) -> Path:
    """A tar of a webdataset; ``changes`` are attributes of the last member."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if (name, data) == members[-1]:
                for attribute, value in changes.items():
                    setattr(info, attribute, value)
            archive.addfile(info, BytesIO(data) if info.isreg() else None)
    return path


def test_a_tar_as_it_should_be(tmp_path: Path) -> None:
    path = tarred(tmp_path / "0.tar", ("./a.png", PICTURE), ("./a.cls", b"0"), ("s/b.png", PICTURE), ("s/b.cls", b"1"))
    assert webdatasets.check("set", [path], 2) == 2
    assert [(label, image) for _, label, image in webdatasets.samples("set", [path])] == [(0, PICTURE), (1, PICTURE)]


@pytest.mark.parametrize("name", [name for name in LEADING_OUT if name and "\n" not in name])
def test_a_tar_with_a_name_that_leads_out(name: str, tmp_path: Path) -> None:
    path = tarred(tmp_path / "0.tar", ("a.png", PICTURE), ("a.cls", b"0"), (name, PICTURE))
    with pytest.raises(io.DataError, match=r"0\.tar: .*leads out") as found:
        webdatasets.check("set", [path], 0)
    assert repr(name) in str(found.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_tar_with_a_link_or_device(kind: bytes, tmp_path: Path) -> None:
    path = tarred(tmp_path / "0.tar", ("a.cls", b"0"), ("a.png", b""), type=kind, linkname="/etc/passwd")
    with pytest.raises(io.DataError, match=r"0\.tar: .*'a\.png', a link, device or file with gaps"):
        webdatasets.check("set", [path], 0)


def test_a_tar_with_a_name_twice(tmp_path: Path) -> None:
    path = tarred(tmp_path / "0.tar", ("a.png", PICTURE), ("a.cls", b"0"), ("a.png", b"other"))
    with pytest.raises(io.DataError, match=r"0\.tar: .*'a\.png' twice"):
        webdatasets.check("set", [path], 0)


def test_a_tar_with_a_picture_of_terabytes(tmp_path: Path) -> None:
    """It says so; there is nothing of it."""
    path = tarred(tmp_path / "0.tar", ("a.cls", b"0"))
    info = tarfile.TarInfo("a.png")
    info.size = 10**12
    path.write_bytes(path.read_bytes()[:1024] + info.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(io.DataError, match=r"0\.tar: .*'a\.png' of 1,000,000,000,000 bytes, too many"):
        webdatasets.check("set", [path], 0)


def test_as_many_tars_as_no_set_has_are_not_even_named(tmp_path: Path) -> None:
    (tmp_path / "nshards.txt").write_text("99999999999\n")
    with pytest.raises(io.DataError, match=r"nshards\.txt: says 99,999,999,999 tars"):
        webdatasets.shards(tmp_path)


def manifest_text(name: str) -> str:
    files = {name: {"bytes": 1, "sha256": "0" * 64}}
    values = {"name": "d", "kind": "hf-model", "source": "a/b", "revision": "", "patterns": [], "files": files}
    return json.dumps(values)


@pytest.mark.parametrize("name", ["../victim", "/etc/passwd", "a/../../victim", "a\0b"])
def test_no_file_is_deleted_by_the_name_that_a_manifest_has(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download's folder may hold a manifest that someone else wrote; files of other versions are deleted by it."""
    from saferclip.downloads import fetch

    (tmp_path / "victim").write_text("mine")
    place = tmp_path / "d"
    place.mkdir()
    (place / manifest.INNER).write_text(manifest_text(name))
    assert manifest.read(place) is None
    (place / "new").write_text("n")
    row = table.row(name="d", kind="hf-model", source="a/b", licence="x", revision="1" * 40)
    found = Manifest.of(row, "1" * 40, {"new": File(bytes=1, sha256="0" * 64)})
    monkeypatch.setattr(hub, "fetch", lambda *_: found)
    fetch._fetch(row, place, 1, 0)
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("name", ["../x", "a/../../x", ".manifest.json", "a\nb"])
def test_a_repository_with_a_name_that_leads_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.hf_api import HfApi, RepoFile

    file = RepoFile(path=name, size=1, oid="0" * 40)
    monkeypatch.setattr(HfApi, "list_repo_tree", lambda *_, **__: [file])
    row = table.row(name="d", kind="hf-model", source="a/b", licence="x")
    with pytest.raises(DownloadError, match="no name for a file here") as found:
        hub._listing(row, "1" * 40)
    assert repr(name) in str(found.value)


@pytest.mark.parametrize("address", ["..", "%2e%2e", ".manifest.json", "a%00b", "a%0Ab", "a%5Cb"])
def test_an_address_whose_last_part_is_no_name_for_a_file(address: str) -> None:
    with pytest.raises(io.DataError, match="is no name for a file"):
        table.row(name="d", kind="url", source=f"https://example.org/x/{address}", licence="x")


def test_a_hash_tells_files_of_hostile_addresses_apart() -> None:
    """Images are kept by names that we make of their addresses."""
    from saferclip.benchmark.sources import file_name

    addresses = ["https://a/../../x.jpg", "https://a/%2e%2e%2fx.jpg", "https://a/x\n.jpg", "https://a/" + "x" * 5000]
    names = [file_name(address) for address in addresses]
    assert len(set(names)) == len(names)
    assert not any(leads_out(name) or "/" in name or len(name) > 120 for name in names)
