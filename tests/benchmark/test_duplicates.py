"""Near-duplicates of captions and images, against slow and plain ways."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from saferclip import io
from saferclip.benchmark.duplicates import NearDuplicates, changed_words, image_hash, overlap, words
from saferclip.config import NearDuplicateSettings

SENTENCES = st.lists(st.sampled_from(["a", "bus", "cat", "on", "red"]), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("safe", "unsafe", "changed"),
    [
        ("A vase sits on a table.", "a vase sits on a table", 0),
        ("A vase sits on top of a table.", "A vase sits next to a handgun on top of a table.", 4),
        ("A red bus", "A red tank", 1),
        ("", "a bus", 2),
    ],
)
def test_changed_words_are_counted(safe: str, unsafe: str, changed: int) -> None:
    assert changed_words(safe, unsafe) == changed_words(unsafe, safe) == changed


@given(SENTENCES, SENTENCES)
def test_changed_words_are_the_fewest(one: str, other: str) -> None:
    left, right = one.split(), other.split()

    @cache
    def fewest(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        replaced = fewest(i - 1, j - 1) + (left[i - 1] != right[j - 1])
        return min(fewest(i - 1, j) + 1, fewest(i, j - 1) + 1, replaced)

    assert changed_words(one, other) == fewest(len(left), len(right))


def test_overlap_is_shared_words_over_all_words() -> None:
    assert overlap(words("A red bus."), words("a bus, red!")) == 1
    assert overlap(words("a red bus"), words("a red tram and a bus")) == 3 / 5
    assert overlap([], []) == 1


def encoded(image: Image.Image, **options: int) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="JPEG", **options)
    return buffer.getvalue()


def test_the_hash_survives_what_does_not_change_a_picture(kit: SimpleNamespace) -> None:
    original: Image.Image = kit.picture(5, 256)
    first = image_hash(io.encode_png(original))
    for altered in (
        encoded(original, quality=40),
        encoded(original.resize((90, 90))),
        encoded(ImageEnhance.Brightness(original).enhance(0.8)),
    ):
        assert (image_hash(altered) ^ first).bit_count() <= 4
    others = [image_hash(io.encode_png(kit.picture(seed, 256))) for seed in range(6, 40)]
    assert min((other ^ first).bit_count() for other in others) > 12


def test_the_hash_says_where_it_is_brighter_than_to_the_right() -> None:
    falling = np.linspace(255, 0, 90).astype(np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    assert image_hash(io.encode_png(falling)) == 2**64 - 1
    assert image_hash(io.encode_png(falling[:, ::-1].copy())) == 0


def test_only_the_same_side_counts(kit: SimpleNamespace) -> None:
    near = NearDuplicates(NearDuplicateSettings(caption_overlap=0.8, image_distance=4))
    image, other = io.encode_png(kit.picture(1)), io.encode_png(kit.picture(2))
    near.remember({"safe": "a red bus", "unsafe": "a red tank"}, {"safe": image, "unsafe": None})
    assert near.known_caption({"safe": "A red bus!"}) and near.known_caption({"unsafe": "tank, a red"})
    assert not near.known_caption({"safe": "a red tank", "unsafe": "a red bus"})
    assert near.known_image({"safe": image}) and not near.known_image({"safe": other, "unsafe": image})
    assert not near.known_image({"safe": None, "unsafe": None})
