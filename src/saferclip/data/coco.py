"""COCO's images by their number, from the archives as they are published, or from folders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from saferclip.data import picture_files
from saferclip.data.archives import Archive
from saferclip.downloads import only_file, visible_files
from saferclip.io import DataError

NAME = re.compile(r"(?:^|_)(\d{12})\.jpe?g$", re.IGNORECASE)  # 000000123456.jpg, COCO_train2014_000000123456.jpg
LARGEST = 64 * 1024**2  # bytes of one image; COCO's largest has less than one megabyte


@dataclass(frozen=True)
class Place:
    """Where an image is: a file, or a member of an archive."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.member}" if self.member else str(self.path)


class CocoImages:
    """Images of some archives or folders; of equal numbers, the first one counts."""

    def __init__(self, sources: Sequence[Path]) -> None:
        """Read the lists of files.

        Raises DataError for a source that is neither archive nor folder, or whose names lead out of it.
        """
        self._places: dict[int, Place] = {}
        self._archives: dict[Path, Archive] = {}
        for source in sources:
            for place in tqdm(self._found(source), desc=f"{source.name}: files", unit="", disable=None):
                name = PurePosixPath(place.member).name if place.member else place.path.name
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
        try:
            if place.member is None:
                return picture_files.read_file(place.path, LARGEST)
            return self._archives[place.path].read(place.member, LARGEST)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error

    def _found(self, source: Path) -> Iterator[Place]:
        if source.is_dir() and not any(path.suffix.lower() == ".zip" for path in visible_files(source)):
            yield from map(Place, visible_files(source))
            return
        path = only_file(source, (".zip",))
        archive = self._archives[path] = Archive(path)
        yield from (Place(path, member) for member in archive.members)
