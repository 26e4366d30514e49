"""Files from web servers: several at once, tried again with pauses, resumed where they broke off, and checked.

A file grows under a hidden name, ``.<name>.part``, and gets its own when it is complete and right.
"""

from __future__ import annotations

import email.utils
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from saferclip.downloads import DownloadError
from saferclip.downloads.manifest import check_space, full_disk_told, set_aside, sha256, size

LOG = logging.getLogger(__name__)

TIMEOUT = (20, 60)  # seconds: to connect, and between two pieces
CHUNK = 1 << 16
FIRST_PAUSE = 1.0  # seconds; doubled with every try
LONGEST_PAUSE = 120.0
WORTH_A_TRY = 1 << 20  # a try that brought this many bytes does not count as failed
BUSY = {408, 425, 429, 500, 502, 503, 504}  # may be better later
HEAD = 512  # bytes that tell what a file is
PICTURES = {
    ".jpg": (b"\xff\xd8\xff",),
    ".jpeg": (b"\xff\xd8\xff",),
    ".png": (b"\x89PNG\r\n\x1a\n",),
    ".gif": (b"GIF87a", b"GIF89a"),
    ".webp": (b"RIFF",),
    ".bmp": (b"BM",),
}
KEPT = "what was complete is kept, start again to go on"


class Refused(DownloadError):
    """An address that will not give the file, however often it is asked."""


class Failed(DownloadError):
    """A try that failed, though another may succeed; ``pause`` is how long the server asks to wait, in seconds."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class Unreachable(Failed):
    """There was no answer at all."""


@dataclass(frozen=True)
class Target:
    """One file to fetch, and what is known of it beforehand."""

    url: str
    path: Path
    sha256: str = ""
    bytes: int | None = None

    @property
    def part(self) -> Path:
        """Where the file grows."""
        return self.path.with_name(f".{self.path.name}.part")

    @property
    def version(self) -> Path:
        """Remembers which version of the file the part is of."""
        return self.path.with_name(f".{self.path.name}.version")


def fetch_url(target: Target, retries: int) -> None:
    """Fetch one file, with a progress bar; raises DownloadError. A file that is there and right is left alone."""
    if _is_there(target):
        return
    bar: tqdm[Any] = tqdm(desc=target.path.name, total=target.bytes, unit="B", unit_scale=True, disable=None)
    with bar:
        _fetch(target, retries, requests.Session(), lambda done, total: _show(bar, done, total))


def fetch_urls(urls: Mapping[str, Path], connections: int, retries: int) -> dict[str, str]:
    """Fetch many files, several at once; files that are there already are left alone.

    Returns the addresses that will never give their file (not found, a web page in place of an image, ...) with the
    reasons. Raises DownloadError if others did not answer properly in all tries, or the disk is full: what was
    complete is kept, and a new start goes on from there.
    """
    targets = [Target(url, path) for url, path in urls.items() if not path.is_file()]
    LOG.info("%d files to fetch, %d are there", len(targets), len(urls) - len(targets))
    crew = _Crew(retries, connections)
    with tqdm(total=len(targets), desc="fetching", unit=" files", disable=None) as bar:
        refused, failed = crew.work(targets, bar.update)
    for url, reason in refused.items():
        LOG.warning("left out: %s", reason if url in reason else f"{url}: {reason}")
    if failed:
        first = next(iter(failed.values()))
        raise DownloadError(f"{len(failed)} of {len(urls)} files could not be fetched; {KEPT}; the first: {first}")
    return refused


class _Crew:
    """Threads that fetch files, each with connections of its own."""

    def __init__(self, retries: int, connections: int) -> None:
        self._retries = retries
        self._pool = ThreadPoolExecutor(connections)
        self._local = threading.local()
        self._fetched = 0

    def work(self, targets: list[Target], done: Callable[[], object]) -> tuple[dict[str, str], dict[str, str]]:
        """Fetch all; returns the addresses that refused and those that failed, with reasons."""
        futures = {self._pool.submit(self._one, target, done): target for target in targets}
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            self._pool.shutdown(cancel_futures=True)
        results = {target.url: _result(future) for future, target in futures.items()}
        refused = {url: str(error) for url, error in results.items() if isinstance(error, Refused)}
        return refused, {url: str(error) for url, error in results.items() if isinstance(error, Failed)}

    def _one(self, target: Target, done: Callable[[], object]) -> Refused | Failed | None:
        """Fetch one file; what ends the whole work is raised, what concerns this file alone is returned."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        try:
            _fetch(target, self._retries, self._local.session, lambda _done, _total: None)
        except (Refused, Failed) as error:
            if isinstance(error, Unreachable) and not self._fetched:
                raise DownloadError(str(error)) from error  # no network: thousands of others would not get there either
            return error
        finally:
            done()
        self._fetched += 1
        return None


def _result(future: Future[Refused | Failed | None]) -> Refused | Failed | None:
    return None if future.cancelled() else future.result()


def _is_there(target: Target) -> bool:
    """Whether the file is complete; one that is not right is set aside."""
    if not target.path.is_file() or not (target.sha256 or target.bytes):
        return False
    right = sha256(target.path) == target.sha256 if target.sha256 else size(target.path) == target.bytes
    if not right:
        LOG.warning("%s: is not the file of the versions table; set aside as %s", target.path, set_aside(target.path))
    return right


Progress = Callable[[int, int | None], None]  # told the bytes that are there, and all that there will be


def _show(bar: tqdm[Any], done: int, total: int | None) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _fetch(target: Target, retries: int, session: requests.Session, progress: Progress) -> None:
    """Try until the file is there; raises Refused, Failed (the last try's), or DownloadError for a full disk."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise Unreachable(f"{target.url}: HF_HUB_OFFLINE is set; unset it, or set downloads.local to a copy")
    target.path.parent.mkdir(parents=True, exist_ok=True)
    tried = 0
    while True:
        before = size(target.part) or 0
        try:
            with full_disk_told(target.path.parent):
                _try(target, session, progress)
            return
        except Failed as error:
            tried = 0 if (size(target.part) or 0) - before >= WORTH_A_TRY else tried + 1
            if tried > retries:
                raise
            seconds = pause(tried, error.pause)
            LOG.warning("%s; trying again in %.1f s", error, seconds)
            time.sleep(seconds)


def pause(tried: int, asked: float | None = None) -> float:
    """Seconds to wait before the next try: what the server asks for, or twice as long each time; never the same."""
    doubled = FIRST_PAUSE * 2 ** max(0, tried - 1) * random.uniform(0.5, 1)  # so that clients do not come back at once
    return min(LONGEST_PAUSE, asked + random.uniform(0, 0.1) * FIRST_PAUSE if asked is not None else doubled)


def _try(target: Target, session: requests.Session, progress: Progress) -> None:
    """One request, and the file in its place if all of it is there and right."""
    resumed = _resumable(target)
    headers = {"Accept-Encoding": "identity"}  # lengths and hashes are those of the file itself
    if resumed:
        headers["Range"] = f"bytes={resumed}-"
        if target.version.is_file():
            headers["If-Range"] = target.version.read_text(encoding="utf-8")
    try:
        with session.get(target.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            _receive(target, response, resumed, progress)
    except requests.RequestException as error:
        raise _explained(target.url, error) from error
    _finish(target, resumed > 0)


def _resumable(target: Target) -> int:
    """Bytes of an earlier try that can be built upon: only if it can be told that they are of the same version."""
    return (size(target.part) or 0) if target.version.is_file() or target.sha256 else 0


def _receive(target: Target, response: requests.Response, resumed: int, progress: Progress) -> None:
    """Write the body of an answer to the part; raises unless the file is now as long as it should be."""
    if response.status_code == 416 and _length(response) == resumed:
        return  # everything had arrived
    if response.status_code == 416:
        target.part.unlink()
        raise Failed(f"{target.url}: the server has no further part of it")
    _check_status(target.url, response)
    start = _start(response)
    if start not in (0, resumed):
        raise Failed(f"{target.url}: the server sent another part than was asked for")
    _check_version(target, response, start)
    total = _length(response)
    _check_total(target, total)
    check_space(target.path.parent, max(0, (total or target.bytes or 0) - start))
    if not start:
        _remember_version(target, response)
    written = _write(target, response, start, lambda done: progress(done, total or target.bytes))
    if total is not None and written != total:
        raise Failed(f"{target.url}: broke off after {written:,} of {total:,} bytes")


def _write(target: Target, response: requests.Response, start: int, progress: Callable[[int], None]) -> int:
    """Append an answer's body to the part after the first ``start`` bytes; returns the size that it has then."""
    with target.part.open("r+b" if start else "wb") as file:
        file.truncate(start)
        file.seek(start)
        try:
            for chunk in response.iter_content(CHUNK):
                if not file.tell():
                    _check_content(target, chunk[:HEAD])
                file.write(chunk)
                progress(file.tell())
        except requests.RequestException as error:
            raise Failed(f"{target.url}: broke off after {file.tell():,} bytes; {KEPT}") from error
        return file.tell()


def _check_status(url: str, response: requests.Response) -> None:
    code = response.status_code
    if code in BUSY:
        raise Failed(f"{url}: the server answers {code} {response.reason}", _asked_pause(response))
    if code in (401, 403):
        raise Refused(f"{url}: access is denied ({code}); ask the source for access, and set downloads.local to a copy")
    if code in (404, 410):
        raise Refused(f"{url}: not found ({code}); correct the address, or set downloads.local to a copy")
    if code not in (200, 206):
        raise Refused(f"{url}: the server answers {code} {response.reason}; open the address in a browser to see why")


def _start(response: requests.Response) -> int:
    """First byte that an answer holds."""
    if response.status_code != 206:
        return 0
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else -1


def _length(response: requests.Response) -> int | None:
    """Length of the whole file, if the server says it."""
    if response.status_code in (206, 416):
        text = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        text = response.headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _asked_pause(response: requests.Response) -> float | None:
    """Seconds that a server asks to wait: Retry-After, in seconds or as a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _check_total(target: Target, total: int | None) -> None:
    if target.bytes and total is not None and total != target.bytes:
        raise Refused(
            f"{target.url}: is {total:,} bytes long, but the versions table says {target.bytes:,}; if the source "
            "published another version, look at it, and correct 'bytes' and 'sha256'"
        )


def _remember_version(target: Target, response: requests.Response) -> None:
    """Note what tells this version of the file from another, for the next try. A weak tag does not."""
    tag = response.headers.get("ETag", "")
    version = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
    if version:
        target.version.write_text(version, encoding="utf-8")
    else:
        target.version.unlink(missing_ok=True)


def _check_version(target: Target, response: requests.Response, start: int) -> None:
    """Raise Failed if a server sends a further part of another version, although it was asked not to."""
    if not start or not target.version.is_file():
        return
    version = target.version.read_text(encoding="utf-8")
    if response.headers.get("ETag" if version.startswith('"') else "Last-Modified", version) != version:
        target.part.unlink()
        raise Failed(f"{target.url}: has changed meanwhile; beginning anew")


def _check_content(target: Target, head: bytes) -> None:
    """Raise Refused if a file begins as a web page does, or an image not as its kind does."""
    suffix = target.path.suffix.lower()
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if suffix not in (".html", ".htm") and text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        raise Refused(
            f"{target.url}: a web page came in place of the file, perhaps to log in or from a proxy; open the address "
            "in a browser to see it"
        )
    if suffix in PICTURES and not head.startswith(tuple(kind for kinds in PICTURES.values() for kind in kinds)):
        raise Refused(f"{target.url}: what came is no image, though its name ends in {suffix}; correct the address")


def _finish(target: Target, resumed: bool) -> None:
    """Give a complete part its name if its hash is right; a wrong one is set aside, or begun anew if it was patched."""
    with target.part.open("rb+") as file:
        os.fsync(file.fileno())
    found = sha256(target.part) if target.sha256 else ""
    if found != target.sha256:
        target.version.unlink(missing_ok=True)
        if resumed:
            target.part.unlink()
            raise Failed(f"{target.url}: its parts do not go together; beginning anew")
        wrong = target.part.replace(target.path)
        raise Refused(
            f"{target.url}: has SHA-256 {found}, but the versions table says {target.sha256}; it was set aside as "
            f"{set_aside(wrong)}. If the source published another version, look at it, and correct 'sha256'"
        )
    target.part.replace(target.path)
    target.version.unlink(missing_ok=True)


def _explained(url: str, error: requests.RequestException) -> DownloadError:
    """What a failed request means for a user."""
    match error:
        case requests.exceptions.ProxyError():
            return Unreachable(f"{url}: the proxy does not answer; correct http_proxy and https_proxy; {KEPT}")
        case requests.exceptions.SSLError():
            advice = "correct the clock, or set REQUESTS_CA_BUNDLE to your network's certificates"
            return Unreachable(f"{url}: its certificate cannot be verified; {advice}; {KEPT}")
        case requests.exceptions.ConnectionError() | requests.exceptions.ConnectTimeout():
            return Unreachable(f"{url}: cannot be reached; check the network, http_proxy and https_proxy; {KEPT}")
        case requests.exceptions.ChunkedEncodingError() | requests.exceptions.Timeout():
            return Failed(f"{url}: broke off ({type(error).__name__}); {KEPT}")
        case _:
            return Refused(f"{url}: {error}; correct the address")
