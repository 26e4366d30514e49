"""COCO's images by their number, from the archives as they are published, or from folders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Lock
from zipfile import BadZipFile, ZipFile, ZipInfo

from tqdm import tqdm

from saferclip.downloads import only_file, visible_files
from saferclip.io import DataError

NAME = re.compile(r"(?:^|_)(\d{12})\.jpe?g$", re.IGNORECASE)  # 000000123456.jpg, COCO_train2014_000000123456.jpg
LARGEST = 64 * 1024**2  # bytes of one image; COCO's largest has less than one megabyte


@dataclass(frozen=True)
class Place:
    """Where an image is: a file, or a member of an archive."""

    path: Path
    member: ZipInfo | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.member.filename}" if self.member else str(self.path)


class CocoImages:
    """Images of some archives or folders; of equal numbers, the first one counts."""

    def __init__(self, sources: Sequence[Path]) -> None:
        """Read the lists of files.

        Raises DataError for a source that is neither archive nor folder, or whose names lead out of it.
        """
        self._places: dict[int, Place] = {}
        self._archives: dict[Path, ZipFile] = {}
        self._lock = Lock()
        for source in sources:
            for place in tqdm(self._found(source), desc=f"{source.name}: files", unit="", disable=None):
                name = PurePosixPath(place.member.filename).name if place.member else place.path.name
                if number := NAME.search(name):
                    self._places.setdefault(int(number[1]), place)

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __len__(self) -> int:
        return len(self._places)

    def place(self, number: int) -> Place:
        """Where an image is, for messages."""
        return self._places[number]

    def read(self, number: int) -> bytes:
        """An image as it is stored; from any thread.  Raises DataError naming the file that cannot be read."""
        place = self._places[number]
        if place.member is None:
            try:
                return place.path.read_bytes()
            except OSError as error:
                raise DataError(f"{place}: cannot be read: {error.strerror}") from error
        if place.member.file_size > LARGEST:
            raise DataError(f"{place}: unpacks to {place.member.file_size:,} bytes, too many for an image of COCO")
        try:
            with self._lock:
                return self._archives[place.path].read(place.member)
        # Also of a member that is encrypted, or packed in a way that Python cannot unpack.
        except (OSError, BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            raise DataError(f"{place}: cannot be unpacked ({error}); download the archive again") from error

    def _found(self, source: Path) -> Iterator[Place]:
        if source.is_dir() and not any(path.suffix.lower() == ".zip" for path in visible_files(source)):
            yield from map(Place, visible_files(source))
            return
        path = only_file(source, (".zip",))
        try:
            archive = self._archives[path] = ZipFile(path)
        except (OSError, BadZipFile) as error:
            raise DataError(f"{path}: cannot be read as an archive ({error}); download it again") from error
        for member in archive.infolist():
            if leads_out(member.orig_filename):
                raise DataError(f"{path}: holds '{member.orig_filename}', which leads out of it; get another archive")
            yield Place(path, member)


def leads_out(name: str) -> bool:
    """Whether the name of an archive's member is no plain path within the archive."""
    return name.startswith("/") or "\\" in name or ":" in name or "\0" in name or ".." in name.split("/")
