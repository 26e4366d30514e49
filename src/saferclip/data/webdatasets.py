"""Images with labels in tars, as the CLIP benchmarks publish them: ``<key>.jpg`` and ``<key>.cls`` for each image."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from saferclip.data.picture_files import LARGEST, SUFFIXES
from saferclip.data.streaming import stream
from saferclip.data.validation import Problems
from saferclip.downloads import leads_out
from saferclip.io import DataError

LABEL = "cls"
IMAGES = frozenset(suffix.removeprefix(".") for suffix in SUFFIXES)
LONGEST_LABEL = 20  # bytes
MOST_TARS = 100_000
BLOCK = 512  # a tar ends with blocks of zeros


class Member(NamedTuple):
    """A file in a tar, by what `datasets` makes of its name."""

    key: str
    field: str


def shards(folder: Path) -> list[Path]:
    """The tars of a split, 0.tar to (n - 1).tar; raises DataError if they are not those that nshards.txt speaks of."""
    counted = folder / "nshards.txt"
    try:
        count = int(counted.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise DataError(f"{counted}: does not say how many tars there are ({error}); fetch the set again") from error
    if count > MOST_TARS:
        raise DataError(f"{counted}: says {count:,} tars, more than any set has; fetch the set again")
    paths = [folder / f"{number}.tar" for number in range(count)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise DataError(
            f"{folder}: nshards.txt says {count}, but {', '.join(missing) or 'none'} missing; fetch the set again"
        )
    return paths


def check(name: str, paths: Sequence[Path], classes: int) -> int:
    """Count the images of a set, after a look at all names and labels; ``classes`` is 0 where they are not known.

    Raises DataError listing what is wrong, with set, tar and key.
    """
    problems = Problems()
    count = 0
    for path in paths:
        try:
            labels = _labels(path)
        except (OSError, tarfile.TarError, EOFError) as error:
            raise DataError(f"{name}: {path}: not a tar that can be read ({error}); fetch it again") from error
        if not _ends(path):
            raise DataError(f"{name}: {path}: its end is missing; fetch it again")
        count += len(labels)
        for key, found in labels.items():
            if message := _problem(key, found, classes):
                problems.add(name, path, key, message)
    problems.check()
    return count


def samples(name: str, paths: Sequence[Path]) -> Iterator[tuple[str, int, bytes]]:
    """(place, label, encoded image) of each image of tars that were found to be right, one by one.

    Nothing is unpacked to the disk.  Raises DataError with set, tar and key.
    """
    import datasets

    fields = {LABEL: datasets.Value("int64"), "__key__": datasets.Value("string"), "__url__": datasets.Value("string")}
    features = datasets.Features({**fields, **dict.fromkeys(sorted(IMAGES), datasets.Image(decode=False))})
    place = str(paths[0])
    try:
        with stream("webdataset", paths, features=features) as rows:
            for row in rows:
                place = f"{row['__url__']}: {row['__key__']}"
                yield place, *_label_and_image(row)
    # `datasets` answers damaged members with many kinds of exception.
    except Exception as error:
        raise DataError(f"{name}: {place}: {error}; fetch the tar again") from error


def _label_and_image(row: Mapping[str, Any]) -> tuple[int, bytes]:
    images = [row[field]["bytes"] for field in sorted(IMAGES) if row[field] is not None]
    # Both are there, so others lie between them.
    if row[LABEL] is None or not images:
        raise ValueError("image and label do not lie beside each other in the tar")
    return row[LABEL], images[0]


def _labels(path: Path) -> dict[str, dict[str, bytes]]:
    """Fields of each key of a tar, with the content of its label."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            member = _member(info.name)
            if not (info.isfile() or info.isdir()) or info.issparse():
                raise tarfile.TarError(f"holds {info.name!r}, a link, device or file with gaps")
            if leads_out(info.name.removeprefix("./") or "."):
                raise tarfile.TarError(f"holds {info.name!r}, which leads out of it")
            # `datasets` passes over directories and hidden files.
            if info.isdir() or member is None:
                continue
            if info.size > LARGEST:
                raise tarfile.TarError(f"holds {info.name!r} of {info.size:,} bytes, too many for a picture")
            if member.field in found.get(member.key, {}):
                raise tarfile.TarError(f"holds {info.name!r} twice")
            file = tar.extractfile(info) if member.field == LABEL else None
            found.setdefault(member.key, {})[member.field] = file.read(LONGEST_LABEL) if file else b""
    return found


def _member(name: str) -> Member | None:
    """Key and field of a file, or None for one that is passed over."""
    file = name.rpartition("/")[2]
    stem, dot, field = file.partition(".")
    if not dot or not stem or stem.startswith("__"):
        return None
    return Member(name.removesuffix(f".{field}"), field)


def _problem(key: str, fields: dict[str, bytes], classes: int) -> str | None:
    """What is wrong with one key's files, with the remedy."""
    if key.startswith("/") or ".." in PurePosixPath(key).parts:
        return "a name that leads out of the tar; this is no set to be trusted"
    images = IMAGES & fields.keys()
    if len(images) != 1:
        return f"{len(images)} images, where there must be one ({', '.join(sorted(IMAGES))}); fetch the tar again"
    if LABEL not in fields:
        return f"no label (.{LABEL}); fetch the tar again"
    text = fields[LABEL].decode("ascii", "replace").strip()
    if not text.isascii() or not text.isdecimal():
        return f"label '{text}' is no number from 0; fetch the tar again"
    if classes and int(text) >= classes:
        return f"label {text}; the set has {classes} classes, from 0"
    return None


def _ends(path: Path) -> bool:
    """Whether a tar's end is there; without it, files at the end may be missing unnoticed."""
    with path.open("rb") as file:
        file.seek(-BLOCK, 2)
        return not any(file.read(BLOCK))
