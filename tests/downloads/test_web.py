"""Single files from a web server that misbehaves in every way one knows."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from saferclip.downloads import DownloadError, web
from saferclip.downloads.web import Target, fetch_url, fetch_urls

Put = Callable[[str, bytes], str]
JPEG = b"\xff\xd8\xff\xe0" + bytes(2000)
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def path_of(url: str) -> str:
    return "/web/" + url.partition("/web/")[2]


def busy(status: int, **headers: str) -> Callable[[Any], bool]:
    """Answers that the server is busy."""

    def fault(handler: Any) -> bool:
        handler.send_body(status, b"", {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return fault


def body(content: bytes, **headers: str) -> Callable[[Any], bool]:
    """Answers with something else, whole, whatever part was asked for."""

    def fault(handler: Any) -> bool:
        handler.send_body(200, content, headers)
        return True

    return fault


def cut(content: bytes, after: int, tag: str = '"one"', slow: float = 0) -> Callable[[Any], bool]:
    """Promises a file but goes away in its middle."""

    def fault(handler: Any) -> bool:
        handler.start(200, {"Content-Length": str(len(content)), "ETag": tag})
        handler.write(content[:after])
        handler.wfile.flush()
        time.sleep(slow)
        handler.close_connection = True
        return True

    return fault


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_file_is_fetched_once(put: Put, hub: Any, tmp_path: Path, random_bytes: bytes) -> None:
    target = Target(put("a.bin", random_bytes), tmp_path / "new/a.bin", sha256(random_bytes), len(random_bytes))
    fetch_url(target, 0)
    fetch_url(target, 0)
    assert target.path.read_bytes() == random_bytes
    assert hub.sent("a.bin") == len(random_bytes)
    assert not hidden(target.path.parent)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(put: Put, hub: Any, tmp_path: Path, status: int) -> None:
    url = put("a.bin", b"content")
    hub.faults[path_of(url)].extend([busy(status), busy(status)])
    fetch_url(Target(url, tmp_path / "a.bin"), 2)
    assert (tmp_path / "a.bin").read_bytes() == b"content"


def test_a_busy_server_is_given_up_after_the_retries(put: Put, hub: Any, tmp_path: Path) -> None:
    url = put("a.bin", b"content")
    hub.faults[path_of(url)].extend([busy(503)] * 3)
    with pytest.raises(DownloadError, match="answers 503"):
        fetch_url(Target(url, tmp_path / "a.bin"), 2)
    assert len(hub.requests) == 3


def test_the_pause_is_the_one_the_server_asks_for(
    put: Put, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    url = put("a.bin", b"content")
    monkeypatch.setattr(time, "sleep", pauses.append)
    later = formatdate(time.time() + 40, usegmt=True)
    hub.faults[path_of(url)].extend([busy(503, Retry_After="7"), busy(429, Retry_After=later), busy(503)])
    fetch_url(Target(url, tmp_path / "a.bin"), 3)
    assert pauses[0] == pytest.approx(7, abs=0.1)
    assert pauses[1] == pytest.approx(40, abs=2)
    assert pauses[2] < 0.01


def test_pauses_grow_and_differ() -> None:
    first = {web.pause(1) for _ in range(10)}
    assert len(first) > 1
    assert max(first) <= web.FIRST_PAUSE < min(web.pause(4) for _ in range(10))
    assert web.pause(40) == web.LONGEST_PAUSE
    assert web.pause(1, asked=3600) == web.LONGEST_PAUSE


def test_a_cut_is_resumed_where_it_was(put: Put, hub: Any, tmp_path: Path, random_bytes: bytes) -> None:
    url = put("a.bin", random_bytes)
    tag = f'"{sha256(random_bytes)}"'
    hub.faults[path_of(url)].append(cut(random_bytes, 250_000, tag))
    fetch_url(Target(url, tmp_path / "a.bin", sha256(random_bytes)), 1)
    assert (tmp_path / "a.bin").read_bytes() == random_bytes
    again = hub.requests[1]
    start = int(re.fullmatch(r"bytes=(\d+)-", again.headers["range"])[1])  # type: ignore[index]
    assert 250_000 - web.CHUNK <= start <= 250_000
    assert again.headers["if-range"] == tag
    assert (again.status, again.sent) == (206, len(random_bytes) - start)
    assert hidden(tmp_path) == []


def test_a_file_that_is_always_cut_fails_after_the_retries(
    put: Put, hub: Any, tmp_path: Path, random_bytes: bytes
) -> None:
    url = put("a.bin", random_bytes)
    hub.faults[path_of(url)].extend([cut(random_bytes, 100_000)] * 3)
    with pytest.raises(DownloadError, match=r"broke off after .* bytes; what was complete is kept"):
        fetch_url(Target(url, tmp_path / "a.bin", sha256(random_bytes)), 2)
    assert not (tmp_path / "a.bin").exists()
    fetch_url(Target(url, tmp_path / "a.bin", sha256(random_bytes)), 0)
    assert (tmp_path / "a.bin").read_bytes() == random_bytes


def test_tries_that_bring_something_do_not_count(
    put: Put, hub: Any, tmp_path: Path, random_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "WORTH_A_TRY", 50_000)
    url = put("a.bin", random_bytes)

    def cut_the_rest(handler: Any) -> bool:
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        rest = len(random_bytes) - start
        headers = {"Content-Length": str(rest), "ETag": '"one"'}
        headers |= {"Content-Range": f"bytes {start}-{len(random_bytes) - 1}/{len(random_bytes)}"} if start else {}
        handler.start(206 if start else 200, headers)
        handler.write(random_bytes[start : start + 100_000])
        handler.close_connection = True
        return True

    hub.faults[path_of(url)].extend([cut_the_rest] * 3)
    fetch_url(Target(url, tmp_path / "a.bin", sha256(random_bytes)), 1)
    assert (tmp_path / "a.bin").read_bytes() == random_bytes


def test_a_server_that_ignores_ranges_sends_all_again(put: Put, hub: Any, tmp_path: Path, random_bytes: bytes) -> None:
    url = put("a.bin", random_bytes)
    hub.faults[path_of(url)].extend([cut(random_bytes, 100_000), body(random_bytes)])
    fetch_url(Target(url, tmp_path / "a.bin", sha256(random_bytes)), 1)
    assert (tmp_path / "a.bin").read_bytes() == random_bytes


def test_a_file_that_changes_between_parts_is_begun_anew(
    put: Put, hub: Any, tmp_path: Path, random_bytes: bytes
) -> None:
    """By If-Range, which the server keeps: no two versions are ever mixed."""
    url = put("a.bin", random_bytes)
    hub.faults[path_of(url)].append(cut(bytes(len(random_bytes)), 300_000, '"old"'))
    fetch_url(Target(url, tmp_path / "a.bin"), 1)
    assert (tmp_path / "a.bin").read_bytes() == random_bytes


def test_a_changed_file_is_noticed_where_the_server_ignores_if_range(
    put: Put, hub: Any, tmp_path: Path, random_bytes: bytes
) -> None:
    url = put("a.bin", random_bytes)

    def part_of_another(handler: Any) -> bool:
        start = int(handler.headers["Range"][6:-1])
        length, size = str(len(random_bytes) - start), len(random_bytes)
        where = f"bytes {start}-{size - 1}/{size}"
        handler.start(206, {"Content-Length": length, "Content-Range": where, "ETag": '"new"'})
        handler.write(random_bytes[start:])
        return True

    hub.faults[path_of(url)].extend([cut(bytes(len(random_bytes)), 300_000, '"old"'), part_of_another])
    fetch_url(Target(url, tmp_path / "a.bin"), 2)
    assert (tmp_path / "a.bin").read_bytes() == random_bytes


def test_parts_that_do_not_go_together_are_begun_anew(put: Put, tmp_path: Path, random_bytes: bytes) -> None:
    """Without a tag only the hash tells."""
    url = put("a.bin", random_bytes)
    target = Target(url, tmp_path / "a.bin", sha256(random_bytes))
    target.part.write_bytes(bytes(1000))
    fetch_url(target, 1)
    assert target.path.read_bytes() == random_bytes


def test_a_part_without_tag_or_hash_is_not_trusted(put: Put, tmp_path: Path, random_bytes: bytes) -> None:
    target = Target(put("a.bin", random_bytes), tmp_path / "a.bin")
    target.part.write_bytes(bytes(1000))
    fetch_url(target, 0)
    assert target.path.read_bytes() == random_bytes


def test_a_part_that_is_whole_needs_only_its_name(put: Put, hub: Any, tmp_path: Path, random_bytes: bytes) -> None:
    target = Target(put("a.bin", random_bytes), tmp_path / "a.bin", sha256(random_bytes))
    target.part.write_bytes(random_bytes)
    fetch_url(target, 0)
    assert target.path.read_bytes() == random_bytes
    assert hub.sent() == 0


def test_a_wrong_hash_is_set_aside_and_told(put: Put, tmp_path: Path) -> None:
    wanted = sha256(b"what was meant")
    target = Target(put("a.bin", b"what came"), tmp_path / "a.bin", wanted)
    with pytest.raises(DownloadError) as caught:
        fetch_url(target, 3)
    assert sha256(b"what came") in str(caught.value)
    assert wanted in str(caught.value)
    assert not target.path.exists()
    assert (tmp_path / ".a.bin.refused").read_bytes() == b"what came"


def test_a_wrong_length_is_told_before_the_file_is_fetched(put: Put, hub: Any, tmp_path: Path) -> None:
    target = Target(put("a.bin", bytes(1_000_000)), tmp_path / "a.bin", bytes=5)
    with pytest.raises(DownloadError, match=r"1,000,000 bytes long, but the versions table says 5"):
        fetch_url(target, 3)
    assert len(hub.requests) == 1


@pytest.mark.parametrize(("status", "word"), [(404, "not found"), (410, "not found"), (403, "denied"), (418, "418")])
def test_a_refusal_is_final(put: Put, hub: Any, tmp_path: Path, status: int, word: str) -> None:
    url = put("a.bin", b"content")
    hub.faults[path_of(url)].append(busy(status))
    with pytest.raises(DownloadError, match=word):
        fetch_url(Target(url, tmp_path / "a.bin"), 5)
    assert len(hub.requests) == 1


@pytest.mark.parametrize("name", ["a.jpg", "a.zip", "a.json"])
def test_a_web_page_in_place_of_a_file_is_refused(put: Put, tmp_path: Path, name: str) -> None:
    url = put(name, b"\n  " + PAGE)
    with pytest.raises(DownloadError, match=r"a web page came in place of the file.*browser"):
        fetch_url(Target(url, tmp_path / name), 5)
    assert not (tmp_path / name).exists()


def test_an_image_must_be_one(put: Put, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="no image"):
        fetch_url(Target(put("a.jpg", b"{}"), tmp_path / "a.jpg"), 5)
    fetch_url(Target(put("b.jpg", b"\x89PNG\r\n\x1a\n"), tmp_path / "b.jpg"), 0)  # misnamed, but a picture


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="cannot be reached; check the network, http_proxy and https_proxy"):
        fetch_url(Target("http://127.0.0.1:9/a.bin", tmp_path / "a.bin"), 1)


def test_offline_by_choice(put: Put, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set; unset it"):
        fetch_url(Target(put("a.bin", b""), tmp_path / "a.bin"), 5)
    assert not hub.requests


def test_a_proxy_is_used(put: Put, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one: the host of the address does not exist."""
    put("a.bin", b"content")
    monkeypatch.setenv("http_proxy", hub.address)
    fetch_url(Target("http://files.example/a.bin", tmp_path / "a.bin"), 0)
    assert (tmp_path / "a.bin").read_bytes() == b"content"
    assert hub.requests[0].path == "http://files.example/a.bin"


def test_a_dead_proxy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="the proxy does not answer; correct http_proxy"):
        fetch_url(Target("http://files.example/a.bin", tmp_path / "a.bin"), 0)


def test_many_files(put: Put, hub: Any, tmp_path: Path) -> None:
    """The complete ones are kept, the impossible ones told, the rest tried again."""
    urls = {put(f"{number}.jpg", JPEG): tmp_path / f"images/{number}.jpg" for number in range(20)}
    page, missing = put("page.jpg", PAGE), put("0.jpg", JPEG).replace("0.jpg", "none.jpg")
    urls |= {page: tmp_path / "images/page.jpg", missing: tmp_path / "images/none.jpg"}
    hub.faults[path_of(next(iter(urls)))].extend([busy(503), cut(JPEG, 100)])
    (tmp_path / "images").mkdir()
    (tmp_path / "images/7.jpg").write_bytes(b"\xff\xd8\xff had already")
    refused = fetch_urls(urls, connections=4, retries=3)
    assert refused.keys() == {page, missing}
    assert "web page" in refused[page]
    assert "not found (404)" in refused[missing]
    assert {path.name for path in (tmp_path / "images").glob("[!.]*")} == {f"{number}.jpg" for number in range(20)}
    assert (tmp_path / "images/7.jpg").read_bytes() == b"\xff\xd8\xff had already"
    before = len(hub.requests)
    assert fetch_urls(urls, connections=4, retries=3).keys() == refused.keys()
    assert len(hub.requests) == before + 2


def test_many_files_are_fetched_at_once(put: Put, hub: Any, tmp_path: Path) -> None:
    """Four connections meet at a barrier that one alone would never pass."""
    barrier = threading.Barrier(4, timeout=20)
    urls = {put(f"{number}.bin", b"content"): tmp_path / f"{number}.bin" for number in range(4)}

    def meet(_handler: Any) -> bool:
        barrier.wait()
        return False

    for url in urls:
        hub.faults[path_of(url)].append(meet)
    assert fetch_urls(urls, connections=4, retries=0) == {}


def test_many_files_with_a_server_that_stays_busy(put: Put, hub: Any, tmp_path: Path) -> None:
    """Not the same as files that do not exist: the set would not be the same another time."""
    urls = {put(f"{number}.bin", b"content"): tmp_path / f"{number}.bin" for number in range(5)}
    hub.faults[path_of(next(iter(urls)))].extend([busy(503)] * 9)
    with pytest.raises(DownloadError, match=r"1 of 5 files could not be fetched; what was complete is kept.*503"):
        fetch_urls(urls, connections=2, retries=1)
    assert len(list(tmp_path.glob("?.bin"))) == 4


def test_many_files_without_a_network(tmp_path: Path) -> None:
    """Ends at once, not after every file was tried."""
    urls = {f"http://127.0.0.1:9/{number}.bin": tmp_path / f"{number}.bin" for number in range(10_000)}
    started = time.monotonic()
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch_urls(urls, connections=4, retries=1)
    assert time.monotonic() - started < 30


def test_too_little_room_is_told_before(
    put: Put, tmp_path: Path, random_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage)
    message = r"420.0 kB are needed, of which 5% as a reserve, and 300.0 kB are free; free some space, or set downloads"
    with pytest.raises(DownloadError, match=message) as caught:
        fetch_url(Target(put("a.bin", random_bytes), tmp_path / "deep/a.bin"), 0)
    assert str(tmp_path / "deep") in str(caught.value)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and os.geteuid() == 0
    command = [str(mount), "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not made or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no small disk to fill: this process may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_is_told(put: Put, hub: Any, small_disk: Path) -> None:
    """The server does not say how long the file is, so nobody knows beforehand."""
    complete, large = put("a.bin", b"content"), put("b.bin", b"")
    fetch_urls({complete: small_disk / "a.bin"}, connections=2, retries=0)

    def endless(handler: Any) -> bool:
        handler.start(200, {"Connection": "close"})
        handler.write(os.urandom(3_000_000))
        handler.close_connection = True
        return True

    hub.faults[path_of(large)].append(endless)
    with pytest.raises(DownloadError, match=r"the disk is full .*start again: what was complete is kept"):
        fetch_urls({complete: small_disk / "a.bin", large: small_disk / "b.bin"}, connections=2, retries=5)
    assert (small_disk / "a.bin").read_bytes() == b"content"


def test_a_write_that_finds_no_room_is_told(put: Put, hub: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(web, "_write", full)
    with pytest.raises(DownloadError, match="the disk is full"):
        fetch_url(Target(put("a.bin", b"content"), tmp_path / "a.bin"), 5)
    assert len(hub.requests) == 1


KILLED = """
import sys
from pathlib import Path
from saferclip.downloads.web import Target, fetch_url
fetch_url(Target(sys.argv[1], Path(sys.argv[2]), sys.argv[3]), 0)
"""


def test_a_killed_process_goes_on_where_it_was(put: Put, hub: Any, tmp_path: Path, random_bytes: bytes) -> None:
    url, path = put("a.bin", random_bytes), tmp_path / "a.bin"
    hub.faults[path_of(url)].append(cut(random_bytes, 300_000, f'"{sha256(random_bytes)}"', slow=60))
    process = subprocess.Popen([sys.executable, "-c", KILLED, url, str(path), sha256(random_bytes)])
    part = Target(url, path).part
    while not part.exists() or part.stat().st_size < 3 * web.CHUNK:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = part.stat().st_size
    fetch_url(Target(url, path, sha256(random_bytes)), 0)
    assert path.read_bytes() == random_bytes
    assert hub.requests[1].sent == len(random_bytes) - there
