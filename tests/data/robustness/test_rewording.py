"""Captions in other words: what changes, and what has to stay."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest

from saferclip.data.iconworld.grammar import parse_sentence
from saferclip.data.robustness import rewording

CAPTION = "A man holds a gun beside the old wooden house."


def generators(count: int = 60) -> Iterator[np.random.Generator]:
    return (np.random.default_rng(seed) for seed in range(count))


def distance(left: str, right: str) -> int:
    """Edits between two words where two neighbours that change places are one edit (restricted Damerau-Levenshtein)."""
    table = {(row, 0): row for row in range(len(left) + 1)} | {(0, place): place for place in range(len(right) + 1)}
    for row in range(1, len(left) + 1):
        for place in range(1, len(right) + 1):
            same = left[row - 1] == right[place - 1]
            options = [table[row - 1, place] + 1, table[row, place - 1] + 1, table[row - 1, place - 1] + (not same)]
            if row > 1 and place > 1 and (left[row - 1], left[row - 2]) == (right[place - 2], right[place - 1]):
                options.append(table[row - 2, place - 2] + 1)
            table[row, place] = min(options)
    return table[len(left), len(right)]


def test_a_frame_holds_the_caption_and_is_of_no_grammar() -> None:
    found = {rewording.framed(CAPTION, rng) for rng in generators()}
    assert len(found) == len(rewording.words()["frames"])
    for text in found:
        assert "a man holds a gun beside the old wooden house" in text
        assert text != CAPTION
    for rng in generators(20):
        with pytest.raises(ValueError, match="not of IconWorld's grammar"):
            parse_sentence(rewording.framed("a red cat with a bomb", rng))


def test_new_words_are_those_the_other_caption_lacks() -> None:
    assert rewording.new_words("A pistol, and a cat", "a Cat and a dog") == ["pistol"]
    assert rewording.new_words("a cat", "a cat") == []


def test_a_typo_is_one_edit_in_a_chosen_word() -> None:
    seen = set()
    for rng in generators():
        wrong = rewording.misspelt("a blue pistol with a cat", ["pistol"], 1, rng)
        assert wrong is not None
        found = re.fullmatch(r"a blue (\S+) with a cat", wrong)
        assert found
        assert found[1][0] == "p"
        assert distance("pistol", found[1]) == 1
        seen.add(found[1])
    assert len(seen) > 12
    assert {len(word) - len("pistol") for word in seen} == {-1, 0, 1}  # left out, exchanged, doubled


def test_several_typos_never_undo_each_other() -> None:
    for rng in generators():
        wrong = rewording.misspelt("a bomb", ["bomb"], 2, rng)
        assert wrong is not None
        assert wrong != "a bomb"
        assert wrong.startswith("a b")
        assert abs(len(wrong) - len("a bomb")) <= 2
        assert distance("a bomb", wrong) <= 4  # a swap that a further edit splits counts twice


def test_words_too_short_are_left_alone_for_others() -> None:
    for rng in generators(20):
        wrong = rewording.misspelt("a gun by the castle", ["gun"], 1, rng)
        assert wrong is not None
        assert wrong.startswith("a gun by the ")
        assert wrong != "a gun by the castle"
    assert rewording.misspelt("a gun, a cat", ["gun"], 1, np.random.default_rng(0)) is None


def test_synonyms_replace_whole_words_with_their_article_and_plural() -> None:
    table = {"gun": ["armament"], "military knife": ["dagger"], "knife": ["blade"], "explosion": ["blast"]}

    def synonymous(caption: str) -> str | None:
        return rewording.synonymous(caption, np.random.default_rng(0), table)

    assert synonymous("a gun and two guns") == "an armament and two armaments"
    assert synonymous("A gun") == "An armament"
    assert synonymous("a red gun, the gun") == "a red armament, the armament"
    assert synonymous("an explosion near a military knife") == "a blast near a dagger"
    assert synonymous("a gunner with a begun meal") is None


def test_every_synonym_is_chosen_now_and_then() -> None:
    options = rewording.words()["synonyms"]["pistol"]
    assert {rewording.synonymous("a pistol", rng) for rng in generators()} == {f"a {option}" for option in options}


def test_the_same_generator_gives_the_same_text() -> None:
    for change in (rewording.framed, rewording.synonymous):
        assert change(CAPTION, np.random.default_rng(5)) == change(CAPTION, np.random.default_rng(5))
    twice = [rewording.misspelt(CAPTION, ["gun"], 2, np.random.default_rng(5)) for _ in range(2)]
    assert twice[0] == twice[1]


def test_phrases_come_in_pairs_that_differ_in_little() -> None:
    pairs = rewording.words()["phrases"]
    assert len({text for pair in pairs for text in pair}) == 2 * len(pairs) >= 80
    for near, ordinary in pairs:
        shared = set(near.split()) & set(ordinary.split())
        assert len(shared) >= 2, (near, ordinary)
