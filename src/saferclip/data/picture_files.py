"""Pictures that a user has: all of a folder and the folders in it, or of a zip, by name."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from saferclip.data import pictures
from saferclip.data.archives import Archive
from saferclip.io import DataError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# Kept as they are: transcoding a large set of WebP takes longer than using it.
KEPT = pictures.KEPT | {"WEBP"}
LARGEST = 100_000_000  # bytes of one picture; what a zip unpacks to may be thousands of times its size
BATCH = 64  # pictures in memory at once

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class PictureFiles:
    """Names of pictures, sorted, and how to read one."""

    place: Path
    names: list[str]
    read: Callable[[str], bytes]

    def plain(self, name: str) -> bytes:
        """One picture as a table may hold it: RGB and upright.  Raises DataError."""
        try:
            return plain(self.read(name))
        except (pictures.PictureError, DataError) as error:
            raise DataError(f"{self.place}: {name}: {error}") from error


class Checked(NamedTuple):
    """A picture that was looked at: the hash of its file, or what is wrong with it."""

    name: str
    digest: bytes
    problem: str | None


def find(place: Path) -> PictureFiles:
    """The pictures below a folder, in a zip, or in the only zip of a folder without pictures.

    Hidden files and what is no picture by its name are passed over.  Raises DataError if there is none.
    """
    if place.is_dir():
        names = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
        found = [name for name in names if _is_picture(name)]
        zips = [name for name in names if name.lower().endswith(".zip")]
        if found or len(zips) != 1:
            return _some(PictureFiles(place, found, lambda name: read_file(place / name)))
        place = place / zips[0]
    if not place.is_file():
        raise DataError(f"{place}: there is no such folder or zip of pictures")
    return _some(_in_zip(place))


def plain(data: bytes) -> bytes:
    """A picture's own bytes if they are an upright RGB JPEG, PNG or WebP, else PNG; it is decoded in any case.

    Raises PictureError.
    """
    pictures.read(data)
    return pictures.plain(data, KEPT)


def check(files: PictureFiles, names: Iterable[str]) -> Iterator[Checked]:
    """Decode the pictures of these names, a few at once, in their order."""

    def look(name: str) -> Checked:
        try:
            data = files.read(name)
            pictures.read(data)
        except (pictures.PictureError, DataError) as error:
            return Checked(name, b"", str(error))
        return Checked(name, sha256(data).digest(), None)

    yield from side_by_side(look, names)


def side_by_side(work: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
    """``map`` on all cores, by threads, with a few items in memory."""
    iterator = iter(items)
    with ThreadPool() as pool:
        while batch := list(islice(iterator, BATCH)):
            yield from pool.map(work, batch)


def _some(files: PictureFiles) -> PictureFiles:
    if not files.names:
        raise DataError(f"{files.place}: holds no pictures ({', '.join(sorted(SUFFIXES))}); correct the path")
    return files


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def read_file(path: Path, largest: int = LARGEST) -> bytes:
    """A file's content.  Raises DataError, without its name, for one that is too large, and for a device or pipe."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DataError("is no file")
        if found.st_size > largest:
            raise DataError(f"larger than {largest:,} bytes; make it smaller")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error


def _in_zip(place: Path) -> PictureFiles:
    archive = Archive(place)
    return PictureFiles(place, sorted(filter(_is_picture, archive.members)), lambda name: archive.read(name, LARGEST))
