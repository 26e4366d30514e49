"""Strangers' text where it is shown: nothing in it is taken for markup, and nothing in it is invisible."""

from __future__ import annotations

import re
import unicodedata

MARKDOWN = frozenset("\\`*_{}[]<>|~#$&")
FORMULA = frozenset("=+-@＝＋－＠")  # what a spreadsheet takes for the beginning of a formula


def visible(text: str) -> str:
    """Make control characters harmless: white space becomes a space, others their code, ``\\x1b``."""
    return "".join(_visible_character(character) for character in text)


def lines(text: str) -> str:
    """The same for a text that may have several lines, such as a message for a terminal."""
    return "\n".join(map(visible, text.split("\n")))


def markdown(text: str) -> str:
    """Text that no Markdown renderer takes for markup, nor for the end of a cell."""
    return "".join(f"\\{character}" if character in MARKDOWN else character for character in visible(text))


def html_in_markdown(text: str) -> str:
    """Text whose Markdown is kept, but for what ends a cell, is HTML, a link or code."""
    return re.sub(r"[<>|`\[\]\\]", r"\\\g<0>", visible(text))


def paragraph(text: str) -> str:
    """The same for a text that begins a line: it is no heading, list or quotation either."""
    return re.sub(r"^(\s*\d*)([-+=#*~>.)])", r"\1\\\2", html_in_markdown(text))


def code(text: str) -> str:
    """Text between single backticks in Markdown."""
    return visible(text).replace("`", "'")


def fence(text: str) -> str:
    """A line of backticks that encloses a text in Markdown, longer than any in it."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def restructured(text: str) -> str:
    """Text that reStructuredText takes for one line of words: no directive, role, link or reference."""
    return "".join(f"\\{character}" if character in "\\`*_|:<>" else character for character in visible(text))


def spreadsheet(text: str) -> str:
    """A cell of CSV that no spreadsheet takes for a formula: such a text begins with an apostrophe."""
    shown = visible(text)
    return f"'{shown}" if shown.lstrip()[:1] in FORMULA else shown


def drawn(text: str) -> str:
    """Text in a figure, in which matplotlib would take dollar signs for mathematics."""
    return visible(text).replace("$", r"\$")


def _visible_character(character: str) -> str:
    if character.isspace():
        return " "
    # Control and formatting characters (such as those that turn the direction of text), lone surrogates.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs"):
        return character.encode("unicode_escape").decode("ascii")
    return character
