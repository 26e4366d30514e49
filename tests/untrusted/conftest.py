"""Files as a stranger might send them. What would run if it were executed does nothing but leave a marker."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class _Touching:
    """Asks whoever unpickles it to make a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self._path}'",)


@pytest.fixture
def marker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A path at which no file may be, neither now nor when the test is over."""
    path = tmp_path_factory.mktemp("marker") / "executed"
    yield path
    assert not path.exists(), "something in a file from strangers was executed"


@pytest.fixture
def touching(marker: Path) -> Callable[[int], bytes]:
    """A function (protocol) -> a pickle that makes the marker when it is loaded carelessly."""

    def make(protocol: int = 2) -> bytes:
        return pickle.dumps({"state_dict": _Touching(marker)}, protocol)

    return make
