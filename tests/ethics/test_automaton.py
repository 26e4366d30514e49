"""The automaton finds what the expressions find, and takes their place where they would take for ever."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from saferclip import ethics

GROUPS = ("minors", "sexual")
ORDINARY = ("a", "man", "and", "woman", "sit", "hills", "near", "big", "bus", "with", "skills", "million", "glass")


def texts() -> list[str]:
    """Words of the lists and others, with letters repeated, hidden, apart and replaced by look-alikes."""
    rng = random.Random(5)
    words = [word for group in GROUPS for some in ethics._words(group) for word in some]

    def disguised(letter: str) -> str:
        return rng.choice(
            [letter * 3, letter * 4, letter + rng.choice("*#%-._ !"), rng.choice(ethics.LOOKS.get(letter, "x"))]
        )

    def word() -> str:
        plain = rng.choice(words if rng.random() < 0.5 else ORDINARY)
        return "".join(disguised(letter) if rng.random() < 0.2 else letter for letter in plain) + rng.choice(
            ["", "s", "es", "5."]
        )

    return [rng.choice([" ", "-", "", " _ "]).join(word() for _ in range(rng.randint(1, 6))) for _ in range(400)]


@pytest.mark.parametrize("group", GROUPS)
def test_it_finds_what_the_expressions_find(group: str) -> None:
    found = 0
    for text in texts():
        by_expressions = [match[0] for pattern in ethics._patterns(group) for match in pattern.finditer(text)]
        assert [part for automaton in ethics._automata(group) for part in automaton.search(text)] == by_expressions, (
            text
        )
        found += len(by_expressions)
    assert found > 100


@pytest.mark.parametrize("text", ["(", "<", "1", "l", "$", "*", "-", "li", "1!|", "a*", "?.-", "(c<"])
def test_texts_that_expressions_would_not_come_to_the_end_of(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 brackets took them 45 seconds, 5,000 ones days."""
    monkeypatch.setattr(ethics, "_patterns", lambda _: pytest.fail("an expression was asked"))
    long = (text * 2500)[:2500]
    for group in GROUPS:
        assert list(islice(ethics._found(group, long), 10_000)) is not None
        assert ethics._word(group, f"a cat {long} a cat") is None


@pytest.mark.parametrize("text", ["(((((((((( a boy", "1111111111111 a naked man", "$$$$ s*x"])
def test_words_beside_them_are_found(text: str) -> None:
    assert ethics._minor_hint(text) or ethics.sexual_hint(text)


def test_ordinary_captions_are_read_by_expressions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ethics, "_automata", lambda _: pytest.fail("the automaton was asked"))
    assert ethics._word("minors", "A man, smiling, and his dog (a big one) in 2010!") is None


def test_a_text_that_nobody_reads_to_the_end_counts_as_both() -> None:
    text = "a cat " * 2_000_000
    assert ethics.minor_hint([text]) == ethics.sexual_hint(text) == ethics.UNREADABLE


def test_an_age_of_more_digits_than_python_reads_is_no_minors() -> None:
    assert ethics.minor_hint([f"a cat {'9' * 10_000} years old"]) is None
    assert ethics.minor_hint([f"a cat {'9' * 10_000}, 12 years old"]) == "12 years old"
