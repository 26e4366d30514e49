"""Minimal edits change one thing, loose ones more, and both make a caption unsafe."""

from difflib import SequenceMatcher

import numpy as np
import pytest

from saferclip.data.iconworld import (
    FULL_DETAIL,
    categories,
    common_concepts,
    concept,
    count_scene,
    describe,
    harmless_caption,
    harmless_scene,
    loose_edit,
    minimal_edit,
    parse,
    sample_scene,
    unsafe_concepts,
    unsafe_concepts_in,
)


@pytest.fixture(scope="module")
def captions() -> list[str]:
    """Captions as ViSU-mini and NSFW-Caps-mini have them."""
    rng = np.random.default_rng(0)
    return [describe(sample_scene(rng, common_concepts()), rng) for _ in range(1000)]


def alike(first: str, second: str) -> float:
    """Share of words in common, in order."""
    return SequenceMatcher(None, first.split(), second.split()).ratio()


def without_articles(caption: str) -> list[str]:
    return [word for word in caption.split() if word not in {"a", "an", "some", "is", "are"}]


@pytest.mark.parametrize("edit", [minimal_edit, loose_edit])
def test_edited_caption_names_one_unsafe_object_of_the_category(edit, captions: list[str]) -> None:
    rng = np.random.default_rng(1)
    for number, caption in enumerate(captions):
        category = categories()[number % len(categories())]
        (unsafe,) = unsafe_concepts_in(edit(caption, category, rng))
        assert concept(unsafe).group == category


def test_minimal_edit_changes_one_object_and_nothing_else(captions: list[str]) -> None:
    rng = np.random.default_rng(2)
    added = 0
    for caption in captions:
        edited = minimal_edit(caption, "violence", rng)
        before, after = parse(caption), parse(edited)
        assert before.background == after.background
        changes = [
            change
            for change in SequenceMatcher(None, without_articles(caption), without_articles(edited)).get_opcodes()
            if change[0] != "equal"
        ]
        assert len(changes) == 1
        if len(after.objects) > len(before.objects):
            added += 1
            assert after.objects[:-1] == before.objects
        else:
            pairs = list(zip(before.objects, after.objects, strict=True))
            assert sum(old != new for old, new in pairs) == 1
            assert all(old[1] == new[1] for old, new in pairs)
    assert 0.4 < added / len(captions) < 0.6


def test_minimal_edits_are_closer_than_loose_ones(captions: list[str]) -> None:
    rng = np.random.default_rng(3)
    minimal = np.mean([alike(caption, minimal_edit(caption, "hazard", rng)) for caption in captions])
    loose = np.mean([alike(caption, loose_edit(caption, "hazard", rng)) for caption in captions])
    assert 0.75 < minimal < 0.9
    assert 0.5 < loose < 0.65


def test_unsafe_objects_can_be_narrowed(captions: list[str]) -> None:
    rng = np.random.default_rng(4)
    assert all(unsafe_concepts_in(minimal_edit(c, "violence", rng, ["bomb"])) == ["bomb"] for c in captions[:50])
    with pytest.raises(ValueError, match="violence"):
        minimal_edit(captions[0], "violence", rng, ["skull"])


def test_crowded_captions_are_edited_by_replacing() -> None:
    rng = np.random.default_rng(5)
    for _ in range(100):
        full = describe(sample_scene(rng, common_concepts(), objects=(3, 3)), rng, FULL_DETAIL)
        assert len(parse(minimal_edit(full, "shocking", rng)).objects) == 3
        counted = describe(count_scene(rng, "cat", 4), rng)
        assert parse(minimal_edit(counted, "shocking", rng)).count == 4


def test_safe_captions_name_nothing_unsafe(captions: list[str]) -> None:
    assert all(unsafe_concepts_in(caption) == [] for caption in captions)
    assert len(set(unsafe_concepts())) == len(unsafe_concepts())


def test_edits_follow_from_the_generator(captions: list[str]) -> None:
    for edit in (minimal_edit, loose_edit):
        first, second = (edit(captions[0], "hazard", np.random.default_rng(9)) for _ in range(2))
        assert first == second


def test_harmless_caption_replaces_what_is_unsafe_and_nothing_else(captions: list[str]) -> None:
    rng = np.random.default_rng(6)
    for number, caption in enumerate(captions):
        unsafe = minimal_edit(caption, categories()[number % len(categories())], rng)
        harmless = harmless_caption(unsafe, rng, common_concepts())
        before, after = parse(unsafe), parse(harmless)
        assert not unsafe_concepts_in(harmless)
        assert after.background == before.background and after.counts == before.counts
        for (name, colour), (stand_in, stand_in_colour) in zip(before.objects, after.objects, strict=True):
            assert colour == stand_in_colour
            assert (name != stand_in) == concept(name).unsafe
        assert len({name for name, _ in after.objects}) == len(after.objects)


def test_harmless_scene_keeps_all_but_what_is_unsafe() -> None:
    rng = np.random.default_rng(7)
    for _ in range(100):
        scene = sample_scene(rng, common_concepts(), always=["pistol"])
        harmless = harmless_scene(scene, rng, common_concepts())
        changed = [old for old, new in zip(scene.objects, harmless.objects, strict=True) if old != new]
        assert [item.concept for item in changed] == ["pistol"]
        assert len(set(harmless.concepts)) == len(harmless.concepts)
        assert not any(concept(name).unsafe for name in harmless.concepts)
        assert (harmless.background, harmless.style, harmless.layout_seed) == (
            *(scene.background, scene.style, scene.layout_seed),
        )
