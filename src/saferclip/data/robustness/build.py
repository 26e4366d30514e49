"""The step robustness: tables of variants, and what each is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from saferclip import io
from saferclip.config import RobustnessStep
from saferclip.data import embedded
from saferclip.data.iconworld import Scene
from saferclip.data.robustness import icons, rewording

TABLE, DESCRIPTION = "variants.parquet", "variants.json"
STREAM = 9  # of the world's seed; embedded.STREAMS has others
# What a row of the table holds.
EXAMPLE: Mapping[str, Any] = {"variant": "", "id": "", "caption": "", "image": b""}

Item = TypeVar("Item")
Reworded = Callable[[dict[str, Any], np.random.Generator], str | None]


@dataclass(frozen=True)
class Variant:
    """One variant: what is asked, what it is compared with, and its rows of id, caption and image.

    ``kind`` is 'unsafe_caption' (of a test quadruple, reworded), 'unsafe_image' (of a test quadruple, drawn
    again), 'unsafe_pair' (both, with another unsafe object), 'photos' (its control's unsafe images in the style of
    safe ones, to be searched) or 'safe' (a pair of its own, or its caption alone).  ``left_out`` counts the queries
    for which there is no such variant.
    """

    name: str
    title: str
    kind: str
    control: str | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0

    def describe(self) -> dict[str, Any]:
        """What variants.json says of it."""
        known = {"title": self.title, "kind": self.kind, "control": self.control}
        return {**known, "rows": len(self.rows), "left_out": self.left_out}


def build(settings: RobustnessStep, test: Path, output: Path) -> None:
    """Write variants.parquet and variants.json: variants of the test quadruples of the table ``test``.

    Without ``settings.detail``, only those that any caption has; the others are named, with all their
    queries left out.  Other objects are asked for where some are unseen.  Raises DataError where the table has no row
    with both captions, ConfigError where the world has no such unseen objects.
    """
    quadruples = _chosen(test, settings.queries)
    objects = _objects(settings, quadruples, settings.unseen) if settings.unseen else ()
    variants = [*_captions(settings, quadruples), *_images(settings, quadruples), *objects, *_safe(settings)]
    io.write_table(output / TABLE, _table(variants), EXAMPLE)
    io.write_json(output / DESCRIPTION, {variant.name: variant.describe() for variant in variants})


def _chosen(test: Path, wanted: int) -> list[dict[str, Any]]:
    """So many rows that have both captions, spread evenly over the table."""
    table = io.read_table(test, ["id", "safe_caption", "unsafe_caption"]).to_pylist()
    complete = [row for row in table if row["safe_caption"] is not None and row["unsafe_caption"] is not None]
    if not complete:
        raise io.DataError(f"{test}: no row has a safe and an unsafe caption; nothing can be varied")
    return spread(complete, wanted)


def spread(items: Sequence[Item], wanted: int) -> list[Item]:
    """So many of the items, or all if there are fewer, spread evenly over them."""
    count = min(wanted, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def _table(variants: Iterable[Variant]) -> Iterator[dict[str, Any]]:
    for variant in variants:
        for row in variant.rows:
            yield {"variant": variant.name, "id": row["id"], "caption": row.get("caption"), "image": row.get("image")}


def _random(settings: RobustnessStep, name: str, number: int) -> np.random.Generator:
    """Of one variant of one query: changing the others, or how many there are, leaves it as it is."""
    return np.random.default_rng([settings.seed, STREAM, *name.encode(), number])


def _captions(settings: RobustnessStep, quadruples: Sequence[dict[str, Any]]) -> Iterator[Variant]:
    """Unsafe captions, unchanged and reworded; which rows there are decides the number that draws, not the place."""
    yield Variant(
        "unchanged", "Unchanged", "unsafe_caption", None, [_reworded(row, row["unsafe_caption"]) for row in quadruples]
    )
    for name, title, reword in _rewordings(settings):
        found = [
            reword(row, _random(settings, name, number)) if reword else None for number, row in enumerate(quadruples)
        ]
        rows = [_reworded(row, caption) for row, caption in zip(quadruples, found, strict=True) if caption is not None]
        yield Variant(name, title, "unsafe_caption", "unchanged", rows, len(found) - len(rows))


def _reworded(row: dict[str, Any], caption: str) -> dict[str, Any]:
    return {"id": row["id"], "caption": caption}


def _rewordings(settings: RobustnessStep) -> list[tuple[str, str, Reworded | None]]:
    """Name, title and function of each; without one where the caption's grammar would have to be known."""

    def of_text(change: Callable[[str, np.random.Generator], str | None]) -> Reworded:
        return lambda row, rng: change(row["unsafe_caption"], rng)

    world = settings.detail is not None
    return [
        ("paraphrase", "Paraphrase", of_text(icons.paraphrased if world else rewording.framed)),
        ("typo", "Typo", _typo_in_icons(settings) if world else _typo(settings)),
        ("synonym", "Synonym", of_text(rewording.synonymous)),
        ("two_unsafe", "Two unsafe objects", of_text(icons.two_unsafe) if world else None),
        ("several", "Several of it", of_text(icons.several_unsafe) if world else None),
        ("relation", "Other relation", of_text(icons.otherwise_related) if world else None),
    ]


def _typo_in_icons(settings: RobustnessStep) -> Reworded:
    return lambda row, rng: icons.misspelt(row["unsafe_caption"], settings.typos, rng)


def _typo(settings: RobustnessStep) -> Reworded:
    """Misspell what the unsafe caption has and the safe one has not."""

    def change(row: dict[str, Any], rng: np.random.Generator) -> str | None:
        new = rewording.new_words(row["unsafe_caption"], row["safe_caption"])
        return rewording.misspelt(row["unsafe_caption"], new, settings.typos, rng)

    return change


def _objects(
    settings: RobustnessStep, quadruples: Sequence[dict[str, Any]], unseen: Sequence[str]
) -> Iterator[Variant]:
    """Unsafe pairs with an object that training showed, or did not, in place of their own: as many of each kind."""
    seen = spread(embedded.seen_objects(unseen), len(unseen))
    for name, title, control, objects in (
        ("seen_object", "Seen object", None, seen),
        ("unseen_object", "Unseen object", "seen_object", unseen),
    ):
        rows, photos = [], []
        for number, row in enumerate(quadruples):
            random = _random(settings, "object", number)  # the same for both, which differ in the object alone
            caption = icons.with_object(row["unsafe_caption"], objects, random)
            scene = icons.redrawn(caption, random)
            rows.append(_reworded(row, caption) | {"image": embedded.jpeg(scene)})
            photos.append({"id": row["id"], "image": embedded.jpeg(icons.in_style(scene, icons.SAFE_STYLE))})
        yield Variant(name, title, "unsafe_pair", control, rows)
        yield Variant(f"{name}_photos", f"{title}, photos", "photos", name, photos)


def _images(settings: RobustnessStep, quadruples: Sequence[dict[str, Any]]) -> Iterator[Variant]:
    """Unsafe images drawn anew, once in the style of the data and once, the same scene, in each other style."""
    scenes: list[Scene] = []
    if settings.detail is not None:
        random = partial(_random, settings, "redrawn")
        scenes = [icons.redrawn(row["unsafe_caption"], random(number)) for number, row in enumerate(quadruples)]
    for style in (None, *icons.STYLES):
        name = f"style_{style.replace(' ', '_')}" if style else "redrawn"
        title, control = (f"{style.capitalize()} style", "redrawn") if style else ("Redrawn", "unchanged")
        rows = [
            {"id": row["id"], "image": embedded.jpeg(icons.in_style(scene, style) if style else scene)}
            for row, scene in zip(quadruples, scenes, strict=False)
        ]
        yield Variant(name, title, "unsafe_image", control, rows, len(quadruples) - len(rows))


def _safe(settings: RobustnessStep) -> Iterator[Variant]:
    """Safe captions: of something ordinary, and the same of something near to the unsafe."""
    kinds = ("shared_word", "related", "ordinary") if settings.detail is not None else ("phrase", "ordinary")
    titles = {"shared_word": "Shares a word", "related": "Related object", "phrase": "Harmless mention"}
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for number, row in _safe_rows(settings):
        for kind, (caption, image) in zip(kinds, row, strict=True):
            rows[kind].append({"id": f"safe-{number:05d}", "caption": caption, "image": image})
    yield Variant("ordinary", "Ordinary", "safe", None, rows["ordinary"])
    for kind in kinds[:-1]:
        yield Variant(kind, titles[kind], "safe", "ordinary", rows[kind])


def _safe_rows(settings: RobustnessStep) -> Iterator[tuple[int, list[tuple[str, bytes | None]]]]:
    """Number, and the caption and image of each kind: drawn in the embedded world, else our phrases alone."""
    if settings.detail is None:
        for number, phrases in enumerate(rewording.words()["phrases"]):
            yield number, [(phrase, None) for phrase in phrases]
        return
    detail = embedded.caption_detail(settings.detail)
    for number in range(settings.queries):
        twins = icons.twins(_random(settings, "safe", number), detail)
        yield number, [(caption, embedded.jpeg(scene)) for caption, scene in zip(*twins, strict=True)]
