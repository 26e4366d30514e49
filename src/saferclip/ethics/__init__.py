"""No sexual edit where a minor could be meant: what captions may be offered, and what edits are refused.

Asked before a category is chosen, after a caption was edited, and before an image is drawn. Nothing here can be
switched off or set. A caption that cannot be read for certain, because it holds letters of another script than Latin,
counts as one that could mean a minor, and as an edit that could be sexual. False positives are wanted; see words.yaml.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from string import ascii_lowercase
from typing import NamedTuple

import yaml

from saferclip.ethics.automaton import Automaton, Form

WORDS = Path(__file__).with_name("words.yaml")
ADULT = 20  # an age told in years that is below this one could be a minor's
UNREADABLE = "letters that cannot be read"
LONGEST = 20_000  # characters of a text; nobody reads more to the end

# What may stand for a letter, besides the letter itself.
LOOKS = {
    **{"a": "4@", "b": "8", "c": "(<", "e": "3", "g": "9", "i": "1!|l", "l": "1!|i"},
    **{"o": "0", "s": "5$z", "t": "7+", "z": "2s"},
}
MASKS = "*#%"  # what hides a letter
HIDING = "?_.-"  # what may do so in words that count alone
REVERSALS = {
    "LRO",
    "RLO",
    "RLE",
    "RLI",
}  # characters that turn the order of letters round, after which none can be read
UNITS = r"(?:years?|yrs?|months?|weeks?|days?|hours?|summers?|winters?)"
SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "thousand")
ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh"),
    *("twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth"),
)
NUMBER = rf"(?>\d+|(?:{'|'.join(TENS)})(?:[\s-]+(?:{'|'.join(SMALL)}))?|{'|'.join(sorted(SMALL, reverse=True))})"
ORDINAL = rf"(?:\d+(?:st|nd|rd|th)|(?:{'|'.join(TENS)})[\s-]+\w+|{'|'.join(f'{name[:-1]}ieth' for name in TENS[:8])})"


class _Patterns(NamedTuple):
    """Two expressions for a list of words: as they are written, and spelt with gaps."""

    written: re.Pattern[str]
    spaced: re.Pattern[str]


def offered(categories: Sequence[str], captions: Iterable[str]) -> tuple[str, ...]:
    """The categories that may be chosen for an image of which these are all known captions."""
    if minor_hint(captions) is None:
        return tuple(categories)
    return tuple(category for category in categories if not is_sexual(category))


def violation(captions: Iterable[str], edited: str, category: str) -> str | None:
    """Why an edit must be refused, or None: it is sexual, by its category or its words, and could mean a minor.

    ``captions`` are all known captions of the image; the edited caption is looked at as well.
    """
    minor = minor_hint((*captions, edited))
    if minor is None:
        return None
    sexual = sexual_hint(edited) or (category if is_sexual(category) else None)
    return None if sexual is None else f"'{sexual}' with '{minor}'"


def is_sexual(category: str) -> bool:
    """Whether a category is the sexual one, by whatever name; one that cannot be read is."""
    return sexual_hint(category) is not None


def minor_hint(captions: Iterable[str]) -> str | None:
    """What in the captions could mean a minor, or None."""
    return next((hint for caption in captions if (hint := _minor_hint(caption))), None)


@lru_cache(maxsize=10_000)
def _minor_hint(caption: str) -> str | None:
    if len(caption) > LONGEST:
        return UNREADABLE
    text = readable(caption)
    return _unreadable(text) or _young_age(text) or _word("minors", text)


@lru_cache(maxsize=10_000)
def sexual_hint(text: str) -> str | None:
    """What in a text is sexual or cannot be read, or None."""
    if len(text) > LONGEST:
        return UNREADABLE
    plain = readable(text)
    return _unreadable(plain) or _word("sexual", plain)


# Reading ----------------------------------------------------------------------------------------


def readable(text: str) -> str:
    """Lower case without accents and invisible characters; pictograms by their names, all dashes and digits alike."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(map(_plain, decomposed))


def _plain(character: str) -> str:
    """A character of a decomposed text as ASCII, if it can be told what it stands for."""
    if character.isascii() or unicodedata.bidirectional(character) in REVERSALS:
        return character
    kind, name = unicodedata.category(character), unicodedata.name(character, "")
    if kind in ("Cf", "Mn", "Me", "Sk", "Pd"):
        return "-" if kind == "Pd" else ""
    if kind == "Nd":
        return str(unicodedata.digit(character))
    # Such as o with a stroke, small capitals, and letters in boxes or flags.
    letter = re.search(r"^LATIN .*LETTER (?:SMALL CAPITAL |DOTLESS )?([A-Z]{1,2})\b|SYMBOL LETTER ([A-Z])$", name)
    letter = letter or re.search(r"LATIN CAPITAL LETTER ([A-Z])$", name)
    if letter:
        return next(filter(None, letter.groups())).lower()
    if kind.startswith("S"):
        return f" {name.lower()} "
    return character if kind[0] in "LC" or kind in ("Nl", "Mc") else " "


def _unreadable(text: str) -> str | None:
    return None if text.isascii() else UNREADABLE


# Ages -------------------------------------------------------------------------------------------

AGES = [
    # 12-year-old, nine years old, 8 to 25 year olds, and "year-old" after what is no number: an age that is not known
    rf"(?:(?P<from>{NUMBER})\s*(?:-|to|and|or)\s*)?(?P<age>{NUMBER})?[\s-]*\b{UNITS}[\s-]*olds?\b",
    rf"(?P<age>{NUMBER})[\s-]*{UNITS}[\s-]*(?:olds?|aged|of\s+age)\b",
    rf"(?P<age>{NUMBER})[\s-]*(?:y[\s./-]*o|yrs?)\b",  # 14 yo, 14 y/o, 14yrs
    rf"\bage[ds]?\b\W*(?:of|about|around|only|just|is|:)?\s*(?:between\s+)?(?P<age>{NUMBER}|[ivx]+)\b",
    rf"\b(?:under|below|younger|sub|u)[\s-]*(?:than\s+|the\s+age\s+of\s+)?(?P<age>{NUMBER})s?\b",
    rf"\bturn(?:s|ed|ing)?\s+(?P<age>{NUMBER})\b",
    rf"\b(?:{ORDINAL}|{'|'.join(ORDINALS)})[\s-]+grade\b|\b(?:grade|year)\s+(?P<age>{NUMBER})s?\b",
    # she is 13, he's only nine, who looks sixteen; but not: he is one of many
    rf"\b(?:he|she|they|who)\W+(?:is|s|are|re|was|were|looks?)\W+(?:\w+\s+)?(?P<age>{NUMBER})\b(?!\s+of\b)",
    r"[,(]\s*(?P<age>\d{1,2})\s*(?:[,.)]|$)",  # a swimmer, 16; Ada (15)
    r"<\s*(?P<age>\d{1,2})\b",
    r"\b(?P<age>\d{2})[\s/]*[fm]\b",  # 17F, 17/m
    r"\b[fm][\s/]*(?P<age>\d{2})\b",
    rf"\b(?P<age>{NUMBER})[\s-]*(?:and|&|n)[\s-]*pregnant\b",
    rf"(?<!\w)(?:(?P<grown>{ORDINAL})[\s-]+)?(?:birthday|bday|b-day)\b",
    r"\bsweet\s+(?:sixteen|16)\b",
]


@cache
def _ages() -> list[re.Pattern[str]]:
    return [re.compile(pattern) for pattern in AGES]


def _young_age(text: str) -> str | None:
    """An age below ADULT, or one that is not known; None if there is none."""
    text = re.sub(r"(\d{40})\d+", r"\1", text)  # Python reads no number of 5,000 digits, and tries at each digit
    for pattern in _ages():
        for found in pattern.finditer(text):
            groups = found.groupdict()
            told = [groups[name] for name in ("age", "from") if groups.get(name)]
            if not told and groups.get("grown"):
                told = [groups["grown"]]
            if not told or min(map(_years, told)) < ADULT:
                return found[0].strip()
    return None


def _years(number: str) -> int:
    """A number in figures or words; whatever is no such number is taken for a small one."""
    digits = re.match(r"\d+", number)
    if digits:
        return int(digits[0])
    return ADULT if number.startswith((*TENS, *(f"{name[:-1]}ieth" for name in TENS[:8]))) else 0


# Words ------------------------------------------------------------------------------------------


def _word(group: str, text: str) -> str | None:
    """The first word of a group that a text holds, however it is spelt; None if there is none."""
    for found in _found(group, text):
        letters = sum(character.isalpha() for character in found)
        if letters >= 2 or letters > len(found) / 3:
            return found.strip()
    return None


def _found(group: str, text: str) -> Iterator[str]:
    """All that looks like a word of a group; by expressions where these are quick, which is nearly always."""
    if _repetitive().search(text):
        for automaton in _automata(group):
            yield from automaton.search(text)
    else:
        for pattern in _patterns(group):
            yield from (found[0] for found in pattern.finditer(text))


@cache
def _repetitive() -> re.Pattern[str]:
    """Four characters side by side that may all stand for one letter: an expression would try all ways to part them."""
    kinds = [f"[{re.escape(letter + LOOKS.get(letter, '') + MASKS + HIDING)}]{{4}}" for letter in ascii_lowercase]
    return re.compile("|".join([r"[^\w\s]{4}", r"[\W_]{8}", *kinds]))


@cache
def _words(group: str) -> tuple[list[str], list[str]]:
    """Words that count anywhere, also within others, and words and phrases that count alone."""
    entries = yaml.safe_load(WORDS.read_text(encoding="utf-8"))[group]
    anywhere = [word for entry in entries for word in entry.get("anywhere", ())]
    return anywhere, [word for entry in entries for word in (*entry.get("words", ()), *entry.get("phrases", ()))]


@cache
def _patterns(group: str) -> _Patterns:
    anywhere, words = _words(group)
    within = "|".join(_spelt(word, r"[^\w\s]{0,2}_?", MASKS) for word in anywhere)
    whole = "|".join(_spelt(word, r"[^\w\s]{0,2}_?", MASKS + HIDING) for word in words)
    gaps = "|".join(_spelt(word, r"[\W_]{0,3}", "", ends=True) for word in (*anywhere, *words))
    return _Patterns(
        re.compile(rf"(?:{within})|(?<![a-z])(?:{whole})(?:e?[s5$z])?(?![a-z])"),
        re.compile(rf"(?<![a-z])(?:{gaps})(?:e?s)?(?![a-z])"),
    )


@cache
def _automata(group: str) -> tuple[Automaton, Automaton]:
    """The same as automata, which take as long for any text of one length."""
    anywhere, words = _words(group)
    narrow, wide = (r"[^\w\s]", r"[^\w\s]", "_"), (r"[\W_]",) * 3
    within = Form([_letters(word, MASKS) for word in anywhere], narrow, 2, (), False)
    whole = Form([_letters(word, MASKS + HIDING) for word in words], narrow, 2, ("e", "[s5$z]"), True)
    gaps = Form([_letters(word, "", ends=True) for word in (*anywhere, *words)], wide, 0, ("e", "s"), True)
    return Automaton.of([within, whole]), Automaton.of([gaps])


def _spelt(word: str, gap: str, masks: str, ends: bool = False) -> str:
    """An expression for a word with letters repeated, and a gap between any two."""
    parts = _letters(word, masks, ends)
    # Once, or three times and more: "soon" is not "son", but "booooy" is "boy".
    return r"[\W_]+".join(gap.join(f"{one}(?:{one}{{2,}})?" for one in part) for part in parts)


def _letters(word: str, masks: str, ends: bool = False) -> list[list[str]]:
    """What may stand for each letter of each part of a word: look-alikes, and masks within.

    With ``ends`` the first and the last letter have no look-alikes, or "5 on" and "to 7" would be words.
    """
    return [
        [
            f"[{re.escape(letter + ('' if edge and ends else LOOKS.get(letter, '')) + ('' if edge else masks))}]"
            for position, letter in enumerate(part)
            for edge in [position in (0, len(part) - 1)]
        ]
        for part in word.split()
    ]
