"""How far a run is, when that is saved, and when the run ends because it was asked to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from saferclip import signals
from saferclip.training.checkpoint import Checkpoint
from saferclip.training.tuner import Tuner

# What a kill may cost; saving takes a fraction of a second.  No setting, since no result depends on it.
SAVE_SECONDS = 300.0


@dataclass
class Progress:
    """How far a run is, and what it measured; plain values."""

    epoch: int = 0  # that is finished
    taken: int = 0  # steps of the next one
    seconds: float = 0.0
    steps: list[dict[str, float]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)

    def add_step(self, numbers: dict[str, float]) -> None:
        """One more step of the present epoch."""
        self.steps.append(numbers)
        self.taken += 1

    def add_epoch(self, numbers: dict[str, float]) -> None:
        """The present epoch is finished."""
        self.epochs.append(numbers)
        self.epoch, self.taken = self.epoch + 1, 0


class Keeper:
    """Saves a run's state after each epoch, every few minutes, and when a signal asks the run to end."""

    def __init__(self, checkpoint: Checkpoint, tuner: Tuner, progress: Progress, request: signals.Request) -> None:
        self.checkpoint = checkpoint
        self.tuner = tuner
        self.progress = progress
        self.request = request
        self._saved = time.monotonic()

    def pause(self) -> None:
        """Between two steps, or two batches of validation: save if it is time; raise Ended if asked to end.

        All processes do the same, whichever of them was asked.
        """
        group = self.tuner.processes
        late = time.monotonic() - self._saved >= SAVE_SECONDS
        number, due = group.highest(self.request.number or group.ending(), int(late))
        if number or due:
            self.save()
        if number:
            raise signals.Ended(number, self._farewell(number))

    def save(self) -> None:
        """Keep the present state."""
        now = time.monotonic()
        self.progress.seconds += now - self._saved
        self._saved = now
        self.checkpoint.save(vars(self.progress), self.tuner.weights, self.tuner.optimiser)

    def _farewell(self, number: int) -> str:
        return (
            f"ended by {signals.name(number)} after step {len(self.progress.steps)} (epoch {self.progress.epoch + 1}); "
            f"the state is in {self.checkpoint.folder}: start again to go on from there"
        )
