"""Every file format that stages pass to each other, and atomic writing.

Tables are Parquet that ``datasets`` opens (images are ``Image`` features: encoded bytes, never
pickles), tensors are safetensors, records are JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

if TYPE_CHECKING:
    import torch

QUADRUPLE_COLUMNS = (
    "id",
    "split",
    "category",
    "safe_caption",
    "unsafe_caption",
    "safe_image",
    "unsafe_image",
)
IMAGE_COLUMNS = frozenset({"image", "safe_image", "unsafe_image"})


class DataError(Exception):
    """A file's content is not what it must be; the message names the file, the row and the remedy."""


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it into place only if the body succeeds.

    Works for files and for folders.  A reader never sees half a file under the final name.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Inside a folder of its own, so that writers that look at the suffix see the right one.
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch / target.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(scratch / target.name, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def encode_png(image: Image.Image | np.ndarray) -> bytes:
    """Encode a picture (PIL, or uint8 array of shape (height, width, 3)) as PNG."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def decode_image(data: Mapping[str, Any]) -> Image.Image:
    """Decode one cell of an image column, ``{"bytes": ..., "path": ...}``, to RGB."""
    with Image.open(BytesIO(data["bytes"])) as image:
        return image.convert("RGB")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to Parquet; values of image columns are encoded bytes (or None if withheld)."""
    if not rows:
        raise DataError(f"{path}: refusing to write a table without rows")
    columns: dict[str, pa.Array] = {}
    features: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in IMAGE_COLUMNS:
            cells = [None if value is None else {"bytes": value, "path": None} for value in values]
            columns[name] = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
            features[name] = {"_type": "Image"}
        else:
            columns[name] = pa.array(values)
            features[name] = {"_type": "Value", "dtype": _dtype_name(columns[name].type)}
    # The key that `datasets` looks for, so that load_dataset("parquet") yields pictures.
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table(columns).replace_schema_metadata(metadata)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


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


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read safetensors, or raise DataError naming the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as safetensors: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON, readable and with stable order; non-finite numbers are refused."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON, or raise DataError naming the file."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV with the first row's keys as header."""
    import pandas as pd

    with atomic_path(path) as temporary:
        pd.DataFrame(list(rows)).to_csv(temporary, index=False)


def _dtype_name(kind: pa.DataType) -> str:
    return {"double": "float64", "halffloat": "float16", "float": "float32"}.get(str(kind), str(kind))
