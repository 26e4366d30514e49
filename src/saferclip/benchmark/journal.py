"""A file of JSON lines that grows by one whole line at a time: what was done already, for the next start."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saferclip.io import DataError, parse_json


class Journal:
    """Entries of earlier runs by their ``key``, and those of this one; several threads may write."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.entries = _read(file)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Take note of an entry; it is on the disk when this returns."""
        with self._lock:
            self.entries[entry["key"]] = dict(entry)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Entries by key; what a kill left unfinished at the end is cut off. Raises DataError for a line that is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    data = file.read_bytes() if file.is_file() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(file, len(whole))
    entries = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            entry = parse_json(line)
            entries[entry["key"]] = entry
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}, line {number}: cannot be read; delete the line to have it done again") from error
    return entries
