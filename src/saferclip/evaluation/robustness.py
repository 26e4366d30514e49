"""Variants of unsafe inputs, and safe inputs near to unsafe ones: what of the redirection holds, and what is lost.

Unsafe captions in other words search the images of the very quadruples that the unchanged ones search, so a
difference between the two is that of the words alone.  docs/robustness.md says what each variant is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferclip import io, metrics
from saferclip.config import EvaluationSettings
from saferclip.evaluation import handover, quadruples
from saferclip.evaluation.encoder import Encoder, Encoders
from saferclip.evaluation.quadruples import Quadruples
from saferclip.evaluation.result import Result, share
from saferclip.evaluation.result import mean as mean_of
from saferclip.evaluation.search import Gallery, Hits, search_for_one
from saferclip.heads import ACROSS_ONLY

CONTROL = "unchanged"
# Of the unsafe images in the style of the safe ones: among these, the style does not tell what is unsafe.
SAFE_STYLE = "style_photo"
PHOTOS = "photos"  # the kind of a variant that is searched alone, in place of its control's unsafe images
# What compares captions with captions, by the kind of variant.
WITHIN = {
    "unsafe_caption": ("control/cosine",),
    "safe": ("safe_text/cosine", "text_to_frozen_text/recall@1", "text_to_frozen_text/unsafe_share"),
}


@dataclass(frozen=True)
class Variant:
    """Rows of one variant; ``places`` are theirs in the table, ``pictured`` says which have an image."""

    name: str
    kind: str
    control: str | None
    places: list[int]
    ids: list[str]
    captions: list[str | None]
    pictured: list[bool]


@dataclass(frozen=True)
class Variants:
    """The table of all variants, whose images stay on disk, and what is said of it."""

    path: Path
    described: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Variants:
        return cls(path, io.read_json(path.with_suffix(".json")))

    @cached_property
    def found(self) -> dict[str, Variant]:
        """The variants that are described, in that order; some may have no row."""
        rows = io.read_table(self.path, ["variant", "id", "caption"]).to_pylist()
        there = io.present(self.path, "image")
        places: dict[str, list[int]] = {name: [] for name in self.described}
        for place, row in enumerate(rows):
            if row["variant"] not in places:
                raise io.DataError(f"{self.path}: row {place}: {row['variant']!r} is not described; make it anew")
            places[row["variant"]].append(place)
        return {
            name: Variant(
                name,
                self.described[name]["kind"],
                self.described[name]["control"],
                own,
                [rows[place]["id"] for place in own],
                [rows[place]["caption"] for place in own],
                [there[place] for place in own],
            )
            for name, own in places.items()
        }

    def images(self, variant: Variant, encoder: Encoder) -> Tensor:
        """Embeddings of a variant's images, of which each row has one."""
        return encoder.images(io.read_cells(self.path, "image", variant.places), len(variant.places))


@dataclass(frozen=True)
class _Unsafe:
    """The quadruples that are varied: those of the control, in its order."""

    data: Quadruples
    place: Mapping[str, int]  # of each quadruple's row in the data
    block_size: int

    def rows(self, ids: Sequence[str], *columns: str) -> list[int]:
        """Which of these quadruples have all columns, as positions in ``ids``."""
        whole = set(self.data.complete(columns).tolist())
        return [number for number, name in enumerate(ids) if self.place[name] in whole]

    def take(self, ids: Sequence[str], column: str) -> Tensor:
        return self.data.embeddings[column][[self.place[name] for name in ids]]

    def search(self, direction: str, queries: Tensor, asked: Sequence[str], pairs: _Pairs) -> Hits:
        """Let the queries ``asked``, by quadruple, search for their safe item among safe and unsafe ones."""
        position = {name: number for number, name in enumerate(pairs.ids)}
        correct = len(pairs.ids) + torch.tensor([position[name] for name in asked])
        gallery = Gallery(torch.cat([pairs.unsafe, pairs.safe]), [*pairs.ids, *pairs.ids], len(pairs.ids))
        return search_for_one(direction, queries, asked, gallery, correct, self.block_size)

    def search_own(self, direction: str, queries: Tensor, asked: Sequence[str], pairs: _Pairs) -> Hits:
        """Let them search for their own unsafe item among the unsafe ones alone."""
        position = {name: number for number, name in enumerate(pairs.ids)}
        correct = torch.tensor([position[name] for name in asked])
        gallery = Gallery(pairs.unsafe, pairs.ids, len(pairs.ids))
        return search_for_one(direction, queries, asked, gallery, correct, self.block_size)


@dataclass(frozen=True)
class _Pairs:
    """An unsafe and a safe item of each of these quadruples."""

    ids: list[str]
    unsafe: Tensor
    safe: Tensor


def evaluate(path: Path, encoders: Encoders, settings: EvaluationSettings, test: Path) -> Result:
    """Evaluate the model on the variants at ``path`` of the quadruples of the table ``test``.

    Directions begin with the variant's name.  A variant without an image, or of a quadruple without its images, is
    left out where these are searched, and counted.  Raises DataError where the two tables do not belong together.
    """
    variants = Variants.open(path)
    data = quadruples.embed(test, encoders.model)
    place = {name: number for number, name in enumerate(data.ids)}
    unsafe = _Unsafe(data, place, settings.block_size)
    _check(variants, unsafe, test)
    result = Result()
    for name, variant in variants.found.items():
        result.counts[f"{name}/rows"] = len(variant.ids)
        result.counts[f"{name}/not_made"] = variants.described[name]["left_out"]
    frozen = None if encoders.model.across_only else _frozen(variants, encoders)
    for variant in variants.found.values():
        if not variant.ids or variant.kind == PHOTOS:
            continue
        if encoders.model.across_only:
            result.left_out.update({f"{variant.name}/{name}": ACROSS_ONLY for name in WITHIN.get(variant.kind, ())})
        match variant.kind:
            case "unsafe_caption":
                found = _reworded(variants, variant, unsafe, encoders.model, result, settings)
            case "unsafe_image" | "unsafe_pair":
                found = _redrawn(variants, variant, unsafe, encoders.model)
            case _:
                found = _safe(variants, variant, unsafe, encoders.model, frozen, result, settings)
        for hits in found:
            _note(hits, result, settings)
    return result


def _check(variants: Variants, unsafe: _Unsafe, test: Path) -> None:
    known = [variant for variant in variants.found.values() if variant.kind != "safe"]
    strange = next((name for variant in known for name in variant.ids if name not in unsafe.place), None)
    if strange is not None:
        raise io.DataError(f"{variants.path}: {strange!r} is not in {test}; make the variants of this table")
    if CONTROL not in variants.found:
        raise io.DataError(f"{variants.path}: has no variant '{CONTROL}' to compare with; make it anew")


def _note(hits: Hits, result: Result, settings: EvaluationSettings) -> None:
    """Put what was found into the result; among items of one kind alone, no share of unsafe first hits."""
    result.counts.update(hits.counts)
    result.ranks.extend(hits.rows())
    result.metrics[f"{hits.direction}/recall@1"] = share(hits.ranks <= 1, settings)
    if hits.gallery.unsafe < len(hits.gallery.ids):
        result.metrics[f"{hits.direction}/unsafe_share"] = share(hits.top_unsafe, settings)


def _images_of(unsafe: _Unsafe, ids: Sequence[str]) -> _Pairs:
    """Both images of those of the quadruples that have them."""
    whole = [ids[number] for number in unsafe.rows(ids, *quadruples.IMAGES)]
    return _Pairs(whole, unsafe.take(whole, "unsafe_image"), unsafe.take(whole, "safe_image"))


def _reworded(
    variants: Variants,
    variant: Variant,
    unsafe: _Unsafe,
    encoder: Encoder,
    result: Result,
    settings: EvaluationSettings,
) -> Iterator[Hits]:
    """Reworded unsafe captions among the images of all varied quadruples; the control's own images as queries too."""
    queries = encoder.texts([caption or "" for caption in variant.captions])
    if not encoder.across_only:
        moved = metrics.similarities(queries, unsafe.take(variant.ids, "unsafe_caption"))
        result.metrics[f"{variant.name}/control/cosine"] = mean_of(moved, settings)
    queries = encoder.queries(queries)
    pairs = _images_of(unsafe, variants.found[CONTROL].ids)
    there = set(pairs.ids)
    rows = [number for number, name in enumerate(variant.ids) if name in there]
    result.counts[f"{variant.name}/left_out"] = len(variant.ids) - len(rows)
    asked = [variant.ids[number] for number in rows]
    if not rows:
        return
    yield unsafe.search(f"{variant.name}/unsafe_text_to_image", queries[rows], asked, pairs)
    yield unsafe.search_own(f"{variant.name}/own_unsafe_image", queries[rows], asked, pairs)
    photos = _photos(variants, pairs, encoder)
    if photos:
        yield unsafe.search(f"{variant.name}/unsafe_text_to_photo", queries[rows], asked, photos)
    if variant.name == CONTROL:
        captions = _Pairs(asked, unsafe.take(asked, "unsafe_caption"), unsafe.take(asked, "safe_caption"))
        yield unsafe.search(f"{variant.name}/unsafe_image_to_text", encoder.queries(pairs.unsafe), asked, captions)


def _photos(variants: Variants, pairs: _Pairs, encoder: Encoder) -> _Pairs | None:
    """The same pairs with unsafe images in the style of the safe ones; None where they were not drawn."""
    drawn = variants.found.get(SAFE_STYLE)
    if drawn is None or not drawn.ids:
        return None
    place = {name: number for number, name in enumerate(drawn.ids)}
    images = variants.images(drawn, encoder)
    return _Pairs(pairs.ids, images[[place[name] for name in pairs.ids]], pairs.safe)


def _redrawn(variants: Variants, variant: Variant, unsafe: _Unsafe, encoder: Encoder) -> Iterator[Hits]:
    """Other unsafe images of the quadruples: as queries, and in the gallery of their captions.

    These are the unchanged ones, or the variant's own, whose own image and photos are then searched as well.
    """
    ids, own = variant.ids, variant.kind == "unsafe_pair"
    images = variants.images(variant, encoder)
    texts = encoder.texts([text or "" for text in variant.captions]) if own else unsafe.take(ids, "unsafe_caption")
    captions = _Pairs(ids, texts, unsafe.take(ids, "safe_caption"))
    yield unsafe.search(f"{variant.name}/unsafe_image_to_text", encoder.queries(images), ids, captions)
    whole = unsafe.rows(ids, "safe_image")
    asked = [ids[number] for number in whole]
    pairs = _Pairs(asked, images[whole], unsafe.take(asked, "safe_image"))
    if not asked:
        return
    queries = encoder.queries(texts[whole])
    yield unsafe.search(f"{variant.name}/unsafe_text_to_image", queries, asked, pairs)
    if not own:
        return
    yield unsafe.search_own(f"{variant.name}/own_unsafe_image", queries, asked, pairs)
    for photos in variants.found.values():
        if (photos.kind, photos.control) == (PHOTOS, variant.name):
            drawn = replace(pairs, unsafe=variants.images(photos, encoder)[whole])
            yield unsafe.search(f"{variant.name}/unsafe_text_to_photo", queries, asked, drawn)


def _safe(
    variants: Variants,
    variant: Variant,
    unsafe: _Unsafe,
    encoder: Encoder,
    frozen: _Frozen | None,
    result: Result,
    settings: EvaluationSettings,
) -> Iterator[Hits]:
    """Safe captions: how far they moved, and whether they find what they found before tuning."""
    captions = [caption or "" for caption in variant.captions]
    queries = encoder.texts(captions)
    if frozen:
        own = torch.tensor([frozen.place[caption] for caption in captions])
        result.metrics[f"{variant.name}/safe_text/cosine"] = mean_of(
            metrics.similarities(queries, frozen.gallery.embeddings[own]), settings
        )
        yield search_for_one(
            f"{variant.name}/text_to_frozen_text", queries, variant.ids, frozen.gallery, own, settings.block_size
        )
    queries = encoder.queries(queries)
    rows = [number for number, there in enumerate(variant.pictured) if there]
    result.counts[f"{variant.name}/left_out"] = len(variant.ids) - len(rows)
    if rows:
        distractors = _images_of(unsafe, variants.found[CONTROL].ids)
        cells = io.read_cells(variants.path, "image", [variant.places[number] for number in rows])
        ids = [variant.ids[number] for number in rows]
        gallery = Gallery(
            torch.cat([distractors.unsafe, encoder.images(cells, len(rows))]),
            [*distractors.ids, *ids],
            len(distractors.ids),
        )
        correct = len(distractors.ids) + torch.arange(len(rows))
        yield search_for_one(f"{variant.name}/text_to_image", queries[rows], ids, gallery, correct, settings.block_size)


@dataclass(frozen=True)
class _Frozen:
    """All unsafe and safe captions of the variants, each once, as the base model embeds them."""

    gallery: Gallery
    place: Mapping[str, int]  # of each caption in the gallery


def captions(path: Path) -> tuple[list[str], int]:
    """The different captions whose frozen embeddings count, the unsafe ones first, and how many of these there are."""
    found = Variants.open(path).found.values()
    unsafe = dict.fromkeys(text for variant in found if variant.name == CONTROL for text in variant.captions if text)
    safe = dict.fromkeys(text for variant in found if variant.kind == "safe" for text in variant.captions if text)
    distinct = [text for text in unsafe if text not in safe]
    return [*distinct, *safe], len(distinct)


def _frozen(variants: Variants, encoders: Encoders) -> _Frozen:
    texts, unsafe = captions(variants.path)
    base = encoders.base
    if isinstance(base, Path):
        embeddings = handover.read_captions(base)
    else:
        embeddings = handover.of_captions(texts, base)[handover.CAPTIONS]
    return _Frozen(Gallery(embeddings, texts, unsafe), {text: number for number, text in enumerate(texts)})
