"""What the expressions of ``saferclip.ethics`` find, in time that grows with the text's length and no faster.

A regular expression tries again and again where one character may stand for many letters: 300 times "1" take it half a
minute. Here all words are one automaton. Going backwards through the text it notes from which states the rest of a word
follows, all states at once, as the bits of one number; going forwards it then takes the first way that an expression
would have taken, and never has to turn round.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

MATCH = ""  # the characters of a state at which a word has ended


class Form(NamedTuple):
    """How words are written: for each part of a word, the characters that may stand for each of its letters."""

    words: Sequence[Sequence[Sequence[str]]]
    gap: tuple[str, ...]  # what may lie between two letters, each once
    skip: int  # place in ``gap`` of one that needs none of those before it; 0 if there is none
    suffix: tuple[str, ...]  # two characters that may follow, the first only before the second
    alone: bool  # no letter may lie before or after


@dataclass
class Automaton:
    """The states of all words, in the order in which an expression tries them."""

    characters: list[str] = field(default_factory=list)  # of each state, as an expression
    following: list[list[int]] = field(default_factory=list)  # states after each, the preferred one first
    starts: int = 0
    alone: int = 0  # states of words that no letter may lie before or after
    ends: int = 0
    ends_alone: int = 0

    @classmethod
    def of(cls, forms: Sequence[Form]) -> Automaton:
        """One automaton for words of several forms, those of the first form preferred."""
        made = cls()
        for form in forms:
            for word in form.words:
                made._add(word, form)
        offsets = {after - state for state, states in enumerate(made.following) for after in states}
        made._steps = [(offset, made._mask_of(offset)) for offset in sorted(offsets)]
        made._places = {}
        for state, characters in enumerate(made.characters):
            made._places[characters] = made._places.get(characters, 0) | 1 << state
        return made

    def search(self, text: str) -> Iterator[str]:
        """What an expression's ``finditer`` would find in an ASCII text, in that order."""
        possible = self._possible(text)
        place = 0
        while place < len(text):
            starts = possible[place] & self.starts
            if place and "a" <= text[place - 1] <= "z":
                starts &= ~self.alone
            if not starts:
                place += 1
                continue
            end = self._end((starts & -starts).bit_length() - 1, place, possible)
            yield text[place:end]
            place = end

    def _end(self, state: int, place: int, possible: Sequence[int]) -> int:
        """Where the way ends that begins with this state."""
        while self.characters[state] != MATCH:
            place += 1
            state = next(after for after in self.following[state] if possible[place] >> after & 1)
        return place

    def _possible(self, text: str) -> list[int]:
        """For each place of a text, the states from which the end of a word can be reached, as bits."""
        found = [0] * len(text) + [self.ends]
        for place in range(len(text) - 1, -1, -1):
            later, before = found[place + 1], 0
            for offset, mask in self._steps:
                before |= later >> offset & mask
            ends = self.ends & ~self.ends_alone if "a" <= text[place] <= "z" else self.ends
            found[place] = before & self._standing_for(text[place]) | ends
        return found

    def _standing_for(self, character: str) -> int:
        if character not in self._known:
            states = [mask for kind, mask in self._places.items() if kind and _is(character, kind)]
            self._known[character] = sum(states)  # each state is in one of them
        return self._known[character]

    def _mask_of(self, offset: int) -> int:
        return sum(1 << state for state, states in enumerate(self.following) if state + offset in states)

    def _state(self, characters: str) -> int:
        self.characters.append(characters)
        self.following.append([])
        return len(self.characters) - 1

    def _add(self, word: Sequence[Sequence[str]], form: Form) -> None:
        """The states of a word, ending in one that means success."""
        first, before = len(self.characters), list[int]()
        for part in word:
            if before:
                between = self._state(r"[\W_]")
                self._follow(before, [between])
                self.following[between].append(between)
                before = [between]
            for number, letter in enumerate(part):
                if number:
                    before = self._gap(before, form)
                before = self._letter(letter, before)
        if form.suffix:
            optional, last = map(self._state, form.suffix)
            self._follow(before, [optional, last])
            self._follow([optional], [last])
            before = [*before, last]
        end = self._state(MATCH)
        self._follow(before, [end])
        self.starts |= 1 << first
        self.ends |= 1 << end
        if form.alone:
            self.alone |= 1 << first
            self.ends_alone |= 1 << end

    def _letter(self, letter: str, before: Sequence[int]) -> list[int]:
        """Once, or three times and more."""
        once, twice, more = self._state(letter), self._state(letter), self._state(letter)
        self._follow(before, [once])
        self._follow([once], [twice])
        self._follow([twice, more], [more])
        return [once, more]

    def _gap(self, before: Sequence[int], form: Form) -> list[int]:
        states = list(map(self._state, form.gap))
        entries = [states[0], *([states[form.skip]] if form.skip else [])]
        self._follow(before, entries)
        for number, state in enumerate(states[:-1]):
            later = [states[number + 1], *([states[form.skip]] if number + 1 < form.skip else [])]
            self._follow([state], later)
        return [*before, *states]

    def _follow(self, before: Sequence[int], after: Sequence[int]) -> None:
        for state in before:
            self.following[state] += after

    def __post_init__(self) -> None:
        self._steps: list[tuple[int, int]] = []
        self._places: dict[str, int] = {}
        self._known: dict[str, int] = {}


@cache
def _is(character: str, kind: str) -> bool:
    return re.fullmatch(kind, character) is not None
