"""Tables of one's own, CSV or Parquet, that name, or hold, their images: quadruples, and compositional probes.

Everything is checked before anything is written, down to decoding every image; all problems are
told at once.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from saferclip.config import LocalData, ProbeSource
from saferclip.data import picture_files, pictures
from saferclip.data.validation import Problems, blank, nearest, text_problem, truth
from saferclip.io import LABEL_COLUMNS, DataError

CAPTIONS = ("safe_caption", "unsafe_caption")
IMAGES = ("safe_image", "unsafe_image")
# How a misspelt label is known, by its letters alone: nothing looser, as other columns are passed over.
LABELS_BY_WORDS = {name.replace("_is_", ""): name for name in LABEL_COLUMNS}
CATEGORY = "unsafe"  # of rows that name none
BATCH = 64  # rows held at once; images may be large

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """What a table's columns are called, and where the config speaks of it."""

    captions: tuple[str, ...]
    images: tuple[str, ...]
    optional: tuple[str, ...]
    section: str  # of the config
    unique: str  # where no id may come twice
    whole: str  # what a row needs

    @property
    def required(self) -> tuple[str, ...]:
        return ("id", *self.captions, *self.images)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)


QUADRUPLES = Layout(
    CAPTIONS,
    IMAGES,
    ("category", *LABEL_COLUMNS),
    "data.local",
    "across all tables",
    "every quadruple needs both images",
)
PROBES = Layout(("caption", "foil"), ("image",), (), "test_sets.public.probes", "within a table", "every row needs one")


@dataclass(frozen=True)
class Table:
    """One table, of a split or of a probe; relative image paths start at ``root``."""

    name: str
    path: Path
    root: Path
    gaps: bool  # whether rows may lack images
    layout: Layout = QUADRUPLES

    def lacks(self, cell: Any) -> bool:
        """Whether a cell holds no image, as it may."""
        return self.gaps and _embedded(cell) is None and blank(cell.get("path") if isinstance(cell, dict) else cell)


@dataclass(frozen=True)
class Row:
    """One row as it was found; ``place`` is how to find it again."""

    place: str
    cells: dict[Any, Any]


def quadruples(settings: LocalData) -> dict[str, Iterator[dict[str, Any]]]:
    """Check all three tables, then give each split's rows (`io.QUADRUPLE_COLUMNS`) one by one.

    Images are encoded bytes of RGB pictures: the original ones if possible, PNG otherwise; None where a cell is empty
    and the settings say that such rows are kept.
    Raises DataError listing every problem with file, row, column and remedy.
    """
    gaps = settings.missing_images == "keep"
    tables = [
        Table(split, path, settings.image_root or path.parent, gaps)
        for split, path in (("train", settings.train), ("validation", settings.validation), ("test", settings.test))
    ]
    _check(tables)
    return {table.name: _quadruples(table) for table in tables}


def probes(sources: Mapping[str, ProbeSource]) -> Iterator[dict[str, Any]]:
    """Check the tables of all probes, then give their rows (probe, id, caption, foil, image) one by one.

    Images are as in ``quadruples``.  Raises DataError listing every problem with file, row, column and remedy.
    """
    tables = [
        Table(name, source.table, source.image_root or source.table.parent, gaps=False, layout=PROBES)
        for name, source in sources.items()
    ]
    _check(tables)
    return (row for table in tables for row in _probe(table))


def _probe(table: Table) -> Iterator[dict[str, Any]]:
    """Rows of a table that was found to be right."""
    with ThreadPool() as pool:
        for batch in _batches(table, f"{table.name}: images"):
            for row, image in zip(batch, pool.map(partial(_plain, table, "image"), batch), strict=True):
                captions = {name: row.cells[name].strip() for name in PROBES.captions}
                yield {"probe": table.name, "id": _identifier(row.cells["id"]), **captions, "image": image}


def _quadruples(table: Table) -> Iterator[dict[str, Any]]:
    """Rows of a table that was found to be right."""
    rows, missing = 0, Counter[str]()
    labels = [name for name in _column_names(table) if name in LABEL_COLUMNS]
    with ThreadPool() as pool:
        for batch in _batches(table, f"{table.name}: images"):
            safe = pool.map(partial(_plain, table, "safe_image"), batch)
            unsafe = pool.map(partial(_plain, table, "unsafe_image"), batch)
            for row, safe_image, unsafe_image in zip(batch, safe, unsafe, strict=True):
                rows += 1
                missing.update(safe_image=safe_image is None, unsafe_image=unsafe_image is None)
                yield {
                    "id": _identifier(row.cells["id"]),
                    "split": table.name,
                    "category": (row.cells.get("category") or "").strip() or CATEGORY,
                    "safe_caption": row.cells["safe_caption"].strip(),
                    "unsafe_caption": row.cells["unsafe_caption"].strip(),
                    "safe_image": safe_image,
                    "unsafe_image": unsafe_image,
                    **{name: truth(row.cells[name]) is not False for name in labels},
                }

    for column, count in missing.items():
        if count:
            logger.warning("%s: %d of %d rows have no %s", table.path, count, rows, column)


def _plain(table: Table, column: str, row: Row) -> bytes | None:
    cell = row.cells.get(column)
    if table.lacks(cell):
        return None
    try:
        return pictures.plain(_encoded(table, cell))
    except (DataError, pictures.PictureError) as error:
        raise DataError(f"{table.path}: {row.place}: {column}: {error}") from error


# Checking ---------------------------------------------------------------------------------------


def _check(tables: Sequence[Table]) -> None:
    """Raise DataError unless every row of every table can be used."""
    problems = Problems()
    identifiers: dict[str, str] = {}
    files: dict[Path, Table] = {}
    for table in tables:
        twin = files.setdefault(table.path.resolve(), table)
        if twin is not table:
            problems.add(table.path, f"is named for {twin.name} and {table.name}; each needs rows of its own")
            continue
        try:
            _check_table(table, identifiers if table.layout.unique == QUADRUPLES.unique else {}, problems)
        except DataError as error:
            problems.add(error)
    problems.check()


def _check_table(table: Table, identifiers: dict[str, str], problems: Problems) -> None:
    columns = _check_columns(table, problems)
    images = [name for name in columns if name in table.layout.images]
    verdicts: dict[Path, str | None] = {}
    count = 0
    with ThreadPool() as pool:
        for batch in _batches(table, f"{table.name}: checking"):
            count += len(batch)
            cells = [row.cells.get(name) for row in batch for name in images]
            found = iter(pool.map(partial(_image_problem, table, verdicts=verdicts), cells))
            for row in batch:
                pictured = {name: next(found) for name in images}
                for name, message in _row_problems(table, row, columns, identifiers, pictured):
                    problems.add(table.path, row.place, name, message)
    if not count:
        problems.add(table.path, "has no rows; add some, or name another table in the config")


def _check_columns(table: Table, problems: Problems) -> list[str]:
    """Columns that can be checked row by row; what keeps the others from it is noted."""
    names = _column_names(table)
    if len(names) == 1 and any(separator in names[0] for separator in ";\t|"):
        raise DataError(f"{table.path}: line 1: one column only; separate columns with commas")
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.add(table.path, f"column '{name}'", "there are several; rename or remove the others")
    layout = table.layout
    others = [name for name in names if name not in layout.columns]
    for name in layout.required:
        if name not in names and not (table.gaps and name in layout.images and not nearest(name, others)):
            near = nearest(name, others)
            advice = f"rename '{near}'?" if near else f"the table has {', '.join(names) or 'no columns'}"
            problems.add(table.path, f"column '{name}'", f"missing; {advice}")
    for name in layout.optional:
        if name not in (*names, *LABEL_COLUMNS) and (near := nearest(name, others)):
            problems.add(table.path, f"column '{near}'", f"rename it to '{name}', or remove it")
    for name in others:
        label = LABELS_BY_WORDS.get("".join(re.findall("[a-z]+", name.lower())).replace("is", ""))
        if label in layout.optional and all(caption in names for caption in CAPTIONS):
            problems.add(table.path, f"column '{name}'", f"rename it to '{label}', or remove it")
    columns = [name for name in layout.columns if name in names]
    if table.root.is_dir():
        return columns
    problems.add(f"{layout.section}.image_root", f"{table.root} is not a folder; correct it")
    return [name for name in columns if name not in layout.images]


def _row_problems(
    table: Table, row: Row, columns: Sequence[str], identifiers: dict[str, str], pictured: Mapping[str, str | None]
) -> Iterator[tuple[str, str]]:
    """Column and message of all that is wrong with a row; a new id is noted in ``identifiers``."""
    if None in row.cells:
        yield "more cells than columns", "put captions that contain commas in double quotes"
    for name in columns:
        value = row.cells.get(name)
        if name in table.layout.images:
            message = pictured[name]
        elif name == "id":
            place = f"{table.path}, {row.place}"
            message = _identifier_problem(value, place, identifiers, table.layout.unique)
        elif name in LABEL_COLUMNS:
            message = _label_problem(value)
        else:
            message = None if name in table.layout.optional and blank(value) else text_problem(value)
        if message:
            yield name, message
    foil = row.cells.get("foil") if "foil" in columns else None
    if isinstance(foil, str) and foil.strip() and foil.strip() == str(row.cells.get("caption")).strip():
        yield "foil", "is the caption; write what the image does not show, or remove the row"


def _label_problem(value: object) -> str | None:
    try:
        truth(value)
    except ValueError as error:
        return str(error)
    return None


def _identifier_problem(value: object, place: str, known: dict[str, str], unique: str) -> str | None:
    identifier = _identifier(value)
    message = text_problem(identifier)
    if message:
        return message
    if identifier in known:
        return f"'{identifier}' is the id of {known[identifier]} too; ids must differ, {unique}"
    known[identifier] = place
    return None


def _identifier(value: Any) -> Any:
    """Whole numbers are ids too; what is no text either stays as it is, and is refused."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() if isinstance(value, str) else value


# Images -----------------------------------------------------------------------------------------


def _image_problem(table: Table, cell: Any, *, verdicts: dict[Path, str | None]) -> str | None:
    """What is wrong with an image; ``verdicts`` remembers files that many rows share."""
    if table.lacks(cell):
        return None
    try:
        path = None if _embedded(cell) else _image_path(table, cell)
        if path is None or path not in verdicts:
            message = _picture_problem(_encoded(table, cell))
            if path is None:
                return message
            verdicts[path] = message
        return verdicts[path]
    except DataError as error:
        return str(error)


def _picture_problem(data: bytes) -> str | None:
    try:
        pictures.read(data)
    except pictures.PictureError as error:
        return str(error)
    return None


def _encoded(table: Table, cell: Any) -> bytes:
    """An image's bytes as they are, from the cell or from the file that it names."""
    data = _embedded(cell)
    if data:
        return data
    path = _image_path(table, cell)
    if not path.exists():
        raise DataError(f"{path} does not exist; correct the path, or set {table.layout.section}.image_root")
    try:
        return picture_files.read_file(path)
    except DataError as error:
        raise DataError(f"{path} {error}") from error


def _embedded(cell: Any) -> bytes | None:
    """Bytes inside a cell, written as `datasets` does or bare."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return data if isinstance(data, bytes) else None


def _image_path(table: Table, cell: Any) -> Path:
    value: Any = cell.get("path") if isinstance(cell, dict) else cell
    if blank(value):
        raise DataError(f"no image; {table.layout.whole}: make the missing one, or remove the row")
    message = text_problem(value)
    if message:
        raise DataError(message)
    if "://" in value:
        raise DataError(f"'{value}' is an address; download the image and give its path")
    root = Path(os.path.normpath(table.root.absolute()))
    path = Path(os.path.normpath(root / value.strip()))
    # By name, since links inside the folder are its owner's choice; or by place, since the folder may have two names.
    if not (path.is_relative_to(root) or path.resolve().is_relative_to(root.resolve())):
        raise DataError(f"'{value}' leads out of {root}; move it there, or set {table.layout.section}.image_root")
    return path


# Tables -----------------------------------------------------------------------------------------


def _batches(table: Table, progress: str) -> Iterator[list[Row]]:
    rows = iter(tqdm(_rows(table), desc=progress, unit=" rows", disable=None))
    while batch := list(islice(rows, BATCH)):
        yield batch


def _column_names(table: Table) -> list[str]:
    """Names of a table's columns, or DataError if it is no table that can be read."""
    path = table.path
    if not path.is_file():
        raise DataError(f"{path}: does not exist; correct {table.layout.section} in the config")
    match path.suffix.lower():
        case ".csv":
            return next(csv.reader(_csv_lines(path)), [])
        case ".parquet":
            with _parquet(path) as file:
                return list(file.schema_arrow.names)
        case suffix:
            raise DataError(f"{path}: unknown table type '{suffix}'; save it as .csv (with commas) or .parquet")


def _rows(table: Table) -> Iterator[Row]:
    return _csv_rows(table.path) if table.path.suffix.lower() == ".csv" else _parquet_rows(table)


def _csv_rows(path: Path) -> Iterator[Row]:
    reader = csv.DictReader(_csv_lines(path), strict=True)
    try:
        for cells in reader:
            yield Row(f"line {reader.line_num}", cells)
    except csv.Error as error:
        line = reader.reader.line_num  # the inner reader's: the outer one has not got there
        raise DataError(f"{path}: line {line}: not CSV ({error}); check its double quotes") from error


def _csv_lines(path: Path) -> StringIO:
    data = path.read_bytes()
    try:
        return StringIO(data.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line}: not UTF-8 text; save the table as 'CSV UTF-8'") from error


def _parquet_rows(table: Table) -> Iterator[Row]:
    path = table.path
    with _parquet(path) as file:
        columns = [name for name in table.layout.columns if name in file.schema_arrow.names]
        number = 0
        try:
            for batch in file.iter_batches(batch_size=BATCH, columns=columns):
                for cells in batch.to_pylist():
                    yield Row(f"row {number}", cells)
                    number += 1
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _unreadable(path, error) from error


def _parquet(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())  # Arrow's reasons may run over lines
    return DataError(f"{path}: cannot be read as Parquet ({reason}); write it again")
