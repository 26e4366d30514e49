"""The record of a finished download, and what it takes to keep one: room on the disk, and a name of its own."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from saferclip.downloads import DownloadError
from saferclip.downloads.table import Row, leads_out
from saferclip.io import DataError, read_json, write_json

RESERVE = 1.05  # file systems need some room of their own
CHUNK = 1 << 20
# Kept inside the folder too: a workflow removes a step's old outputs before it runs again.
INNER = ".manifest.json"


class File(BaseModel):
    """One file of a download."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What was fetched: the content of ``<folder>/<name>.json``, and of a copy inside the download's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: str
    source: str
    revision: str
    patterns: tuple[str, ...]
    files: dict[str, File]

    @field_validator("files")
    @classmethod
    def _below(cls, files: dict[str, File]) -> dict[str, File]:
        """Files of other versions are deleted by these names."""
        if wrong := next(filter(leads_out, files), None):
            raise ValueError(f"'{wrong}' leads out of the folder")
        return files

    @classmethod
    def of(cls, row: Row, revision: str, files: dict[str, File]) -> Manifest:
        """The manifest of a row's files."""
        kind, source = row.kind, row.source
        return cls(name=row.name, kind=kind, source=source, revision=revision, patterns=row.files, files=files)

    def fits(self, row: Row) -> bool:
        """Whether these are the files that a row means."""
        same = (self.kind, self.source, self.patterns) == (row.kind, row.source, row.files)
        hashes = {file.sha256 for file in self.files.values()}
        return same and row.revision in ("", self.revision) and (not row.sha256 or hashes == {row.sha256})

    def missing(self, place: Path) -> list[str]:
        """Names of files that are not there, or not of their size."""
        return [name for name, file in self.files.items() if size(place / name) != file.bytes]

    def write(self, place: Path) -> None:
        """Declare a download complete, for ever and for the workflow."""
        for path in (place / INNER, outer(place)):
            write_json(path, self.model_dump(mode="json"))


def outer(place: Path) -> Path:
    """Where the workflow looks for the manifest of a download's folder."""
    return place.parent / f"{place.name}.json"


def read(place: Path) -> Manifest | None:
    """The manifest of what a folder holds, or None if nothing was completed there."""
    path = place / INNER
    try:
        return Manifest.model_validate(read_json(path)) if path.is_file() else None
    except (DataError, ValidationError):
        return None  # written by another version; what is there is checked anew


def size(path: Path) -> int | None:
    """A file's size in bytes, None if there is no file."""
    return path.stat().st_size if path.is_file() else None


def sha256(path: Path) -> str:
    """A file's SHA-256."""
    return _read_into(hashlib.sha256(), path)


def git_hash(path: Path) -> str:
    """The hash by which Git, and so the hub, knows a small file."""
    return _read_into(hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False), path)


def _read_into(digest: hashlib._Hash, path: Path) -> str:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def set_aside(path: Path) -> Path:
    """Take a wrong file out of the way, hidden beside its place, and say where it is."""
    aside = path.with_name(f".{path.name}.refused")
    path.replace(aside)
    return aside


def check_space(folder: Path, needed: int) -> None:
    """Raise DownloadError unless there is room for that many bytes and a little more."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    wanted = round(needed * RESERVE)
    if needed and free < wanted:
        raise DownloadError(
            f"{folder}: {human(wanted)} are needed, of which 5% as a reserve, and {human(free)} are free; "
            "free some space, or set downloads.folder to another disk"
        )


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Turn a full disk into a DownloadError that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DownloadError(
            f"{folder}: the disk is full ({human(shutil.disk_usage(folder).free)} are free); free some space, or set "
            "downloads.folder to another disk, and start again: what was complete is kept"
        ) from error


def human(count: int) -> str:
    """A number of bytes as people say it."""
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB')[power]}"
