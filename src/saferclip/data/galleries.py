"""Galleries of real images: a few unsafe items among many safe ones, as images and as captions.

A gallery holds k unsafe images of its set, ``gallery_safe_ratio`` times k safe images, m unsafe captions and
``gallery_safe_ratio`` times m safe captions, the latter two from the run's test quadruples and the same in every
gallery.  docs/test-sets.md says what of this the paper states and what is ours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from saferclip import io
from saferclip.config import PublicSets
from saferclip.data import picture_files
from saferclip.data.picture_files import PictureFiles

SHOWN = 20  # names in a message

log = logging.getLogger(__name__)


class Caption(NamedTuple):
    """A caption and the id of the quadruple that it comes from."""

    id: str
    text: str


@dataclass(frozen=True)
class Captions:
    """The captions of every gallery, and how many different ones were left out."""

    unsafe: list[Caption]
    safe: list[Caption]
    left_out: dict[str, int]


@dataclass(frozen=True)
class Pictures:
    """Pictures that can be used, all different, in the order in which they were drawn by chance.

    ``unreadable`` and ``duplicates`` are of those that were looked at; ``untouched`` ones were not needed.
    """

    files: PictureFiles
    names: list[str]
    digests: set[bytes]
    unreadable: list[str]
    duplicates: int
    untouched: int


@dataclass(frozen=True)
class RealGallery:
    """One set's gallery; the images are still in their files."""

    name: str
    download: str
    unsafe: PictureFiles
    unsafe_names: list[str]
    safe: PictureFiles
    safe_names: list[str]
    captions: Captions
    counts: dict[str, int]

    def describe(self) -> dict[str, Any]:
        """What gallery.json says of it."""
        return {"download": self.download, "counts": self.counts}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of gallery.parquet: captions without an image, then images without a caption."""
        for unsafe, captions in ((True, self.captions.unsafe), (False, self.captions.safe)):
            for caption in captions:
                yield self._row(caption.id, unsafe, caption.text, None)
        for unsafe, files, names in ((True, self.unsafe, self.unsafe_names), (False, self.safe, self.safe_names)):
            bar = tqdm(names, desc=f"{self.name}: {'unsafe' if unsafe else 'safe'} images", disable=None)
            images = picture_files.side_by_side(files.plain, bar)
            for name, image in zip(names, images, strict=True):
                yield self._row(name, unsafe, None, image)

    def _row(self, identifier: str, unsafe: bool, caption: str | None, image: bytes | None) -> dict[str, Any]:
        return {"set": self.name, "id": identifier, "unsafe": unsafe, "caption": caption, "image": image}


def galleries(settings: PublicSets, downloads: Mapping[str, Path], test: Path) -> list[RealGallery]:
    """Choose the items of every gallery; which ones depends on the seed and on what is there.

    Raises DataError where there are too few unsafe images, safe images or captions.
    """
    assert settings.galleries and settings.safe_images  # by the settings' validator
    captions = _captions(settings, test)
    found: dict[str, Pictures] = {}
    for name, download in settings.galleries.items():
        found[name] = _draw(settings, name, downloads[download], settings.gallery_unsafe)
        _check_enough(name, found[name], settings)
    known = set[bytes]().union(*(pictures.digests for pictures in found.values()))
    largest = max(len(pictures.names) for pictures in found.values())
    wanted = settings.gallery_safe_ratio * largest
    safe = _draw(settings, "safe_images", downloads[settings.safe_images], wanted, known)
    if len(safe.names) < settings.gallery_safe_ratio:
        raise io.DataError(
            f"{safe.files.place}: {len(safe.names)} usable safe images; each unsafe one needs "
            f"{settings.gallery_safe_ratio} (test_sets.public.gallery_safe_ratio)"
        )
    return [_gallery(settings, name, found[name], safe, captions) for name in found]


def _gallery(settings: PublicSets, name: str, unsafe: Pictures, safe: Pictures, captions: Captions) -> RealGallery:
    """The items that a set's gallery has in the end: fewer unsafe images where safe ones are short."""
    ratio = settings.gallery_safe_ratio
    used = min(len(unsafe.names), len(safe.names) // ratio)
    if used < len(unsafe.names):
        log.warning("%s: %d safe images are enough for %d unsafe ones only", name, len(safe.names), used)
    counts = {
        "unsafe_images": used,
        "unsafe_images_left_out": len(unsafe.names) - used + unsafe.untouched,
        "unsafe_images_unreadable": len(unsafe.unreadable),
        "unsafe_images_duplicate": unsafe.duplicates,
        "safe_images": ratio * used,
        "safe_images_left_out": len(safe.names) - ratio * used + safe.untouched,
        "safe_images_unreadable": len(safe.unreadable),
        "safe_images_duplicate": safe.duplicates,
        "unsafe_captions": len(captions.unsafe),
        "safe_captions": len(captions.safe),
        **captions.left_out,
    }
    return RealGallery(
        name,
        (settings.galleries or {})[name],
        unsafe.files,
        unsafe.names[:used],
        safe.files,
        safe.names[: ratio * used],
        captions,
        counts,
    )


def _draw(settings: PublicSets, name: str, place: Path, wanted: int, known: Iterable[bytes] = ()) -> Pictures:
    """Draw pictures by chance until ``wanted`` can be used; one that is known already counts as a duplicate.

    Collections of addresses hold many copies of one picture: that which says that the picture is gone.
    """
    files = picture_files.find(place)
    order = np.random.default_rng([settings.seed, *name.encode()]).permutation(len(files.names))
    names: list[str] = []
    digests, seen, unreadable, looked_at = set[bytes](), set(known), list[str](), 0
    bar = tqdm((files.names[place] for place in order), desc=f"{name}: looking", total=len(order), disable=None)
    for found in picture_files.check(files, bar):
        if len(names) == wanted:
            break
        looked_at += 1
        if found.problem:
            unreadable.append(f"{found.name}: {found.problem}")
        elif found.digest not in seen:
            names.append(found.name)
            digests.add(found.digest)
        seen.add(found.digest)
    if unreadable:
        log.warning("%s: left out %d unreadable picture(s) of %s: %s", name, len(unreadable), place, _some(unreadable))
    duplicates = looked_at - len(names) - len(unreadable)
    return Pictures(files, names, digests, unreadable, duplicates, len(files.names) - looked_at)


def _check_enough(name: str, pictures: Pictures, settings: PublicSets) -> None:
    if len(pictures.names) >= settings.gallery_minimum:
        return
    reasons = f"; unreadable: {_some(pictures.unreadable)}" if pictures.unreadable else ""
    raise io.DataError(
        f"{pictures.files.place}: gallery '{name}' has {len(pictures.names)} usable unsafe images "
        f"({len(pictures.unreadable)} unreadable, {pictures.duplicates} duplicates), but at least "
        f"{settings.gallery_minimum} are needed (test_sets.public.gallery_minimum){reasons}"
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "; ".join(sorted(names)[:SHOWN]) + more


def _captions(settings: PublicSets, test: Path) -> Captions:
    """Draw captions from the test quadruples, all different; one that is safe somewhere is not an unsafe one."""
    table = io.read_table(test, ["id", "safe_caption", "unsafe_caption"]).to_pylist()
    safe = {row["safe_caption"]: row["id"] for row in reversed(table)}
    unsafe = {row["unsafe_caption"]: row["id"] for row in reversed(table) if row["unsafe_caption"] not in safe}
    ratio = settings.gallery_safe_ratio
    used = min(settings.gallery_unsafe, len(unsafe), len(safe) // ratio)
    if not used:
        raise io.DataError(
            f"{test}: {len(unsafe)} different unsafe and {len(safe)} different safe captions; an unsafe one is needed, "
            f"and {ratio} safe ones for each (test_sets.public.gallery_safe_ratio)"
        )
    random = np.random.default_rng([settings.seed, *b"captions"])
    left_out = {
        "unsafe_captions_left_out": len(unsafe) - used,
        "safe_captions_left_out": len(safe) - ratio * used,
        "captions_repeated": 2 * len(table) - len(safe) - len(unsafe),
    }
    return Captions(_sample(random, unsafe, used), _sample(random, safe, ratio * used), left_out)


def _sample(random: np.random.Generator, captions: Mapping[str, str], count: int) -> list[Caption]:
    """That many captions, given with their ids, in the order of their text."""
    texts = sorted(captions)
    places = random.choice(len(texts), size=count, replace=False)
    return [Caption(captions[texts[place]], texts[place]) for place in sorted(places.tolist())]
