"""ViSU's captions as their gated release has them: a JSON file for each split.

A record holds a safe caption of COCO, the number of its image, an unsafe caption made from it and the kind of harm.
Files are lists of records, records line by line, or mappings of numbers to records.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from saferclip import ethics
from saferclip.config import VisuText
from saferclip.data.validation import Problems, blank, nearest, text_problem
from saferclip.downloads import visible_files
from saferclip.io import DataError, parse_json

SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
SUFFIXES = (".json", ".jsonl")
MOST = 2**63  # numbers of records and images, and seeds
CATEGORY = "unsafe"  # of records that name none
# The twenty concepts that ViSU was made of (Safe-CLIP, section 3.1; first listed for safe latent diffusion).
TAGS = (
    *("hate", "harassment", "violence", "suffering", "humiliation", "harm", "suicide", "sexual", "nudity"),
    *("bodily fluids", "blood", "obscene gestures", "illegal activity", "drug use", "theft", "vandalism"),
    *("weapons", "child abuse", "brutality", "cruelty"),
)

logger = logging.getLogger(__name__)


class Columns(NamedTuple):
    """What the release calls a record's fields."""

    id: str = "incremental_id"
    safe: str = "safe"
    unsafe: str = "nsfw"
    tag: str = "tag"
    image: str = "coco_id"
    seeds: str = "seeds"


class Record(NamedTuple):
    """One pair of captions."""

    id: str
    split: str
    category: str
    safe: str
    unsafe: str
    image: int  # COCO's number
    seeds: tuple[int, ...]  # of the unsafe image, where the record has some

    @property
    def minor(self) -> str | None:
        """What could mean a minor, or None; the kind of harm counts too, as one of ViSU's is child abuse."""
        return ethics.minor_hint((self.safe, self.unsafe, self.category))


@dataclass(frozen=True)
class Release:
    """All captions, split by split; they were found to be right."""

    columns: Columns
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    corrected: Mapping[str, str]  # misspelt tag to the one that was meant

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))

    def records(self, split: str) -> Iterator[Record]:
        """The records of a split, in the order of its file."""
        names = self.columns
        for number, row in enumerate(self.rows[split]):
            tag = _tidy(row.get(names.tag))
            yield Record(
                id=f"{split}-{_identifier(row, number, names)}",
                split=split,
                category=self.corrected.get(tag, tag) or CATEGORY,
                safe=row[names.safe].strip(),
                unsafe=row[names.unsafe].strip(),
                image=int(row[names.image]),
                seeds=_seeds(row.get(names.seeds)),
            )

    def all_records(self) -> Iterator[Record]:
        """Every record, split after split."""
        for split in self.rows:
            yield from self.records(split)


def read(settings: VisuText, downloads: Mapping[str, Path]) -> Release:
    """Read and check the release; a misspelt tag is corrected, with a word in the log.

    Raises DataError listing all files that are missing and all records that cannot be used.
    """
    folder = downloads[settings.text]
    files = {split: _file(folder, split) for split in SPLITS}
    rows = {split: _rows(path, settings.limit) for split, path in files.items()}
    columns = Columns(**settings.columns.model_dump(exclude_none=True)) if settings.columns else Columns()
    problems = Problems()
    for split, path in files.items():
        _check(path, rows[split], columns, problems)
    problems.check()
    tags = Counter(_tidy(row.get(columns.tag)) for split in rows.values() for row in split)
    return Release(columns, rows, _corrections(tags))


def _file(folder: Path, split: str) -> Path:
    """The file of a split, known by a part of its name, such as ViSU-Text_train.json."""
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; point downloads.local to the release's folder")
    known = [path for path in visible_files(folder) if path.suffix.lower() in SUFFIXES]
    found = [path for path in known if set(_words(path.stem)) & set(SPLITS[split])]
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(folder)) for path in (found or known)[:5]) or "no JSON file at all"
        raise DataError(f"{folder}: {len(found)} files of the split '{split}', not one; there are: {names}")
    return found[0]


def _words(name: str) -> list[str]:
    return "".join(character if character.isalnum() else " " for character in name.lower()).split()


# Files ------------------------------------------------------------------------------------------


def _rows(path: Path, limit: int | None) -> Sequence[Mapping[str, Any]]:
    """The first records of a file, whatever its layout."""
    rows = _mapping(path) if _is_mapping(path) else _list(path)
    if not len(rows):
        raise DataError(f"{path}: holds no records; download it again")
    return rows if limit is None or limit >= len(rows) else _first(rows, limit)


def _first(rows: Any, limit: int) -> Sequence[Mapping[str, Any]]:
    return rows.select(range(limit)) if hasattr(rows, "select") else list(islice(rows, limit))


def _is_mapping(path: Path) -> bool:
    """Whether a file is one JSON object: neither a list nor an object in each line."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        start = next((line.strip() for line in file if line.strip()), "")
    if not start.startswith("{"):
        return False
    try:
        first = parse_json(start)
    except ValueError:
        return True  # it goes on in the next line
    # A mapping may stand in one line as well; its values are records, or lists of them.
    return all(isinstance(value, dict | list) for value in first.values())


def _list(path: Path) -> Any:
    import datasets

    # In a cache of its own: that of the user may lie on a full or slow disk, and knows nothing of changed files.
    with TemporaryDirectory() as cache:
        try:
            return datasets.load_dataset(
                "json", data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True
            )
        except Exception as error:  # datasets wraps what Arrow, its parser and its own checks raise
            reason = " ".join(str(error.__cause__ or error).split())
            raise DataError(f"{path}: cannot be read as JSON records ({reason}); download it again") from error


def _mapping(path: Path) -> list[dict[str, Any]]:
    """Records by number, perhaps below 'data' and beside 'info', as Safe-CLIP's own files have them."""
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); download it again") from error
    content = content.get("data", content)
    if isinstance(content, dict):
        if not all(map(_is_digits, content)):
            raise DataError(f"{path}: a JSON object whose keys are no numbers; give a list of records, or a mapping")
        content = [content[key] for key in sorted(content, key=int)]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise DataError(f"{path}: its entries are no records with named fields")
    return list(content)


# Checking ---------------------------------------------------------------------------------------


def _check(path: Path, rows: Sequence[Mapping[str, Any]], columns: Columns, problems: Problems) -> None:
    needed = {name: getattr(columns, name) for name in ("safe", "unsafe", "image")}
    absent = [(name, column) for name, column in needed.items() if column not in rows[0]]
    for name, column in absent:
        near = nearest(column, list(rows[0]))
        advice = f"set data.visu.columns.{name} to '{near}'?" if near else f"records have {', '.join(rows[0])}"
        problems.add(path, f"field '{column}'", f"missing; {advice}")
    if absent:
        return
    known: set[str] = set()
    for number, row in enumerate(rows):
        for column, message in _record_problems(row, number, columns, known):
            problems.add(path, f"record {number}", column, message)


def _record_problems(
    row: Mapping[str, Any], number: int, columns: Columns, known: set[str]
) -> Iterator[tuple[str, str]]:
    for column in (columns.safe, columns.unsafe):
        if message := text_problem(row.get(column)):
            yield column, message
    if not _is_number(row.get(columns.image)):
        yield columns.image, f"{row.get(columns.image)!r} is not the number of a COCO image"
    identifier = _identifier(row, number, columns)
    if message := text_problem(identifier):
        yield columns.id, message
    if (tag := row.get(columns.tag)) is not None and (message := text_problem(_tidy(tag) or CATEGORY)):
        yield columns.tag, message
    if identifier in known:
        yield columns.id, f"{identifier} is the id of an earlier record; ids must differ within a split"
    known.add(identifier)
    seeds = row.get(columns.seeds)
    if not all(isinstance(seed, int) and 0 <= seed < MOST for seed in (seeds if isinstance(seeds, list) else [])):
        yield columns.seeds, f"{seeds!r} are no seeds; write whole numbers"


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return _is_digits(value.strip())
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MOST and value == int(value)


def _is_digits(text: str) -> bool:
    """Whether a text is a whole number; Python calls more than that digits, and reads no number of 5,000."""
    return text.isascii() and text.isdecimal() and len(text) <= len(str(MOST))


def _identifier(row: Mapping[str, Any], number: int, columns: Columns) -> str:
    value = row.get(columns.id)
    return str(number) if blank(value) else str(value).strip()


def _seeds(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list) else ()


def _tidy(tag: Any) -> str:
    return "" if blank(tag) else " ".join(str(tag).lower().split())


def _corrections(tags: Mapping[str, int]) -> dict[str, str]:
    """Tags that are none of ViSU's concepts but nearly one; the release is known to misspell one."""
    corrected = {}
    for tag, count in sorted(tags.items()):
        if tag in TAGS or not tag:
            continue
        if meant := nearest(tag, TAGS):
            corrected[tag] = meant
            logger.warning("tag '%s' (%d records) is taken for '%s'", tag, count, meant)
        else:
            logger.warning("tag '%s' (%d records) is none of ViSU's concepts; it is kept as it is", tag, count)
    return corrected
