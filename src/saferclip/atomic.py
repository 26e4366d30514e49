"""Writing that is whole or not there: a kill, a full disk or an error leaves the old content or the new one."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

# What a user does about an error of writing; in all these cases the old content is as it was.
REMEDIES = {
    errno.ENOSPC: "make room and start again",
    errno.EDQUOT: "make room within your quota and start again",
    errno.EFBIG: "files may not become so large here: see `ulimit -f`",
    errno.EROFS: "the disk is mounted read-only: mount it for writing, or write elsewhere",
    errno.EACCES: "make the folder writable for this user, or write elsewhere",
    errno.EPERM: "make the folder writable for this user, or write elsewhere",
    errno.EIO: "the disk may be damaged: see the system's log",
}
FULL = 1 << 20  # bytes left on a disk, below which a writer that does not say why it failed had no room


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path for ``target``; rename it into place only if the body succeeds.

    Works for files and for folders, and is on the disk, not only in memory, before it is visible.
    A reader never sees half a file under the final name; what was there stays if the body fails.
    A folder cannot be renamed over another: for a moment between two renames there is nothing under its name.
    A killed writer leaves ``.<name>.partial`` beside the target, which the target's next writer removes.

    Raises OSError naming ``target`` and what to do if it cannot be written.
    """
    with ExitStack() as stack:
        try:
            scratch = stack.enter_context(_scratch(target))
        except OSError as error:
            if error.errno not in REMEDIES:
                raise
            raise _named(error.errno, target) from error
        fresh = scratch / target.name
        try:
            yield fresh
            _sync(fresh)
            _replace(fresh, target)
            _sync_folder(target.parent)
        except Exception as error:
            number = _reason(error, scratch)
            if number is None:
                raise
            raise _named(number, target) from error


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder for one writer of ``target``, on the same disk; those of killed writers are removed first.

    Below a folder named after the target, so that finding them does not mean listing all that is beside it.
    """
    shared = target.with_name(f".{target.name}.partial")
    with suppress(FileNotFoundError, NotADirectoryError):  # usually there are none
        for abandoned in list(shared.iterdir()):
            _remove_if_abandoned(abandoned)
    own, lock = _claim(shared)
    try:
        # Inside a folder of its own, so that writers that look at the suffix see the right one.
        (own / "new").mkdir()
        yield own / "new"
    finally:
        shutil.rmtree(own, ignore_errors=True)
        os.close(lock)
        with suppress(OSError):
            shared.rmdir()  # unless another writer is at work


def _claim(shared: Path) -> tuple[Path, int]:
    """Make a folder below ``shared``, and hold its lock, which ends with this process however that ends."""
    while True:
        try:
            shared.mkdir(parents=True, exist_ok=True)
            own = Path(tempfile.mkdtemp(dir=shared))
            lock = _open_lock(own)
        except (FileNotFoundError, FileExistsError):
            if shared.exists() and not shared.is_dir():
                raise
            continue  # another writer tidied up in between
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), (own / "lock").stat()):
                return own, lock
        except (BlockingIOError, FileNotFoundError):
            pass  # another writer took this folder for abandoned, before it was locked
        except OSError:
            return own, lock  # this file system has no locks, so nobody will take it for abandoned
        os.close(lock)


def _remove_if_abandoned(folder: Path) -> None:
    """Remove a writer's folder if its lock is free; where locks or permission are missing, leave it."""
    try:
        lock = _open_lock(folder)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        pass  # its writer is alive
    finally:
        os.close(lock)


def _open_lock(folder: Path) -> int:
    """Open a folder's lock; makes it if it is missing, as its writer may have been killed just before or after."""
    return os.open(folder / "lock", os.O_RDWR | os.O_CREAT)


def _replace(fresh: Path, target: Path) -> None:
    """Rename over ``target``; a folder with something in it cannot be renamed over, so it steps aside.

    Raises OSError, with what was there in its place, also where a file would replace a folder or the reverse.
    """
    while True:
        try:
            fresh.replace(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        old = Path(tempfile.mkdtemp(dir=fresh.parent)) / "old"
        try:
            target.replace(old)
        except FileNotFoundError:
            continue  # another writer of this target has just moved it aside
        try:
            fresh.replace(target)
            return
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                continue  # another writer came first; the later one wins
            old.replace(target)
            raise


def _reason(error: Exception, scratch: Path) -> int | None:
    """The number of the system's error by which writing failed; None where the error is about something else."""
    if isinstance(error, OSError):
        names = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        own = not names or any(name.is_relative_to(scratch) for name in names)
        return error.errno if own and error.errno in REMEDIES else None
    # Writers in other languages: safetensors says it in words, torch speaks of positions in a file.
    said = [number for number in REMEDIES if os.strerror(number) in str(error)]
    silent = isinstance(error, RuntimeError) and _space(scratch) < FULL
    return next(iter(said), errno.ENOSPC if silent else None)


def _named(number: int, target: Path) -> OSError:
    """The system's error, as one about ``target``."""
    return OSError(number, f"{os.strerror(number)}; what was there before is kept; {REMEDIES[number]}", str(target))


def _space(folder: Path) -> int:
    """Bytes that this user may still write on the disk of a folder."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _sync(path: Path) -> None:
    """Wait until a file, or all files of a folder, are on the disk."""
    if path.is_dir():
        for child in path.iterdir():
            _sync(child)
        _sync_folder(path)
    else:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
