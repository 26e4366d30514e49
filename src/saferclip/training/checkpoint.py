"""A run's state on disk, from which it goes on after an interruption as if there had been none."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferclip import io

FILE = "checkpoint.pt"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The state in ``folder`` of the run that ``digest`` identifies."""

    folder: Path
    digest: str

    def save(
        self, progress: Mapping[str, Any], weights: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
    ) -> None:
        """Replace the stored state; an interruption leaves the old one or the new one."""
        state = {
            "digest": self.digest,
            "progress": dict(progress),
            "weights": {name: weight.detach() for name, weight in weights.items()},
            "optimiser": optimiser.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
        }
        with io.atomic_path(self.folder / FILE) as temporary:
            torch.save(state, temporary)

    def restore(self, weights: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Put back weights, optimiser and random numbers, and return the progress; None if there is none."""
        state = self._read()
        if state is None:
            return None
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(state["weights"][name])
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["random_cuda"])
        progress: dict[str, Any] = state["progress"]
        return progress

    def remove(self) -> None:
        """Forget the state of a run that ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / FILE
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:
            logger.warning("%s cannot be read (%s); starting anew", path, error)
            return None
        if state.get("digest") != self.digest:
            logger.warning("%s belongs to other settings or inputs; starting anew", path)
            return None
        return state


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
