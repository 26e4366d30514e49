"""DVC's objects, hashed anew: each is named by its MD5, and DVC believes the name of any that is read-only."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from saferclip import io

LISTED = 20  # problems that a message names
LIST = ".dir"  # ends the name of an object that lists the files of a folder
OBJECT = re.compile(r"[0-9a-f]{32}(\.dir)?")  # what an interrupted transfer leaves has other names


@dataclass
class Expected:
    """What ``dvc.lock`` says that a store holds."""

    files: dict[str, list[str]] = field(default_factory=dict)  # object -> paths that have its bytes
    lists: dict[str, list[str]] = field(default_factory=dict)  # object -> lists that name it
    absent: list[str] = field(default_factory=list)  # outputs whose own object is not in the store

    def add(self, name: str, path: str) -> None:
        self.files.setdefault(name, []).append(path)


def verify(store: Path, lock: Path, cache: bool) -> str:
    """Hash every object of a store, a folder such as ``.dvc/cache`` or ``artifacts``, and say what is there.

    Of an output of ``lock``, nothing or everything must be there; in a cache everything, if the output is in its place.
    Raises DataError naming every object that is damaged or missing, with the paths that it is and what to delete.
    """
    files = sorted((store / "files/md5").glob("??/*"))
    objects = {_name(file): file for file in files if OBJECT.fullmatch(_name(file))}
    if not objects:
        raise io.DataError(f"{store}: no objects of DVC (files/md5/) are here; the cache is .dvc/cache: dvc fetch")
    damaged = {name for name, file in objects.items() if _md5(file) != name.removesuffix(LIST)}
    expected = _expected(lock, {name: file for name, file in objects.items() if name not in damaged})
    absent = [name for name in expected.absent if not (cache and _in_place(expected, name, lock))]
    missing = expected.files.keys() - objects.keys() - set(absent)
    problems = [f"damaged: {objects[name]}: {_paths(expected, name)}" for name in sorted(damaged)]
    problems += [f"missing: {_file(store, name)}: {_paths(expected, name)}" for name in sorted(missing)]
    if problems:
        lists = {objects[name] for wrong in damaged | missing for name in expected.lists.get(wrong, [])}
        raise io.DataError(_message(store, problems, sorted({objects[name] for name in damaged} | lists)))
    size = sum(file.stat().st_size for file in objects.values())
    elsewhere = "".join(f"\nnot here: {_paths(expected, name)} ({_file(store, name)})" for name in absent)
    return f"{store}: {len(objects)} objects, {size / 1e6:.1f} MB, all as their names say{elsewhere}"


def _expected(lock: Path, whole: Mapping[str, Path]) -> Expected:
    """The objects of a lock file; those of a folder only if the object that lists them is whole."""
    expected = Expected()
    for path, name in _outputs(lock):
        expected.add(name, path)
        if name not in whole:
            expected.absent.append(name)
        elif name.endswith(LIST):
            for md5, inside in _listed(whole[name]):
                expected.add(md5, f"{path}/{inside}")
                expected.lists.setdefault(md5, []).append(name)
    return expected


def _outputs(lock: Path) -> Iterator[tuple[str, str]]:
    """Path and object of every output in a lock file."""
    try:
        stages: dict[str, Any] = yaml.safe_load(lock.read_bytes())["stages"]
        yield from [(str(out["path"]), str(out["md5"])) for stage in stages.values() for out in stage["outs"]]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise io.DataError(f"{lock}: not a lock file of DVC; take it from Git: git checkout {lock}") from error


def _in_place(expected: Expected, name: str, lock: Path) -> bool:
    return any((lock.parent / path).exists() for path in expected.files[name])


def _listed(file: Path) -> list[tuple[str, str]]:
    """Object and path of every file in a folder's list."""
    try:
        return [(str(entry["md5"]), str(entry["relpath"])) for entry in json.loads(file.read_bytes())]
    except (ValueError, KeyError, TypeError) as error:
        raise io.DataError(f"{file}: not a list of files as DVC writes it; delete it and `dvc fetch`") from error


def _message(store: Path, problems: list[str], delete: list[Path]) -> str:
    shown = problems[:LISTED] + [f"and {len(problems) - LISTED} more"] * (len(problems) > LISTED)
    # The lists go too: a list that is in a remote makes `dvc push` believe that its files are.
    remedy = (
        "delete the files below; then, of a cache, the paths above that were checked out from it, and `dvc pull`; "
        "of a remote, `dvc push` from a clone whose cache is whole"
    )
    files = "".join(f"\n  {file}" for file in delete)
    return f"{store}: objects are damaged or missing\n" + "\n".join(shown) + f"\n{remedy}{files}"


def _paths(expected: Expected, name: str) -> str:
    return ", ".join(sorted(expected.files.get(name, ["of no version in dvc.lock"])))


def _name(file: Path) -> str:
    return file.parent.name + file.name


def _file(store: Path, name: str) -> Path:
    return store / "files/md5" / name[:2] / name[2:]


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
