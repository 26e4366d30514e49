"""The grammar of IconWorld captions: sentences to text and text to sentences, exactly.

    caption  = [background ","] [lead] objects [background]
    objects  = object {connector object}
    object   = ("a" | "an" | "some" | number) [colour] concept

Describing, parsing and editing all go through `Sentence`, so that what is written can be read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NoReturn

from saferclip.data.iconworld.scenes import BACKGROUNDS, COLOURS
from saferclip.data.iconworld.vocabulary import concept, concepts

# "there is" and "here is" agree in number with the first object when written.
LEADS = (
    "",
    "a photo of",
    "a picture of",
    "an image of",
    "a picture with",
    "a scene with",
    "a view of",
    "there is",
    "here is",
    "we see",
    "this shows",
)
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "grass": ("on grass", "on the grass", "in a meadow"),
    "snow": ("on snow", "in the snow", "on snowy ground"),
    "sand": ("on sand", "in the sand", "on a beach"),
    "night": ("at night", "under the stars", "in the dark"),
    "brick wall": ("in front of a brick wall", "by a brick wall", "against a brick wall"),
    "wooden floor": ("on a wooden floor", "on wooden planks", "on a wooden table top"),
    "blue sky": ("under a blue sky", "in the blue sky", "against a blue sky"),
    "checkered paper": ("on checkered paper", "on squared paper", "on a sheet of checkered paper"),
}
CONNECTORS = ("and", "next to", "beside", "with", "near")
_ENUMERATED = ","  # "a cat, a dog and a bus": allowed anywhere but before the last object
NUMBERS = ("two", "three", "four")
_DETERMINERS = ("a", "an", "some", "the")

Words = tuple[str, ...]


@dataclass(frozen=True)
class NounPhrase:
    """Such as "a red cat", or "three red cats" with count 3; colour None where it is not said."""

    concept: str
    colour: str | None = None
    count: int = 1

    def text(self) -> str:
        """The phrase with its article or number."""
        kind = concept(self.concept)
        noun = kind.name if self.count == 1 else kind.plural
        described = f"{self.colour} {noun}" if self.colour else noun
        if self.count > 1:
            return f"{NUMBERS[self.count - 2]} {described}"
        if kind.plural_only:
            return f"some {described}"
        return f"{article(described)} {described}"

    @property
    def is_plural(self) -> bool:
        """Whether a verb before it is "are"."""
        return self.count > 1 or concept(self.concept).plural_only


# The article follows the sound, not the letter.
_CONSONANT_SOUNDS = ("uni",)  # unicorn, unicycle
_VOWEL_SOUNDS = ("hour",)  # hourglass


def article(words: str) -> str:
    """The article, "a" or "an", that English wants before `words`."""
    vowel_letter = words[0] in "aeiou" and not words.startswith(_CONSONANT_SOUNDS)
    return "an" if vowel_letter or words.startswith(_VOWEL_SOUNDS) else "a"


@dataclass(frozen=True)
class Sentence:
    """A caption taken apart. `connectors` has one entry fewer than `objects`."""

    lead: str
    objects: tuple[NounPhrase, ...]
    connectors: tuple[str, ...] = ()
    background_phrase: str | None = None
    background_first: bool = False

    @property
    def background(self) -> str | None:
        """The background named, if any."""
        return _backgrounds()[self.background_phrase] if self.background_phrase else None

    def text(self) -> str:
        """The caption."""
        lead = self.lead
        if lead in ("there is", "here is") and self.objects[0].is_plural:
            lead = lead.replace("is", "are")
        body = self.objects[0].text()
        for connector, item in zip(self.connectors, self.objects[1:], strict=True):
            space = "" if connector == _ENUMERATED else " "
            body += f"{space}{connector} {item.text()}"
        words = [lead, body] if lead else [body]
        if self.background_phrase and self.background_first:
            return f"{self.background_phrase}, {' '.join(words)}"
        if self.background_phrase:
            words.append(self.background_phrase)
        return " ".join(words)


@cache
def _backgrounds() -> dict[str, str]:
    table = {text: name for name in BACKGROUNDS for text in BACKGROUND_PHRASES[name]}
    table[""] = ""
    return table


class _Phrases:
    """Finds the longest known phrase at a place in a list of words."""

    def __init__(self, phrases: Iterable[tuple[str, str]]) -> None:
        self.meaning: dict[Words, str] = {tuple(text.split()): name for text, name in phrases if text}
        self.longest = max(len(words) for words in self.meaning)

    def at(self, words: Words, start: int) -> tuple[str, int] | None:
        """(meaning, place after it), or None."""
        for length in range(min(self.longest, len(words) - start), 0, -1):
            name = self.meaning.get(words[start : start + length])
            if name is not None:
                return name, start + length
        return None


@cache
def _tables() -> dict[str, _Phrases]:
    known = concepts().values()
    return {
        "leads": _Phrases([(lead, lead) for lead in LEADS] + [("there are", "there is"), ("here are", "here is")]),
        "backgrounds": _Phrases((text, text) for text in _backgrounds()),
        "connectors": _Phrases((text, text) for text in (*CONNECTORS, _ENUMERATED)),
        "singular": _Phrases((c.name, c.name) for c in known),
        "plural": _Phrases((c.plural, c.name) for c in known),
    }


@cache
def _determiners() -> dict[str, int]:
    return dict.fromkeys(_DETERMINERS, 1) | {word: i + 2 for i, word in enumerate(NUMBERS)}


def parse_sentence(caption: str) -> Sentence:
    """The sentence that reads `caption`; ValueError naming the word that is not understood."""
    words = tuple(caption.lower().rstrip(".").replace(",", " ,").split())
    tables = _tables()
    phrase: str | None = None
    first = False
    at = 0
    if found := tables["backgrounds"].at(words, 0):
        phrase, at = found
        first = True
        if words[at : at + 1] != (",",):
            _refuse(caption, words, at)
        at += 1
    lead = ""
    if found := tables["leads"].at(words, at):
        lead, at = found
    item, at = _noun_phrase(caption, words, at)
    objects = [item]
    connectors: list[str] = []
    while at < len(words):
        found = tables["connectors"].at(words, at)
        if found is None:
            break
        connectors.append(found[0])
        item, at = _noun_phrase(caption, words, found[1])
        objects.append(item)
    if not first and (found := tables["backgrounds"].at(words, at)):
        phrase, at = found
    if at < len(words):
        _refuse(caption, words, at)
    return Sentence(lead, tuple(objects), tuple(connectors), phrase, first)


def _noun_phrase(caption: str, words: Words, at: int) -> tuple[NounPhrase, int]:
    count = _determiners().get(words[at]) if at < len(words) else None
    if count is None:
        _refuse(caption, words, at)
    at += 1
    colour = words[at] if at < len(words) and words[at] in COLOURS else None
    at += colour is not None
    found = _tables()["singular" if count == 1 else "plural"].at(words, at)
    if found is None:
        _refuse(caption, words, at)
    return NounPhrase(found[0], colour, count), found[1]


def _refuse(caption: str, words: Words, at: int) -> NoReturn:
    word = repr(words[at]) if at < len(words) else "its end"
    raise ValueError(f"caption {caption!r} is not of IconWorld's grammar: cannot read {word}")


def usual_connectors(count: int, pick: Sequence[str]) -> tuple[str, ...]:
    """Connectors for `count` objects, two connectors of choice at hand: commas come first."""
    if count < 3:
        return tuple(pick[: count - 1])
    if pick[0] == pick[1] == "and":
        return (_ENUMERATED,) * (count - 2) + ("and",)
    return tuple(pick[i % 2] for i in range(count - 1))
