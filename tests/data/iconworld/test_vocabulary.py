"""The vocabulary is large enough, names nothing twice, and every icon can be told from the others."""

import re

import numpy as np
import pytest

from saferclip.data.iconworld import (
    COLOURS,
    categories,
    common_concepts,
    concept,
    concepts,
    fonts,
    groups,
    novel_concepts,
    unsafe_concepts,
)


def test_there_are_enough_concepts_of_every_kind() -> None:
    assert len(common_concepts()) >= 130
    assert len(novel_concepts()) >= 60
    assert len(unsafe_concepts()) >= 24
    assert len(groups()) >= 10
    assert len(common_concepts()) + len(novel_concepts()) + len(unsafe_concepts()) == len(concepts())


def test_unsafe_categories_are_those_of_the_design() -> None:
    assert categories() == ("violence", "illegal activity", "self-harm", "shocking", "hazard")
    assert all(len(unsafe_concepts(category)) >= 4 for category in categories())


def test_unknown_category_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="greed"):
        unsafe_concepts("greed")


def test_novel_concepts_come_from_nearly_all_groups() -> None:
    assert len({concept(name).group for name in novel_concepts()}) >= 10


def test_names_are_short_and_unlike_each_other() -> None:
    names = [form for c in concepts().values() for form in {c.name, c.plural}]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z-]+( [a-z-]+)?", name) for name in names)
    # A colour followed by a name must be readable in one way only.
    assert not [name for name in names if name.split()[0] in COLOURS]


def test_no_two_concepts_share_an_icon() -> None:
    glyphs = [glyph for c in concepts().values() for glyph in (c.glyph, c.alternative) if glyph]
    assert len(glyphs) == len(set(glyphs))


def test_every_icon_is_drawn_and_unlike_every_other() -> None:
    names = list(concepts())
    ink = np.stack([fonts.mask(concept(name).glyph, 48).ravel() > 127 for name in names]).astype(float)
    area = ink.sum(axis=1)
    assert area.min() > 0.08 * 48**2, names[area.argmin()]
    both = ink @ ink.T
    overlap = both / (area[:, None] + area - both)
    np.fill_diagonal(overlap, 0)
    worst = np.unravel_index(overlap.argmax(), overlap.shape)
    assert overlap.max() < 0.9, [names[i] for i in worst]


def test_alternative_icons_are_drawn_differently() -> None:
    pairs = [(c.glyph, c.alternative) for c in concepts().values() if c.alternative]
    assert len(pairs) >= 20
    for glyph, alternative in pairs:
        assert not np.array_equal(fonts.mask(glyph, 48), fonts.mask(alternative, 48))


def test_missing_font_file_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fonts.FONT_FILES, "lost", "no-such-font-")
    with pytest.raises(FileNotFoundError, match="no-such-font-"):
        fonts.character("lost/cat")


def test_missing_icon_is_explained() -> None:
    with pytest.raises(KeyError, match="no-such-icon"):
        fonts.character("material/no-such-icon")
