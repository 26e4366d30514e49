"""Long work row by row, kept on disk, so that an interruption costs one batch at most."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from saferclip import io, provenance

logger = logging.getLogger(__name__)


class Task(Protocol):
    """One part of the work; ``place`` tells it from the others."""

    @property
    def place(self) -> int: ...


TaskT = TypeVar("TaskT", bound=Task)


@dataclass(frozen=True)
class Progress:
    """Finished rows of the work that ``identity`` stands for, a small table for each batch.

    A row's ``place`` is that of its task.
    """

    folder: Path
    identity: str

    @classmethod
    def resume(
        cls, folder: Path, settings: Mapping[str, Any], files: Sequence[Path], downloads: Mapping[str, Path]
    ) -> Progress:
        """What was done with these settings, these files' content and these downloads; anything else is thrown away."""
        identity = provenance.digest(
            {
                "settings": dict(settings),
                "files": [_digest(file) for file in files],
                "downloads": {name: _fingerprint(place) for name, place in sorted(downloads.items())},
            }
        )
        progress = cls(folder / identity, identity)
        for other in folder.iterdir() if folder.is_dir() else ():
            if other != progress.folder:
                logger.warning("%s belongs to other settings or inputs; starting anew", other)
                shutil.rmtree(other)
        return progress

    def pending(self, tasks: Sequence[TaskT]) -> list[TaskT]:
        """What is left to do, in order."""
        parts = [io.read_table(part, ["place"])["place"].to_pylist() for part in self._parts()]
        done = {place for places in parts for place in places}
        left = [task for task in tasks if task.place not in done]
        logger.info("%d of %d to do", len(left), len(tasks))
        return left

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep finished rows; they are on the disk when this returns."""
        io.write_table(self.folder / f"{rows[0]['place']:09d}.parquet", rows)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All finished rows by place; images as encoded bytes, as they were added."""
        for part in self._parts():
            for row in io.read_table(part).to_pylist():
                yield {name: value["bytes"] if isinstance(value, dict) else value for name, value in row.items()}

    def remove(self) -> None:
        """Forget the state of work that ended."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(place: Path) -> list[list[Any]]:
    """Names, sizes and times of the files of a download; their content may be many gigabytes."""
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    stats = [(str(file.relative_to(place)), file.stat()) for file in files if file.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def batches(tasks: Sequence[TaskT], size: int) -> Iterator[Sequence[TaskT]]:
    """The tasks in their order, so many at once."""
    for start in range(0, len(tasks), size):
        yield tasks[start : start + size]
