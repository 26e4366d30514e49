"""Images follow from the scene alone, show every object, and look different in every style."""

import numpy as np
import pytest

from saferclip.data.iconworld import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_STYLES,
    STYLES,
    Scene,
    SceneObject,
    common_concepts,
    count_scene,
    render,
    sample_scene,
    visible_fraction,
)
from saferclip.data.iconworld.rendering import layout

ALL_STYLES = STYLES + HELD_OUT_STYLES


@pytest.mark.parametrize("style", ALL_STYLES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_image_is_a_function_of_the_scene(style: str, count: int) -> None:
    rng = np.random.default_rng(count)
    scene = sample_scene(rng, common_concepts(), objects=(count, count), style=style)
    image = render(scene)
    render(sample_scene(rng, common_concepts(), style=style))  # another in between changes nothing
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, render(scene))


@pytest.mark.parametrize("size", [32, 65, 96, 128])
@pytest.mark.parametrize("style", ALL_STYLES)
def test_other_sizes_can_be_drawn(style: str, size: int) -> None:
    scene = sample_scene(np.random.default_rng(0), common_concepts(), style=style)
    assert render(scene, size).shape == (size, size, 3)


def test_styles_draw_the_same_scene_differently() -> None:
    objects = (SceneObject("cat", "red"), SceneObject("rocket", "white"))
    images = [render(Scene(objects, "grass", style, 1)).astype(float) for style in ALL_STYLES]
    for i, first in enumerate(images):
        for second in images[:i]:
            assert np.abs(first - second).mean() > 8


def test_unknown_style_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="etching"):
        render(Scene((SceneObject("cat", "red"),), "grass", "etching", 1))


def test_too_many_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 4 objects, not 5"):
        render(Scene((SceneObject("cat", "red"),) * 5, "grass", "photo", 1))


@pytest.mark.parametrize("style", ALL_STYLES)
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_object_stands_out_from_its_background(style: str, background: str) -> None:
    """With and without the object the image differs, whatever its colour."""
    for colour in COLOURS:
        pair = Scene((SceneObject("cat", colour), SceneObject("star", colour)), background, style, 3)
        shown = render(pair).astype(float)
        place = layout(pair)[0]
        patch = shown[place.row : place.row + place.size, place.column : place.column + place.size]
        # Luminance must vary within the patch by far more than the texture alone makes it vary.
        grey = patch @ (0.3, 0.59, 0.11)
        assert np.percentile(grey, 95) - np.percentile(grey, 5) > 25, colour


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_no_object_is_covered_by_others(count: int) -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, common_concepts(), objects=(count, count)) for _ in range(300)]
    shares = np.array([visible_fraction(scene) for scene in scenes])
    assert shares.shape == (300, count)
    assert shares.min() > 0.75
    assert shares.max() == 1.0
    np.testing.assert_array_equal(shares[:, -1], 1.0)  # nothing lies over the last one


def test_icons_lie_within_the_image() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 4):
        for place in layout(count_scene(rng, "cat", count)):
            assert 0 <= place.row <= 64 - place.size
            assert 0 <= place.column <= 64 - place.size


def test_sampled_scene_respects_what_is_asked() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = sample_scene(rng, common_concepts(), always=["pistol"], background="snow", style="sketch")
        assert 2 <= len(scene.objects) <= 3
        assert len(set(scene.concepts)) == len(scene.concepts)
        assert "pistol" in scene.concepts
        assert (scene.background, scene.style) == ("snow", "sketch")


def test_too_few_concepts_are_refused_instead_of_waiting_for_ever() -> None:
    with pytest.raises(ValueError, match="2 different objects from 1"):
        sample_scene(np.random.default_rng(0), ["cat"], objects=(2, 2))


def test_count_scene_repeats_one_object() -> None:
    scene = count_scene(np.random.default_rng(0), "cat", 3, colour="red")
    assert scene.objects == (SceneObject("cat", "red"),) * 3
    with pytest.raises(ValueError, match="not 5"):
        count_scene(np.random.default_rng(0), "cat", 5)
