"""A run's state on disk, from which it goes on after an interruption as if there had been none."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferclip import io
from saferclip.training.processes import Processes, restore_random

FILE = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
KEYS = {"digest", "progress", "weights", "optimiser", "random"}
HASH_BYTES = hashlib.sha256().digest_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The state in ``folder`` of the run that ``digest`` identifies; the first of its processes keeps it for all.

    A file is the SHA-256 of what follows, because torch notices a truncated file but not a changed one, and what
    torch saves.  The state before the last one is kept as well: a disk that loses one file costs minutes then.
    """

    folder: Path
    digest: str
    processes: Processes = field(default_factory=Processes)

    def save(
        self, progress: Mapping[str, Any], weights: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
    ) -> None:
        """Replace the stored state; an interruption leaves the old one or the new one.

        Raises OSError, and leaves the old one, if there is no room.
        """
        random = self.processes.random_states()
        if not self.processes.first:
            return
        state = {
            "digest": self.digest,
            "progress": dict(progress),
            "weights": {name: weight.detach() for name, weight in weights.items()},
            "optimiser": optimiser.state_dict(),
            "random": random,
        }
        buffer = BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        path = self.folder / FILE
        with io.atomic_path(path) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
            if path.exists():
                path.replace(self.folder / PREVIOUS)

    def restore(self, weights: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Put back weights, optimiser and random numbers, and return the progress; None if there is none."""
        state = self.processes.from_first(lambda: self._read(weights))
        if state is None:
            return None
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(state["weights"][name])
        optimiser.load_state_dict(state["optimiser"])
        restore_random(state["random"], self.processes.rank)
        progress: dict[str, Any] = state["progress"]
        return progress

    def remove(self) -> None:
        """Forget the state of a run that ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, weights: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """The newest state that is whole and of this run."""
        for path in (self.folder / FILE, self.folder / PREVIOUS):
            if not path.exists():
                continue
            try:
                state = _load(path)
            except Exception as error:
                logger.warning("%s cannot be read (%s); it is left out", path, _first_line(error))
                continue
            if state["digest"] != self.digest or not _fits(state["weights"], weights):
                logger.warning("%s belongs to other settings or inputs; it is left out", path)
                continue
            logger.info("going on from %s", path)
            return state
        if self.folder.exists():
            logger.warning("%s: no state of this run that could be used; starting anew", self.folder)
        return None


def _load(path: Path) -> dict[str, Any]:
    """A file's content, without executing anything of it."""
    stored = path.read_bytes()
    expected, content = stored[:HASH_BYTES], stored[HASH_BYTES:]
    if hashlib.sha256(content).digest() != expected:
        raise ValueError("it is not what was written: truncated, changed or not a state at all")
    state = torch.load(BytesIO(content), weights_only=True, map_location="cpu")
    if not isinstance(state, dict) or state.keys() != KEYS:
        raise ValueError("it is not a state of a training")
    return state


def _fits(stored: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    shapes, wanted = ({name: weight.shape for name, weight in some.items()} for some in (stored, weights))
    return shapes == wanted


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
