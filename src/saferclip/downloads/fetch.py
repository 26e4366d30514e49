"""The step `download`, the only one that uses the network: fetch what one row of the versions table means."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from saferclip.downloads import DownloadError, hub, manifest, table, web
from saferclip.downloads.manifest import File, Manifest
from saferclip.downloads.table import HUB_KINDS, Row

LOG = logging.getLogger(__name__)


def fetch(name: str, table_path: Path, folder: Path, connections: int, retries: int) -> None:
    """Fetch what ``name`` stands for into ``folder/name``, and declare it complete by ``folder/name.json``.

    Something that is complete already is left alone; something interrupted goes on. Raises DataError for a wrong
    table and DownloadError, each saying what to do.
    """
    row = table.find(table_path, name)
    _warn_unless_pinned(row, table_path)
    fetch_row(row, folder, connections, retries)


def fetch_row(row: Row, folder: Path, connections: int, retries: int) -> None:
    """Fetch what a row means, whatever table it stands in, if any; otherwise as ``fetch``."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # public, but not listed

    if row.kind == "folder":
        raise DownloadError(
            f"{row.name}: only you can supply it: {row.source}. Ask for it at {row.terms}, "
            f"and set downloads.local.{row.name} in the configuration to its place on disk"
        )
    place = folder / row.name
    place.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder / f".{row.name}.lock"):  # runs share the folder
        _fetch(row, place, connections, retries)


def _fetch(row: Row, place: Path, connections: int, retries: int) -> None:
    old = manifest.read(place)
    if old and old.fits(row) and not old.missing(place):
        LOG.info("%s: is complete in %s (revision %s)", row.name, place, old.revision or "none")
        old.write(place)
        return
    new = hub.fetch(row, place, connections, retries) if row.kind in HUB_KINDS else _fetch_url(row, place, retries)
    for stale in set(old.files if old else ()) - set(new.files):
        (place / stale).unlink(missing_ok=True)  # of another revision
    new.write(place)
    total = sum(file.bytes for file in new.files.values())
    LOG.info("%s: %d files, %s, in %s", row.name, len(new.files), manifest.human(total), place)


def _fetch_url(row: Row, place: Path, retries: int) -> Manifest:
    path = place / row.file_name
    web.fetch_url(web.Target(row.source, path, row.sha256, row.bytes), retries)
    return Manifest.of(row, "", {path.name: File(bytes=path.stat().st_size, sha256=manifest.sha256(path))})


def _warn_unless_pinned(row: Row, table_path: Path) -> None:
    cell = "revision" if row.kind in HUB_KINDS else "sha256"
    if row.kind != "folder" and not getattr(row, cell):
        LOG.warning(
            "%s: %s names no %s for '%s', so its content may change; `saferclip pin %s` fills it in",
            *(row.source, table_path, cell, row.name, row.name),
        )


def pin(names: Iterable[str], table_path: Path, folder: Path | None) -> None:
    """Fill in what makes rows unchangeable, and leave the rest of the table as it is, byte for byte.

    Rows of the hub get the commit that main is at today; rows of a url get size and hash of the file that was
    fetched into ``folder``. Raises DataError for a wrong table, DownloadError where there is nothing to pin to.
    """
    changes = {name: _pinned(table.find(table_path, name), folder) for name in names}
    table.replace_cells(table_path, {name: change for name, change in changes.items() if change})


def _pinned(row: Row, folder: Path | None) -> dict[str, str]:
    """The cells of a row that change."""
    if row.kind == "folder":
        raise DownloadError(f"{row.name}: is supplied by you; there is nothing to pin")
    if row.revision or row.sha256:
        LOG.info("%s: is pinned already; empty its cell to pin it anew", row.name)
        return {}
    if row.kind in HUB_KINDS:
        commit = hub.resolve(row)
        LOG.info("%s: %s is at %s today", row.name, row.source, commit)
        return {"revision": commit}
    if folder is None:
        raise DownloadError(f"{row.name}: is pinned to the file that was fetched; say where that is: --folder")
    fetched = manifest.read(folder / row.name)
    if fetched is None or not fetched.fits(row):
        raise DownloadError(f"{row.name}: was not fetched into {folder} yet; run `saferclip download {row.name}` first")
    (file,) = fetched.files.values()
    return {"sha256": file.sha256, "bytes": str(file.bytes)}
