"""Repositories of the Hugging Face Hub, by its own client, and checked: what it says it sent is what is here.

huggingface_hub fetches several files at once, goes on where a connection broke and skips files that are complete.
It does not try a busy server again, nor compare hashes, and takes what lies in the folder where the hub is out of
reach; these are added here.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple, TypeVar

from saferclip.downloads import DownloadError
from saferclip.downloads.manifest import (
    INNER,
    File,
    Manifest,
    check_space,
    full_disk_told,
    git_hash,
    set_aside,
    sha256,
    size,
)
from saferclip.downloads.table import HUB_KINDS, Row, leads_out
from saferclip.downloads.web import BUSY, KEPT, Failed, Unreachable, pause

LOG = logging.getLogger(__name__)

Result = TypeVar("Result")


class Listed(NamedTuple):
    """A file as the hub lists it: one of the two hashes is known."""

    name: str
    bytes: int
    sha256: str  # of files that are stored apart from Git; others have none
    git: str


def fetch(row: Row, place: Path, connections: int, retries: int) -> Manifest:
    """Fetch the files of a repository that a row means into ``place``; raises DownloadError."""
    commit = row.revision or _patiently(lambda: resolve(row), retries)
    listed = _patiently(lambda: _listing(row, commit), retries)
    for leftover in place.glob(".cache/huggingface/download/**/*.incomplete"):
        leftover.unlink()  # of a killed process; the client never takes them up again
    check_space(place, sum(file.bytes for file in listed if size(place / file.name) != file.bytes))
    files = _patiently(lambda: _files(row, commit, listed, place, connections), retries)
    return Manifest.of(row, commit, files)


def resolve(row: Row) -> str:
    """The commit that the repository's main branch is at now; raises DownloadError."""
    from huggingface_hub import HfApi

    with _Explained(row):
        info = HfApi(endpoint=_endpoint()).repo_info(row.source, repo_type=HUB_KINDS[row.kind])
    if not info.sha:
        raise DownloadError(f"{row.source}: the hub names no commit; correct HF_ENDPOINT")
    return info.sha


def _endpoint() -> str | None:
    """A mirror of the hub, if one is set."""
    return os.environ.get("HF_ENDPOINT") or None


def _listing(row: Row, commit: str) -> list[Listed]:
    """The files of a commit that the row's patterns choose."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=_endpoint())
    with _Explained(row):
        tree = list(api.list_repo_tree(row.source, recursive=True, revision=commit, repo_type=HUB_KINDS[row.kind]))
    files = [
        Listed(file.path, file.size, file.lfs.sha256 if file.lfs else "", file.blob_id)
        for file in tree
        if isinstance(file, RepoFile)
    ]
    chosen = [file for file in files if any(fnmatch(file.name, pattern) for pattern in row.files or ("*",))]
    if wrong := next((file.name for file in chosen if leads_out(file.name) or file.name == INNER), None):
        raise DownloadError(f"{row.source}: holds {wrong!r}, no name for a file here; leave it out by 'files'")
    if not chosen:
        names = ", ".join(file.name for file in files[:10])
        raise DownloadError(f"{row.source}: nothing matches {'; '.join(row.files)}; correct 'files'; it has {names}")
    return chosen


def _files(row: Row, commit: str, listed: list[Listed], place: Path, connections: int) -> dict[str, File]:
    """Fetch what is missing, and check everything; raises DownloadError, Failed if another try may help."""
    from huggingface_hub import snapshot_download

    with _Explained(row), full_disk_told(place):
        snapshot_download(
            row.source,
            repo_type=HUB_KINDS[row.kind],
            revision=commit,
            local_dir=place,
            allow_patterns=list(row.files) or None,
            max_workers=connections,
            endpoint=_endpoint(),
        )
    LOG.info("%s: checking %d files", row.name, len(listed))
    files, problems = {}, []
    for file in listed:
        found, problem = _check(place, file)
        files[file.name] = found
        problems += [problem] if problem else []
    if problems:
        raise Failed(f"{row.source}: {'; '.join(problems)}")
    return files


def _check(place: Path, listed: Listed) -> tuple[File, str]:
    """A file as it is here, and what is wrong with it; a wrong file is set aside, so that it is fetched anew."""
    path = place / listed.name
    if not path.is_file():
        return File(bytes=0, sha256=""), f"{listed.name} did not come; {KEPT}"
    found = File(bytes=path.stat().st_size, sha256=sha256(path))
    here, there = (found.sha256, listed.sha256) if listed.sha256 else (git_hash(path), listed.git)
    if here == there and found.bytes == listed.bytes:
        return found, ""
    (place / ".cache/huggingface/download" / f"{listed.name}.metadata").unlink(missing_ok=True)
    kind = "SHA-256" if listed.sha256 else "Git hash"
    wrong = f"{listed.name} has {kind} {here} and {found.bytes:,} bytes, but the hub says {there} and {listed.bytes:,}"
    advice = "start again; if it stays so, a proxy or mirror alters it"
    return found, f"{wrong}; it was set aside as {set_aside(path)}; {advice}"


def _patiently(work: Callable[[], Result], retries: int) -> Result:
    """Do something that may fail for now, again and again with growing pauses."""
    for tried in range(1, retries + 1):
        try:
            return work()
        except Failed as error:
            if isinstance(error, Offline):
                break
            seconds = pause(tried, error.pause)
            LOG.warning("%s; trying again in %.1f s", error, seconds)
            time.sleep(seconds)
    return work()


class Offline(Unreachable):
    """The user does not want the network to be used."""


class _Explained:
    """Turns the client's errors into ones that say what to do."""

    def __init__(self, row: Row) -> None:
        self._row = row

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, DownloadError) or not isinstance(error, Exception):
            return
        explained = _explain(self._row, error)
        if explained:
            raise explained from error


def _explain(row: Row, error: Exception) -> DownloadError | None:
    """What an error of the client means for a user; None if it is not about the hub."""
    causes = list(_causes(error))
    for judge in (_refusal, _failure):
        for cause in causes:
            if explained := judge(row, cause):
                return explained
    return None


def _refusal(row: Row, error: BaseException) -> DownloadError | None:
    """An answer that would be the same another time."""
    from huggingface_hub import errors

    status = _status(error)
    message = ""
    match error:
        case errors.GatedRepoError():
            message = _gated(row, status)
        case errors.RepositoryNotFoundError():
            advice = "correct 'source' in the versions table; if it is private, set HF_TOKEN"
            message = f"{row.source}: the hub has no such repository ({row.kind}); {advice}"
        case errors.RevisionNotFoundError():
            advice = f"correct 'revision', or empty it and run `saferclip pin {row.name}`"
            message = f"{row.source}: has no revision {row.revision or 'main'}; {advice}"
        case errors.FileMetadataError() | json.JSONDecodeError():
            message = _no_hub(row)
        case errors.HfHubHTTPError() if 400 <= status < 500 and status not in BUSY:
            message = f"{row.source}: the hub refuses ({status}); check HF_TOKEN, and the terms at {row.terms}"
    return DownloadError(message) if message else None


def _status(error: BaseException) -> int:
    """The HTTP status behind an error, 0 if there is none."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def _gated(row: Row, status: int) -> str:
    terms = row.terms or f"its page on the hub, {row.source}"
    if status == 403:
        advice = "and wait until its authors grant access, or use the token of an account that has it (HF_TOKEN)"
        return f"{row.source}: your account has no access; accept the terms at {terms} {advice}"
    advice = "then set HF_TOKEN or run `hf auth login`"
    return f"{row.source}: is gated, and there is no valid token; accept the terms at {terms}, {advice}"


def _no_hub(row: Row) -> str:
    advice = "correct HF_ENDPOINT, or open it in a browser: a page to log in to your network may come in its place"
    return f"{row.source}: what answers at {_endpoint() or 'its address'} is no hub; {advice}"


def _failure(row: Row, error: BaseException) -> DownloadError | None:
    """An answer, or none, that may be another one soon."""
    from huggingface_hub import errors

    kind = type(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return Offline(f"{row.source}: HF_HUB_OFFLINE is set; unset it, or {_copy(row)}")
    if isinstance(error, errors.HfHubHTTPError):
        return Failed(f"{row.source}: the hub answers {_status(error)}; {KEPT}")
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return Failed(f"{row.source}: a file broke off; {KEPT}")
    # The client speaks through httpx, httpx2 or requests, by its version.
    return _broken(row, kind.__name__) if kind.__module__.partition(".")[0] in ("httpx", "httpx2", "requests") else None


def _copy(row: Row) -> str:
    """How to use a copy on disk; a model that a setting names by itself, ``hub--...``, has no row to give a place."""
    return "set its source to a copy" if row.name.startswith("hub--") else f"set downloads.local.{row.name} to a copy"


def _broken(row: Row, kind: str) -> Failed:
    """What is wrong with a connection, by the name of its error."""
    if "Proxy" in kind:
        return Unreachable(f"{row.source}: the proxy does not answer; correct http_proxy and https_proxy; {KEPT}")
    if "Connect" in kind:
        advice = "check the network, https_proxy and HF_ENDPOINT"
        return Unreachable(f"{row.source}: the hub cannot be reached; {advice}; {KEPT}")
    return Failed(f"{row.source}: the connection broke off; {KEPT}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those behind it."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
