"""Captions say what the detail allows and are read back exactly; imagined scenes follow them."""

from collections import Counter

import numpy as np
import pytest

from saferclip.data.iconworld import (
    DEFAULT_DETAIL,
    FULL_DETAIL,
    STYLES,
    Detail,
    common_concepts,
    count_scene,
    describe,
    imagine,
    novel_concepts,
    parse,
    sample_scene,
    unsafe_concepts,
)
from saferclip.data.iconworld.grammar import article, parse_sentence

EVERYTHING = common_concepts() + novel_concepts() + unsafe_concepts()


def test_parse_recovers_what_a_full_description_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        scene = sample_scene(rng, EVERYTHING, objects=(1, 4))
        mention = parse(describe(scene, rng, FULL_DETAIL))
        assert sorted(mention.objects) == sorted((o.concept, o.colour) for o in scene.objects)
        assert mention.background == scene.background
        assert mention.count is None


def test_writing_what_was_read_gives_the_same_words() -> None:
    rng = np.random.default_rng(1)
    for number in range(2000):
        caption = describe(sample_scene(rng, EVERYTHING, objects=(1, 4)), rng, DEFAULT_DETAIL)
        assert parse_sentence(caption).text() == caption
        counted = describe(count_scene(rng, EVERYTHING[number % len(EVERYTHING)], number % 4 + 1), rng)
        assert parse_sentence(counted).text() == counted


def test_default_detail_leaves_out_as_much_as_it_says() -> None:
    rng = np.random.default_rng(2)
    scenes = [sample_scene(rng, common_concepts()) for _ in range(3000)]
    mentions = [parse(describe(scene, rng)) for scene in scenes]
    colours = [colour for mention in mentions for _, colour in mention.objects]
    assert all(len(mention.objects) == 2 for mention in mentions)
    assert np.mean([c is not None for c in colours]) == pytest.approx(0.7, abs=0.03)
    assert np.mean([m.background is not None for m in mentions]) == pytest.approx(0.5, abs=0.03)
    for scene, mention in zip(scenes, mentions, strict=True):
        truth = {item.concept: item.colour for item in scene.objects}
        assert all(colour in (None, truth[name]) for name, colour in mention.objects)
        assert mention.background in (None, scene.background)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_copies_are_counted(count: int) -> None:
    rng = np.random.default_rng(count)
    for name in EVERYTHING:
        mention = parse(describe(count_scene(rng, name, count, colour="red"), rng, FULL_DETAIL))
        assert mention.objects == ((name, "red"),)
        assert mention.count == count


def test_caption_wording() -> None:
    assert article("orange cat") == "an"
    assert article("unicorn") == "a"
    assert article("hourglass") == "an"
    assert parse_sentence("there are some red scissors and a cat").text() == "there are some red scissors and a cat"
    assert parse("A photo of a cat on the grass.").background == "grass"
    assert parse("three red cats").count == 3


@pytest.mark.parametrize(
    ("caption", "word"),
    [
        ("a photo of a red flurb", "flurb"),
        ("a cat on the moon", "on"),
        ("a cat and", "its end"),
        ("", "its end"),
        ("at night a cat", "a"),
        ("two cat", "cat"),
    ],
)
def test_what_cannot_be_read_is_named(caption: str, word: str) -> None:
    with pytest.raises(ValueError, match="not of IconWorld's grammar") as error:
        parse(caption)
    assert word in str(error.value)
    assert repr(caption) in str(error.value)


def test_faithful_imagination_shows_all_that_is_said() -> None:
    rng = np.random.default_rng(3)
    for _ in range(1000):
        caption = describe(sample_scene(rng, EVERYTHING), rng)
        mention = parse(caption)
        scene = imagine(caption, rng, fidelity=1.0)
        shown = {item.concept: item.colour for item in scene.objects}
        assert scene.style == "generated"
        assert mention.background in (None, scene.background)
        assert all(name in shown and colour in (None, shown[name]) for name, colour in mention.objects)
        assert len(shown) == len(scene.objects) <= 3


def test_imagination_fills_in_what_is_left_open() -> None:
    rng = np.random.default_rng(4)
    scenes = [imagine("a cat", rng, fidelity=1.0) for _ in range(500)]
    assert len({scene.background for scene in scenes}) == 8
    assert len({item.colour for scene in scenes for item in scene.objects}) == 10
    assert {len(scene.objects) for scene in scenes} == {2, 3}
    assert all(Counter(scene.concepts)["cat"] == 1 for scene in scenes)
    alone = imagine("a cat", rng, concepts_for_extras=())
    assert alone.concepts == ("cat",)


def test_imagination_forgets_at_the_given_rate_but_never_everything() -> None:
    rng = np.random.default_rng(5)
    scenes = [imagine("a cat and a pistol", rng, concepts_for_extras=(), fidelity=0.8) for _ in range(2000)]
    kept = np.mean(["pistol" in scene.concepts for scene in scenes])
    assert kept == pytest.approx(0.8 + 0.2 * 0.2 / 2, abs=0.03)  # one of two is kept if both would go
    assert all(imagine("a cat", rng, concepts_for_extras=(), fidelity=0.0).objects for _ in range(20))


def test_imagined_counts_are_kept() -> None:
    scene = imagine("three red cats on grass", np.random.default_rng(0), "sketch", fidelity=1.0)
    assert scene.concepts == ("cat",) * 3
    assert scene.style in STYLES


def test_detail_can_silence_everything_but_one_name() -> None:
    rng = np.random.default_rng(6)
    mention = parse(describe(sample_scene(rng, common_concepts()), rng, Detail(0.0, 0.0, 1)))
    assert len(mention.objects) == 1
    assert mention.objects[0][1] is None
    assert mention.background is None
