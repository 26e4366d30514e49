"""Read local files through `datasets` bit by bit, without a copy of them in its cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from saferclip.io import DataError


@contextmanager
def stream(kind: str, files: Sequence[Path], **options: Any) -> Iterator[Any]:
    """The rows of files of one kind ('parquet', 'webdataset'), as an iterable dataset of `datasets`.

    Raises DataError naming the first file if they cannot be read.
    """
    import datasets

    # Names with brackets would be taken for patterns.
    names = [escape(str(path.resolve())) for path in files]
    with TemporaryDirectory() as cache:
        try:
            rows = datasets.load_dataset(
                kind, data_files={"set": names}, split="set", streaming=True, cache_dir=cache, **options
            )
        # Its readers answer damaged files with many kinds of exception.
        except Exception as error:
            raise DataError(f"{files[0]}: cannot be read as {kind} ({error}); fetch it again") from error
        yield rows
