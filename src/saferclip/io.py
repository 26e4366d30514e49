"""Every file format that stages pass to each other, each written whole or not at all.

Tables are Parquet that ``datasets`` opens (images are ``Image`` features: encoded bytes, never
pickles), tensors are safetensors, records are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saferclip import atomic

if TYPE_CHECKING:
    import torch

atomic_path = atomic.atomic_path

QUADRUPLE_COLUMNS = (
    "id",
    "split",
    "category",
    "safe_caption",
    "unsafe_caption",
    "safe_image",
    "unsafe_image",
)
# Optional: whether what stands in an unsafe place is unsafe; without them, everything is as named.
LABEL_COLUMNS = ("caption_is_unsafe", "image_is_unsafe")
IMAGE_COLUMNS = frozenset({"image", "safe_image", "unsafe_image"})
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as `datasets` stores one
# Left out on purpose: vector graphics and documents, for which Pillow starts other programs.
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


class DataError(Exception):
    """A file's content is not what it must be; the message names the file, the row and the remedy."""


class ImageError(DataError):
    """Bytes are no usable picture; whoever knows file and row puts them before the message."""


class Metric(BaseModel):
    """One number of an evaluation; the interval is left out where resampling queries has no meaning."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    value: float
    low: float | None = Field(default=None, description="95% bootstrap interval over queries")
    high: float | None = None
    count: int = Field(ge=1, description="queries, pairs or images that the value is about")


class EvaluationRecord(BaseModel):
    """What one benchmark says about one model: the content of ``evaluation/.../<benchmark>.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    seed: int
    benchmark: str
    counts: dict[str, int] = Field(description="queries, gallery items, rows left out")
    metrics: dict[str, Metric] = Field(description="shares in percent, cosines and distances raw")
    provenance: dict[str, Any]
    left_out: dict[str, str] = Field(default={}, description="metrics that this model cannot have, and why")


def encode_png(image: Image.Image | np.ndarray) -> bytes:
    """Encode a picture (PIL, or uint8 array of shape (height, width, 3)) as PNG."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encode a picture, uint8 array of shape (height, width, 3), as JPEG, as photographs are."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=85, optimize=True)
    return buffer.getvalue()


def open_image(data: bytes) -> Image.Image:
    """Read the header of a picture of a usual format, before anything is decoded: the only way to open one here.

    Raises ImageError for other formats, and for more pixels than Pillow's ``MAX_IMAGE_PIXELS``: a few kilobytes may
    ask for gigabytes of memory.
    """
    try:
        image = Image.open(BytesIO(data), formats=PICTURE_FORMATS)
    except UnidentifiedImageError as error:
        advice = "convert other formats, such as HEIC or SVG, to PNG; replace it if it is damaged"
        raise ImageError(f"not a JPEG, PNG, WebP, BMP, GIF or TIFF picture; {advice}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large ({error}); make it smaller") from error
    # Pillow's readers answer damaged files with many kinds of exception.
    except Exception as error:
        raise ImageError(f"damaged picture ({error}); copy it again or replace it") from error
    width, height = image.size
    # From here up to twice as many, Pillow only warns.
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise ImageError(f"too large ({width} x {height}, at most {Image.MAX_IMAGE_PIXELS} pixels); make it smaller")
    return image


def decode_image(data: Mapping[str, Any]) -> Image.Image:
    """Decode one cell of an image column, ``{"bytes": ..., "path": ...}``, to RGB; raises ImageError."""
    if not data["bytes"]:
        raise ImageError("the image has no bytes; make the table again")
    with open_image(data["bytes"]) as image:
        try:
            return image.convert("RGB")
        except Exception as error:
            raise ImageError(f"damaged picture ({error}); copy it again or replace it") from error


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], example: Mapping[str, Any] | None = None) -> None:
    """Write rows to Parquet; values of image columns are encoded bytes (or None if withheld).

    Rows are taken a group at a time, so that a table may be larger than memory.
    Raises DataError for rows that do not go together, and for no rows, unless an example says what columns they have.
    """
    iterator = iter(rows)
    first = next(iterator, None)
    if first is None and example is None:
        raise DataError(f"{path}: refusing to write a table without rows")
    if first is None:
        _write_empty(path, example or {})
        return
    # Small groups where there are images: 100 rows of photographs are some tens of megabytes.
    size = 100 if IMAGE_COLUMNS & first.keys() else 100_000
    remaining = chain([first], iterator)
    group = list(islice(remaining, size))
    schema = _schema(_columns(path, group))
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while group:
            writer.write_table(pa.table(_columns(path, group, schema), schema))
            group = list(islice(remaining, size))


def _write_empty(path: Path, example: Mapping[str, Any]) -> None:
    schema = _schema(_columns(path, [example]))
    with atomic_path(path) as temporary:
        pq.write_table(schema.empty_table(), temporary)


def _columns(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema | None = None) -> dict[str, pa.Array]:
    """Rows by column, of the schema's types or, for a table's first rows, of types that suit them."""
    names = schema.names if schema else list(rows[0])
    for row in rows:
        if row.keys() != set(names):
            raise DataError(f"{path}: row with columns {', '.join(row)}; the first one has {', '.join(names)}")
    columns: dict[str, pa.Array] = {}
    for name in names:
        values: list[Any] = [row[name] for row in rows]
        kind = schema.field(name).type if schema else None
        if name in IMAGE_COLUMNS:
            values = [None if value is None else {"bytes": value, "path": None} for value in values]
            kind = IMAGE
        try:
            columns[name] = pa.array(values, kind)
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise DataError(f"{path}: column {name}: values do not go together: {error}") from error
    return columns


def _schema(columns: Mapping[str, pa.Array]) -> pa.Schema:
    features = {name: _feature(name, column.type) for name, column in columns.items()}
    # The key that `datasets` looks for, so that load_dataset("parquet") yields pictures.
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([(name, column.type) for name, column in columns.items()], metadata)


def _feature(name: str, kind: pa.DataType) -> dict[str, str]:
    """How `datasets` calls a column's type."""
    if name in IMAGE_COLUMNS:
        return {"_type": "Image"}
    renamed = {"double": "float64", "halffloat": "float16", "float": "float32"}
    return {"_type": "Value", "dtype": renamed.get(str(kind), str(kind))}


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet table, or raise DataError naming the file and the missing columns."""
    try:
        known = pq.read_schema(path).names
        missing = [name for name in columns or () if name not in known]
        if missing:
            raise DataError(f"{path}: missing column(s) {', '.join(missing)}; it has {', '.join(known)}")
        return pq.read_table(path, columns=list(columns) if columns else None)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error


def column_names(path: Path) -> list[str]:
    """Columns of a Parquet table, or DataError naming the file."""
    with _parquet(path) as file:
        return list(file.schema_arrow.names)


def present(path: Path, column: str) -> list[bool]:
    """Which rows of an image column hold an image; the images themselves are not read.

    Raises DataError naming the file if it has no such column.
    """
    with _parquet(path) as file:
        if column not in file.schema_arrow.names:
            raise DataError(f"{path}: missing column(s) {column}; it has {', '.join(file.schema_arrow.names)}")
        return file.read(columns=[f"{column}.path"])[column].is_valid().to_pylist()


def labels(path: Path, column: str) -> list[bool] | None:
    """One of the ``LABEL_COLUMNS`` of quadruples; an empty cell means unsafe as named.  None if the table lacks it.

    Raises DataError naming the file if its values are not of type bool.
    """
    if column not in column_names(path):
        return None
    values = read_table(path, (column,))[column]
    if values.type != pa.bool_():
        raise DataError(f"{path}: column {column} is of type {values.type}, not bool; make the table again")
    return [value is not False for value in values.to_pylist()]


def read_cells(path: Path, column: str, rows: Iterable[int]) -> Iterator[Any]:
    """Yield a column's values in these rows, in their order; one group of rows at a time is in memory."""
    with _parquet(path) as file:
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = np.cumsum(counts)
        held, values = -1, []
        for row in rows:
            group = int(np.searchsorted(ends, row, side="right"))
            if group != held:
                held, values = group, file.read_row_group(group, columns=[column])[column].to_pylist()
            yield values[row - int(ends[group]) + counts[group]]


def _parquet(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        # safetensors makes its files readable by their owner alone; opened first, they follow the umask.
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        temporary.chmod(mode)


def read_tensors(path: Path, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
    """Read safetensors, or only those of these names; raises DataError naming the file, and a name that it lacks."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        if names is None:
            return load_file(path)
        with safe_open(path, framework="pt") as file:
            there = set(file.keys())
            if missing := [name for name in names if name not in there]:
                raise DataError(f"{path}: tensor {missing[0]!r} is missing; make the file again")
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as safetensors: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """What was written beside the tensors of a safetensors file; raises DataError naming the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as safetensors: {error}") from error


def read_rows(path: Path, name: str, size: int) -> Iterator[torch.Tensor]:
    """The rows of one tensor, ``size`` at a time; raises as ``read_tensors``.

    The file is opened for each part anew: what is mapped of it counts as memory until it is closed.
    """
    from safetensors import SafetensorError, safe_open

    start, count = 0, 1
    while start < count:
        try:
            with safe_open(path, framework="pt") as file:
                if name not in set(file.keys()):
                    raise DataError(f"{path}: tensor {name!r} is missing; make the file again")
                rows = file.get_slice(name)
                count = rows.get_shape()[0]
                part = rows[start : start + size]
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: cannot be read as safetensors: {error}") from error
        yield part
        start += size


def write_json(path: Path, value: Any) -> None:
    """Write JSON, readable and with stable order; non-finite numbers are refused."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON, or raise DataError naming the file."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error


def parse_json(text: str | bytes) -> Any:
    """The value that JSON stands for; raises ValueError, also for lists within lists without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("too many lists or objects within each other") from None


def write_evaluation(path: Path, record: EvaluationRecord) -> None:
    """Write one evaluation's record as JSON."""
    write_json(path, record.model_dump(exclude_none=True))


def read_evaluation(path: Path) -> EvaluationRecord:
    """Read one evaluation's record, or raise DataError naming the file and what is wrong in it."""
    try:
        return EvaluationRecord.model_validate(read_json(path))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise DataError(f"{path}: not an evaluation record: {'; '.join(problems)}") from error


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV; the header holds the keys of all rows, in order of appearance."""
    import pandas as pd

    with atomic_path(path) as temporary:
        pd.DataFrame(list(rows)).to_csv(temporary, index=False)
