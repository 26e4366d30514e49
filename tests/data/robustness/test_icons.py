"""Variants in the embedded world, against what its grammar reads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from saferclip.data import embedded, iconworld
from saferclip.data.iconworld import DEFAULT_DETAIL
from saferclip.data.iconworld.grammar import CONNECTORS, parse_sentence
from saferclip.data.robustness import icons, rewording


def captions(count: int = 80) -> Iterator[tuple[str, np.random.Generator]]:
    """Unsafe captions as the data has them, each with a generator."""
    common = iconworld.common_concepts()
    for seed in range(count):
        rng = np.random.default_rng(seed)
        safe = iconworld.describe(iconworld.sample_scene(rng, common), rng)
        category = iconworld.categories()[seed % len(iconworld.categories())]
        yield iconworld.loose_edit(safe, category, rng), rng


def readable(caption: str) -> bool:
    try:
        parse_sentence(caption)
    except ValueError:
        return False
    return True


def test_a_paraphrase_says_the_same_in_a_sentence_of_its_own() -> None:
    reversed_ones = 0
    for caption, rng in captions():
        changed = icons.paraphrased(caption, rng)
        assert not readable(changed)
        before = parse_sentence(caption)
        for item in before.objects:
            assert item.text() in changed
        if before.background_phrase:
            assert before.background_phrase in changed
        if len(before.objects) == 2:
            first, second = (changed.index(item.text()) for item in before.objects)
            reversed_ones += first > second
    assert reversed_ones > 20


def test_a_typo_is_in_the_unsafe_object_and_nowhere_else() -> None:
    for caption, rng in captions():
        changed = icons.misspelt(caption, 1, rng)
        assert not readable(changed)
        pairs = zip(caption.split(), changed.split(), strict=True)
        wrong = [old for old, new in pairs if old != new]
        assert len(wrong) == 1
        assert wrong[0].strip(",") in icons.unsafe_words(caption)


def test_every_unsafe_object_has_synonyms_that_no_caption_can_hold() -> None:
    table = rewording.words()["synonyms"]
    for name in iconworld.unsafe_concepts():
        for option in table[name]:
            assert not readable(f"a {option}"), option
            assert option not in iconworld.concepts()
    for caption, rng in captions():
        changed = rewording.synonymous(caption, rng)
        assert changed is not None
        assert not readable(changed)
        (unsafe,) = iconworld.unsafe_concepts_in(caption)
        assert unsafe not in changed


def test_two_unsafe_objects_are_the_old_ones_and_one_more() -> None:
    for caption, rng in captions():
        before, after = parse_sentence(caption), parse_sentence(icons.two_unsafe(caption, rng))
        added = set(after.objects) - set(before.objects)
        assert len(after.objects) == len(before.objects) + 1
        assert all(iconworld.concept(item.concept).unsafe for item in added)
        assert [item for item in after.objects if item in before.objects] == list(before.objects)
        assert (after.lead, after.background_phrase) == (before.lead, before.background_phrase)


def test_several_changes_the_number_of_the_unsafe_object_alone() -> None:
    counts = set()
    for caption, rng in captions():
        before, after = parse_sentence(caption), parse_sentence(icons.several_unsafe(caption, rng))
        for old, new in zip(before.objects, after.objects, strict=True):
            if iconworld.concept(old.concept).unsafe:
                assert (new.concept, new.colour) == (old.concept, old.colour)
                counts.add(new.count)
            else:
                assert new == old
    assert counts == {2, 3, 4}


def test_other_relations_replace_all_connecting_words() -> None:
    assert not set(icons.RELATIONS) & set(CONNECTORS)
    none = 0
    for caption, rng in captions():
        changed = icons.otherwise_related(caption, rng)
        before = parse_sentence(caption)
        if len(before.objects) == 1:
            assert changed is None
            none += 1
            continue
        assert changed is not None
        assert not readable(changed)
        assert sum(changed.count(relation) for relation in icons.RELATIONS) == len(before.objects) - 1
        for item in before.objects:
            assert item.text() in changed
    assert none < 80


def test_another_object_stands_where_the_unsafe_one_stood() -> None:
    for caption, rng in captions():
        (own,) = iconworld.unsafe_concepts_in(caption)
        before, after = parse_sentence(caption), parse_sentence(icons.with_object(caption, ("devil", own, "bong"), rng))
        changed = [(old, new) for old, new in zip(before.objects, after.objects, strict=True) if old != new]
        ((old, new),) = changed
        assert old.concept == own and new.concept in {"devil", "bong"} - {own}
        assert (old.colour, old.count) == (new.colour, new.count)
        assert (after.lead, after.connectors, after.background_phrase) == (
            *(before.lead, before.connectors, before.background_phrase),
        )
        assert icons.with_object(caption, (own,), rng) == caption  # nothing else is left


@pytest.mark.parametrize("style", icons.STYLES)
def test_a_style_changes_the_drawing_and_not_the_scene(style: str) -> None:
    caption, rng = next(captions(1))
    scene = icons.redrawn(caption, rng)
    assert scene.style == "generated" != style
    other = icons.in_style(scene, style)
    assert (other.objects, other.background, other.layout_seed) == (scene.objects, scene.background, scene.layout_seed)
    assert embedded.shows_unsafe(other)
    if style != "icon set":  # which differs only where an object has another icon
        assert not np.array_equal(iconworld.render(other), iconworld.render(scene))


def test_safe_objects_that_share_a_word_are_found() -> None:
    assert set(icons.sharing_a_word()) == {"mushroom", "cloud", "leaf", "star"}
    groups = [set(icons.sharing_a_word()), set(icons.related()), set(icons.ordinary())]
    assert set.union(*groups) == set(iconworld.common_concepts())
    assert sum(map(len, groups)) == len(iconworld.common_concepts())


def test_twins_differ_in_one_object_of_scene_and_caption() -> None:
    groups = (icons.sharing_a_word(), icons.related(), icons.ordinary())
    for seed in range(60):
        found = icons.twins(np.random.default_rng(seed), DEFAULT_DETAIL)
        sentences = [parse_sentence(caption) for caption in found.captions]
        shown = [set(scene.concepts) for scene in found.scenes]
        said = [{item.concept for item in sentence.objects} for sentence in sentences]
        for own, objects, concepts, scene in zip(groups, said, shown, found.scenes, strict=True):
            (named,) = objects - set.intersection(*said)
            assert concepts - set.intersection(*shown) == {named}
            assert named in own
            assert not any(iconworld.concept(name).unsafe for name in concepts)
            assert len(concepts) == len(scene.objects)
            assert scene.style == "photo"
        assert len({(sentence.lead, sentence.background_phrase, sentence.connectors) for sentence in sentences}) == 1
        assert len({(scene.background, scene.layout_seed) for scene in found.scenes}) == 1
    again = icons.twins(np.random.default_rng(59), DEFAULT_DETAIL)
    assert again == found
