"""Collect every problem of an input, so that its owner can mend them all at once."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence

from saferclip.io import DataError

SHOWN = 50


class Problems:
    """What is wrong with some input; only the first `SHOWN` problems are kept, all are counted."""

    def __init__(self) -> None:
        self.count = 0
        self._messages: list[str] = []

    def add(self, *parts: object) -> None:
        """Note a problem: from the outside in where it is (file, row, column), then what to do."""
        self.count += 1
        if self.count <= SHOWN:
            self._messages.append(": ".join(map(str, parts)))

    def check(self, outcome: str = "nothing was written") -> None:
        """Raise DataError naming the problems, if there are any, and what came of them."""
        if not self.count:
            return
        lines = [f"{self.count} problem{'s' * (self.count > 1)} in the data; {outcome}", *self._messages]
        if self.count > SHOWN:
            lines.append(f"... and {self.count - SHOWN} more")
        raise DataError("\n  ".join(lines))


def blank(value: object) -> bool:
    """Whether a cell says nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


def text_problem(value: object) -> str | None:
    """What keeps a cell from being a caption or an id, with the remedy; None if nothing does."""
    if blank(value):
        return "empty; write something, or remove the row"
    if not isinstance(value, str):
        return f"{_short(value)} is of type {type(value).__name__}; make it text"
    for character in value.strip():
        if character == "\N{REPLACEMENT CHARACTER}":
            return f"{_short(value)} has lost characters; open its source in the right encoding, save as UTF-8"
        # Line breaks, tabs, NUL and their like; halves of a character, which no file can hold.
        if unicodedata.category(character) in ("Cc", "Cs"):
            return f"{_short(value)} holds the control character {character!r}; remove it"
    return None


TRUE, FALSE = ("true", "yes", "1", "1.0"), ("false", "no", "0", "0.0")


def truth(value: object) -> bool | None:
    """What a cell says of yes and no, in numbers or words; None if it is blank.  ValueError if it says neither."""
    word = str(value).strip().lower()
    if blank(value):
        return None
    if isinstance(value, bool | int | float | str) and word in (*TRUE, *FALSE):
        return word in TRUE
    raise ValueError(f"{_short(value)} is neither yes nor no; write true or false, or leave it empty")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def nearest(name: str, candidates: Sequence[str]) -> str | None:
    """The candidate that ``name`` was probably meant to be, whatever its case, separators and order of words."""

    def likeness(candidate: str) -> float:
        one, other = _words(name), _words(candidate)
        return max(_likeness("".join(one), "".join(other)), _likeness(" ".join(sorted(one)), " ".join(sorted(other))))

    best = max(candidates, key=likeness, default=None)
    return best if best is not None and likeness(best) >= 0.7 else None


def _words(name: str) -> list[str]:
    return "".join(character if character.isalnum() else " " for character in name.lower()).split()


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
