"""What comes from elsewhere: a table of it, and where it lies once it is here.

Everything remote is one row of a table (``config/versions.csv``) and has a name there. Only the step `download`
(`saferclip.downloads.fetch`) uses the network; every other step is told the place on disk, and so works offline.
Importing this is cheap, and makes no step depend on how files are fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saferclip.downloads.table import Row, check_names, leads_out, read_table, row_json
from saferclip.io import DataError

__all__ = ["DownloadError", "Row", "check_names", "leads_out", "only_file", "read_table", "row_json"]


class DownloadError(DataError):
    """Something cannot be fetched, or is not where it should be; the message says what to do."""


def only_file(path: Path, suffixes: Sequence[str]) -> Path:
    """The file that a download consists of: ``path`` itself, or the one file with such a suffix in that folder.

    Folders are searched at any depth; hidden files do not count. Raises DownloadError if there is no such file, or
    if there are several.
    """
    wanted = " or ".join(suffixes)
    if path.is_file():
        if path.name.lower().endswith(tuple(suffixes)):
            return path
        raise DownloadError(f"{path}: is no {wanted} file; correct downloads.local")
    if not path.is_dir():
        raise DownloadError(f"{path}: does not exist; fetch it with `saferclip download`, or set downloads.local")
    found = [file for file in visible_files(path) if file.name.lower().endswith(tuple(suffixes))]
    if len(found) == 1:
        return found[0]
    names = ", ".join(str(file.relative_to(path)) for file in found[:5])
    several = f"has {len(found)} {wanted} files ({names}{', ...' * (len(found) > 5)}); name one in downloads.local"
    raise DownloadError(f"{path}: {several if found else f'has no {wanted} file; correct downloads.local'}")


def visible_files(folder: Path) -> list[Path]:
    """All files of a folder at any depth, sorted, but for hidden ones and what lies in hidden folders."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))
