"""The versions table: one row for everything that is fetched, with the version that is meant."""

from __future__ import annotations

import csv
import difflib
import json
import re
import unicodedata
from collections.abc import Collection, Iterator
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from saferclip.io import DataError, atomic_path

HUB_KINDS = {"hf-model": "model", "hf-dataset": "dataset"}  # kind to what huggingface_hub calls a repository's type


def _patterns(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(";") if part.strip()) if isinstance(value, str) else value


def leads_out(name: str) -> bool:
    """Whether a file's name, as an archive, a manifest or a hub has it, is no plain path below a folder."""
    control = any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
    return not name or control or "\\" in name or ":" in name or name.startswith("/") or ".." in name.split("/")


class Row(BaseModel):
    """One thing that can be fetched. Cells that a kind has no use for must be empty."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="as configurations call it")
    kind: Literal["hf-model", "hf-dataset", "url", "folder"] = Field(
        description="a repository of the Hugging Face Hub, one file on the web, or what only the user can supply"
    )
    source: str = Field(description="hub: organisation/name; url: the address; folder: what it is, in words")
    revision: str = Field(
        default="", pattern=r"^([0-9a-f]{40})?$", description="hub: commit; empty: main, whatever it is"
    )
    sha256: str = Field(
        default="", pattern=r"^([0-9a-f]{64})?$", description="url: hash of the file; empty: not checked"
    )
    bytes: Annotated[Annotated[int, Field(gt=0)] | None, BeforeValidator(lambda value: value or None)] = Field(
        default=None, description="expected size; a file of a url must have exactly that"
    )
    files: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = Field(
        default=(), description="hub: glob patterns with ';' between them; empty: all files"
    )
    licence: str = Field(min_length=1, description="under which the source offers it")
    terms: str = Field(default="", description="where to read the terms, or to ask for access")
    note: str = Field(default="", description="for people")

    @model_validator(mode="after")
    def _right_for_its_kind(self) -> Row:
        problems = list(self._contradictions())
        if problems:
            raise ValueError("; also, ".join(problems))
        return self

    def _contradictions(self) -> Iterator[str]:
        used = {"url": {"sha256"}, "folder": set()}.get(self.kind, {"revision", "files"})
        for column in ("revision", "sha256", "files"):
            if getattr(self, column) and column not in used:
                yield f"column '{column}': means nothing for kind '{self.kind}'; leave it empty"
        if self.kind in HUB_KINDS and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.source):
            yield f"column 'source': '{self.source}' is no repository of the hub; write organisation/name"
        if self.kind == "url" and not (urlsplit(self.source).scheme in ("http", "https") and self.file_name):
            yield f"column 'source': '{self.source}' is no address of a file; write http://... or https://..."
        if self.kind == "url" and self.file_name and (self.file_name.startswith(".") or leads_out(self.file_name)):
            yield f"column 'source': {self.file_name!r} is no name for a file; take another address, or kind 'folder'"
        if self.kind == "folder" and not (self.source and self.terms):
            yield "columns 'source' and 'terms': say what the folder holds, and where to ask for it"

    @property
    def file_name(self) -> str:
        """What the file of a url is called on disk."""
        return PurePosixPath(unquote(urlsplit(self.source).path)).name


COLUMNS = tuple(Row.model_fields)
FETCHED = {"name", "kind", "source", "revision", "sha256", "bytes", "files"}  # what decides which bytes arrive


class _Record(NamedTuple):
    """A row as it stands in the file: its cells, its last line's number, and its text with the line break."""

    cells: list[str]
    line: int
    text: str


def read_table(path: Path) -> dict[str, Row]:
    """Read a versions table: name to row, in the table's order.

    Raises DataError listing every problem with file, line and column.
    """
    header, *records = _records(path)
    problems = [f"{path}: {problem}" for problem in _header_problems(header.cells)]
    rows: dict[str, Row] = {}
    for record in records if not problems else []:
        row, found = _row(record.cells, header.cells)
        if row and row.name in rows:
            found = [f"column 'name': '{row.name}' is the name of another row too; names must differ"]
        problems += [f"{path}: line {record.line}: {problem}" for problem in found]
        if row and not found:
            rows[row.name] = row
    if problems:
        raise DataError("\n  ".join([f"{len(problems)} problem(s) in the versions table", *problems]))
    return rows


def row(**cells: Any) -> Row:
    """A row that stands in no table; raises DataError saying what is wrong with its cells."""
    try:
        return Row(**cells)
    except ValidationError as error:
        raise DataError(f"{cells.get('source')}: {'; '.join(map(_explain, error.errors()))}") from error


def find(path: Path, name: str) -> Row:
    """The row of that name; raises DataError naming the nearest one if there is none."""
    rows = read_table(path)
    if name in rows:
        return rows[name]
    raise DataError(f"{path}: there is no row '{name}'; {_meant(name, rows)}")


def check_names(path: Path, named: Collection[str], local: Collection[str]) -> None:
    """Raise DataError for names in settings that mean nothing: ``named`` by a step, or ``local`` to the user's disk."""
    rows = read_table(path)
    problems = [
        f"{path}: there is no row '{name}'; {_meant(name, rows)}" for name in named if name not in {*rows, *local}
    ]
    problems += [
        f"downloads.local.{name}: neither a row of {path} nor named elsewhere; {_meant(name, rows)}"
        for name in local
        if name not in {*rows, *named}
    ]
    if problems:
        raise DataError("\n  ".join([f"{len(problems)} name(s) of downloads are not known", *problems]))


def _meant(name: str, rows: Collection[str]) -> str:
    near = difflib.get_close_matches(name, rows, n=1)
    return f"did you mean '{near[0]}'?" if near else f"the table has {', '.join(rows) or 'no rows'}"


def row_json(path: Path, name: str) -> str:
    """What decides the bytes that a name stands for, as JSON; raises as ``find``."""
    return json.dumps(find(path, name).model_dump(mode="json", include=FETCHED), sort_keys=True)


def replace_cells(path: Path, changes: dict[str, dict[str, str]]) -> None:
    """Change cells of some rows, given as name to column to text, and leave every other byte as it is."""
    header, *records = _records(path)
    name = header.cells.index("name")
    texts = [header.text]
    for record in records:
        if record.cells and record.cells[name].strip() in changes:
            change = changes[record.cells[name].strip()]
            cells = dict(zip(header.cells, record.cells, strict=True)) | change
            texts.append(_line(list(cells.values()), record.text))
        else:
            texts.append(record.text)
    with atomic_path(path) as temporary:
        temporary.write_bytes("".join(texts).encode("utf-8"))


def _line(cells: list[str], old: str) -> str:
    """Cells as CSV, ending as the line that they replace did."""
    ending = old[len(old.rstrip("\r\n")) :]
    buffer = StringIO()
    csv.writer(buffer, lineterminator=ending).writerow(cells)
    return buffer.getvalue()


def _records(path: Path) -> list[_Record]:
    """All rows of a CSV file, the header first; blank lines are rows without cells."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; correct downloads.table") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; save the table as 'CSV UTF-8'") from error
    lines = list(StringIO(text, newline=""))  # with their ends
    reader = csv.reader(iter(lines), strict=True)
    records: list[_Record] = []
    start = 0
    try:
        for cells in reader:
            records.append(_Record(cells, reader.line_num, "".join(lines[start : reader.line_num])))
            start = reader.line_num
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not CSV ({error}); check its double quotes") from error
    if not records:
        raise DataError(f"{path}: is empty; the first line must be {','.join(COLUMNS)}")
    return [records[0]._replace(cells=[cell.removeprefix("\ufeff") for cell in records[0].cells]), *records[1:]]


def _header_problems(names: list[str]) -> Iterator[str]:
    for name in names:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            yield f"column '{name}': unknown; " + (f"did you mean '{near[0]}'?" if near else "remove it")
        elif names.count(name) > 1:
            yield f"column '{name}': there are several; remove the others"
    yield from (f"column '{name}': missing; add it" for name in COLUMNS if name not in names)


def _row(cells: list[str], header: list[str]) -> tuple[Row | None, list[str]]:
    """A row, or what is wrong with it; neither for a blank line."""
    if not cells:
        return None, []
    if len(cells) != len(header):
        advice = "put cells that contain commas in double quotes"
        return None, [f"has {len(cells)} cells where the header has {len(header)}; {advice}"]
    try:
        return Row.model_validate({name: cell.strip() for name, cell in zip(header, cells, strict=True)}), []
    except ValidationError as error:
        return None, [_explain(problem) for problem in error.errors()]


def _explain(problem: Any) -> str:
    """Which column is wrong, and what to write instead."""
    if not problem["loc"]:
        return str(problem["msg"].removeprefix("Value error, "))
    column, found = problem["loc"][0], problem["input"]
    advice = {
        "revision": "write the full commit hash, 40 characters, or leave it empty",
        "sha256": "write the file's SHA-256, 64 characters in small letters, or leave it empty",
        "bytes": "write the size as a whole number, or leave it empty",
        "name": "use small letters, digits, '.', '_' and '-', beginning with a letter or digit",
        "kind": "write hf-model, hf-dataset, url or folder",
        "licence": "empty; write the licence, or 'unknown'",
    }
    return f"column '{column}': {advice.get(str(column), problem['msg'])}" + (f" (found: '{found}')" if found else "")
