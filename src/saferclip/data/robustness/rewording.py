"""Captions in other words: sentences, letters and synonyms that no training caption has.

All functions take any English caption, and a generator that decides what is left to chance.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import yaml

from saferclip.data.iconworld.grammar import article

SHORTEST = 4  # letters of a word that is misspelt: of a shorter one too little would be left
NEIGHBOURS = dict(
    zip("abcdefghijklmnopqrstuvwxyz", "svxsrdhjoklknmpowtdribezux", strict=True)
)  # beside each on a keyboard
_WORD = re.compile(r"[^\W\d_]+")


@cache
def words() -> dict[str, Any]:
    """Our own lists of words and phrases, from words.yaml."""
    found: dict[str, Any] = yaml.safe_load(files(__package__).joinpath("words.yaml").read_text(encoding="utf-8"))
    return found


def framed(caption: str, rng: np.random.Generator) -> str:
    """The caption within another sentence."""
    frames: Sequence[str] = words()["frames"]
    body = caption.strip().rstrip(".")
    return frames[int(rng.integers(len(frames)))].format(body[:1].lower() + body[1:])


def new_words(caption: str, other: str) -> list[str]:
    """Words of a caption that the other one does not have: of an unsafe one, those that make it so."""
    known = {word.lower() for word in _WORD.findall(other)}
    return [word for word in _WORD.findall(caption) if word.lower() not in known]


def misspelt(caption: str, chosen: Collection[str], edits: int, rng: np.random.Generator) -> str | None:
    """The caption with ``edits`` letters wrong, in the ``chosen`` words if they are long enough, else in any.

    An edit leaves out a letter, doubles it, hits the key beside it or swaps it with the next; a word's
    first letter stays.  None where no word is long enough.
    """
    places = [found.span() for found in _WORD.finditer(caption)]
    long = [span for span in places if span[1] - span[0] >= SHORTEST]
    spans = [span for span in long if caption[slice(*span)] in chosen] or long
    if not spans:
        return None
    wrong = {span: caption[slice(*span)] for span in spans}
    for _ in range(edits):
        span = spans[int(rng.integers(len(spans)))]
        wrong[span] = _edited(wrong[span], {caption[slice(*span)], wrong[span]}, rng)
    for span in sorted(wrong, reverse=True):
        caption = caption[: span[0]] + wrong[span] + caption[span[1] :]
    return caption


def _edited(word: str, known: Collection[str], rng: np.random.Generator) -> str:
    """The word with one letter wrong, and unlike all that are known."""
    while True:
        at = int(rng.integers(1, len(word) - 1)) if len(word) > 2 else 1
        letter, following = word[at], word[at + 1 : at + 2]
        beside = NEIGHBOURS.get(letter.lower(), letter * 2)
        options = ("", letter * 2, beside, following + letter)
        which = int(rng.integers(len(options)))
        taken = 1 + (which == 3)
        edited = word[:at] + options[which] + word[at + taken :]
        if edited not in known:
            return edited


def synonymous(caption: str, rng: np.random.Generator, table: Mapping[str, Sequence[str]] | None = None) -> str | None:
    """The caption with other words for every one that the table knows, in singular and plural; None without any."""
    table = words()["synonyms"] if table is None else table
    longest = sorted(table, key=len, reverse=True)
    pattern = re.compile(rf"\b(?:(an?) )?({'|'.join(map(re.escape, longest))})(s?)\b", re.IGNORECASE)
    if not pattern.search(caption):
        return None

    def replaced(found: re.Match[str]) -> str:
        determiner, word, plural = found.groups()
        options = table[word.lower()]
        new = options[int(rng.integers(len(options)))] + plural
        if not determiner:
            return new
        return f"{article(new).capitalize() if determiner[0].isupper() else article(new)} {new}"

    return pattern.sub(replaced, caption)
