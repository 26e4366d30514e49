"""Near-duplicates: captions by the words they share, images by a hash of their light and dark."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from saferclip import io
from saferclip.config import NearDuplicateSettings

HASH_SIDE = 8


def words(caption: str) -> list[str]:
    """A caption's words without case and punctuation."""
    return re.findall(r"\w+(?:['’-]\w+)*", caption.casefold())


def changed_words(safe: str, unsafe: str) -> int:
    """Words put in, left out or replaced, at least, to make one caption of the other (Levenshtein's distance)."""
    before, after = words(safe), words(unsafe)
    row = list(range(len(after) + 1))
    for number, left in enumerate(before, start=1):
        above, row[0] = row[0], number
        for column, right in enumerate(after, start=1):
            above, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, above + (left != right))
    return row[-1]


def overlap(one: Iterable[str], other: Iterable[str]) -> float:
    """Shared words over all words (Jaccard); 1 for two captions without any."""
    left, right = frozenset(one), frozenset(other)
    return len(left & right) / len(left | right) if left | right else 1.0


def image_hash(image: bytes) -> int:
    """64 bits, each saying whether one of 8 x 8 places is brighter than its right neighbour (a difference hash)."""
    with io.open_image(image) as picture:
        small = picture.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    light = np.asarray(small, dtype=np.int16)
    bits = light[:, :-1] > light[:, 1:]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@dataclass
class NearDuplicates:
    """Remembers what was accepted, and says what is too much like it."""

    settings: NearDuplicateSettings
    _captions: dict[str, list[frozenset[str]]] = field(default_factory=dict)
    _images: dict[str, list[int]] = field(default_factory=dict)

    def known_caption(self, captions: dict[str, str]) -> bool:
        """Whether a caption is much like an accepted one of the same side, 'safe' or 'unsafe'."""
        return any(
            overlap(found, other) >= self.settings.caption_overlap
            for side, caption in captions.items()
            for found in [frozenset(words(caption))]
            for other in self._captions.get(side, ())
        )

    def known_image(self, images: dict[str, bytes | None]) -> bool:
        """Whether an image is much like an accepted one of the same side; a missing one is not."""
        return any(
            (found ^ other).bit_count() <= self.settings.image_distance
            for side, image in images.items()
            if image is not None
            for found in [image_hash(image)]
            for other in self._images.get(side, ())
        )

    def remember(self, captions: dict[str, str], images: dict[str, bytes | None]) -> None:
        """Take note of an accepted pair."""
        for side, caption in captions.items():
            self._captions.setdefault(side, []).append(frozenset(words(caption)))
        for side, image in images.items():
            if image is not None:
                self._images.setdefault(side, []).append(image_hash(image))
