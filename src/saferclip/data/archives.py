"""Zips from strangers, read member by member: nothing in them is unpacked to the disk."""

from __future__ import annotations

import stat
import zlib
from pathlib import Path
from threading import Lock
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from saferclip.downloads import leads_out
from saferclip.io import DataError

# Python unpacks other kinds, such as bzip2, in pieces of any size.
PACKED = {ZIP_STORED: "stored", ZIP_DEFLATED: "deflated"}


class Archive:
    """The files in a zip, in its order; members may be read from any thread."""

    def __init__(self, path: Path) -> None:
        """Read the list of members.

        Raises DataError for a file that is no zip, and naming the member for a name that leads out or is there twice,
        and for links and devices.
        """
        self.path = path
        self._lock = Lock()
        try:
            self._zip = ZipFile(path)
        # A damaged list of members is answered with many kinds of exception.
        except Exception as error:
            raise DataError(f"{path}: cannot be read as an archive ({error}); download it again") from error
        self.members = {}
        for member in self._zip.infolist():
            self._check(member)
            if not member.is_dir():
                self.members[member.filename] = member

    def read(self, name: str, largest: int) -> bytes:
        """A member's content.  Raises DataError, without the archive's name, if it is damaged or above ``largest``."""
        member = self.members[name]
        if member.file_size > largest:
            raise DataError(f"larger than {largest:,} bytes ({member.file_size:,}); make it smaller")
        if member.compress_type not in PACKED:
            raise DataError(f"is packed in an unusual way; pack it again, {' or '.join(PACKED.values())}")
        try:
            with self._lock, self._zip.open(member) as file:
                data = file.read(member.file_size + 1)  # what it unpacks to need not be what the list says
        # A damaged or encrypted member.
        except (OSError, BadZipFile, zlib.error, RuntimeError, EOFError, ValueError) as error:
            raise DataError(f"cannot be unpacked ({error}); download the archive again") from error
        if len(data) != member.file_size:
            raise DataError(f"unpacks to other than the {member.file_size:,} bytes that it says; get another archive")
        return data

    def _check(self, member: ZipInfo) -> None:
        name, kind = member.orig_filename, stat.S_IFMT(member.external_attr >> 16)
        if leads_out(name):
            raise DataError(f"{self.path}: holds {name!r}, which leads out of it; get another archive")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{self.path}: holds {name!r}, a link or device; get another archive")
        if member.filename in self.members:
            raise DataError(f"{self.path}: holds {name!r} twice; get another archive")
