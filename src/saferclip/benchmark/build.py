"""The NSFW-Caps builder: source captions -> edits -> images -> filters -> table and datasheet."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from saferclip import io, models
from saferclip.benchmark.backends import (
    CaptionEditor,
    Edit,
    GrammarEditor,
    IconMaker,
    ImageMaker,
    NovelScenes,
    Picture,
    SafetyFilter,
    SceneTruth,
    Source,
    SourceCaptions,
)
from saferclip.config import BenchmarkSettings, SceneDetail
from saferclip.provenance import provenance

logger = logging.getLogger(__name__)

FILTERS = ("duplicate", "too different", "too similar", "image not unsafe")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ENCODING_BATCH = 256
# A builder whose filters reject nearly everything must stop and say so, not run for ever.
FEWEST_ACCEPTED = 0.02


@dataclass(frozen=True)
class Backends:
    """Everything exchangeable about the construction."""

    sources: SourceCaptions
    editor: CaptionEditor
    image_maker: ImageMaker
    safety_filter: SafetyFilter


@dataclass
class Tally:
    """What became of the candidates."""

    candidates: int = 0
    images: int = 0
    rejected: Counter[str] = field(
        default_factory=lambda: Counter(
            dict.fromkeys(("duplicate", "too different", "too similar", "image not unsafe"), 0)
        )
    )


def build(settings: BenchmarkSettings, detail: SceneDetail, base_model: Path, data: Path, output: Path) -> None:
    """Build ``settings.size`` quadruples; write nsfw_caps.parquet and datasheet.json.

    ``data`` is the folder of the training quadruples, used for the similarity comparison alone.
    Raises DataError if the filters reject almost everything.
    """
    clip = models.load(base_model, models.default_device())
    backends = Backends(NovelScenes(detail), GrammarEditor(), IconMaker(), SceneTruth())
    tally = Tally()
    rows = construct(settings, backends, clip, tally)
    io.write_table(output / "nsfw_caps.parquet", rows)
    train = io.read_table(data / "train.parquet", ["safe_caption", "unsafe_caption"]).to_pydict()
    train_similarity = caption_similarity(clip, train["safe_caption"], train["unsafe_caption"])
    io.write_json(output / "datasheet.json", _datasheet(settings, rows, tally, train_similarity.numpy()))


def construct(settings: BenchmarkSettings, backends: Backends, clip: models.Clip, tally: Tally) -> list[dict[str, Any]]:
    """Propose, filter and draw until there are enough rows."""
    rng = np.random.default_rng(settings.seed)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    with tqdm(total=settings.size, desc="NSFW-Caps", disable=None) as bar:
        while len(rows) < settings.size:
            pairs = [_propose(backends, rng) for _ in range(settings.size - len(rows))]
            similarities = caption_similarity(clip, [s.caption for s, _ in pairs], [e.caption for _, e in pairs])
            for (source, edit), similarity in zip(pairs, similarities.tolist(), strict=True):
                row = _accept(settings, backends, rng, tally, seen, source, edit, similarity)
                if row is not None:
                    rows.append({"id": f"nsfw-caps-{len(rows):05d}", **row})
                    bar.update()
            if len(rows) < FEWEST_ACCEPTED * tally.candidates:
                raise io.DataError(f"the filters reject nearly every candidate: {dict(tally.rejected)}; relax them")
    return rows


def caption_similarity(clip: models.Clip, safe: Sequence[str], unsafe: Sequence[str]) -> Tensor:
    """Cosine similarity of captions row by row, shape (n,)."""
    return (models.encode_texts(clip, safe, ENCODING_BATCH) * models.encode_texts(clip, unsafe, ENCODING_BATCH)).sum(1)


def _propose(backends: Backends, rng: np.random.Generator) -> tuple[Source, Edit]:
    source = backends.sources.draw(rng)
    return source, backends.editor.edit(source.caption, rng)


def _accept(
    settings: BenchmarkSettings,
    backends: Backends,
    rng: np.random.Generator,
    tally: Tally,
    seen: set[str],
    source: Source,
    edit: Edit,
    similarity: float,
) -> dict[str, Any] | None:
    """Apply the filters, cheapest first; None if one of them rejects."""
    tally.candidates += 1
    captions = {_normalised(source.caption), _normalised(edit.caption)}
    fault = _caption_fault(settings, captions, seen, similarity)
    picture = None if fault else _unsafe_picture(settings, backends, rng, tally, edit.caption)
    if picture is None:
        tally.rejected[fault or "image not unsafe"] += 1
        return None
    seen |= captions
    return {
        "split": "nsfw_caps",
        "category": edit.category,
        "safe_caption": source.caption,
        "unsafe_caption": edit.caption,
        "safe_image": source.image,
        "unsafe_image": picture.image,
        "similarity": similarity,
    }


def _caption_fault(settings: BenchmarkSettings, captions: set[str], seen: set[str], similarity: float) -> str | None:
    """Which filter a pair of captions fails, if any."""
    if captions & seen or len(captions) == 1:
        return "duplicate"
    if similarity < settings.min_similarity:
        return "too different"
    if similarity > settings.max_similarity:
        return "too similar"
    return None


def _unsafe_picture(
    settings: BenchmarkSettings, backends: Backends, rng: np.random.Generator, tally: Tally, caption: str
) -> Picture | None:
    """The first image judged unsafe, or None after the allowed number of tries."""
    for _ in range(settings.candidates):
        tally.images += 1
        picture = backends.image_maker.make(caption, rng)
        if backends.safety_filter.is_unsafe(picture):
            return picture
    return None


def _normalised(caption: str) -> str:
    """Captions that differ in case or spacing only are the same."""
    return " ".join(caption.lower().split())


def _datasheet(
    settings: BenchmarkSettings, rows: Sequence[dict[str, Any]], tally: Tally, train_similarity: Any
) -> dict[str, Any]:
    """What a user of the data must know (after Gebru et al., Datasheets for Datasets)."""
    return {
        "title": "NSFW-Caps-mini",
        "rows": len(rows),
        "counts": dict(sorted(Counter(row["category"] for row in rows).items())),
        "candidates": tally.candidates,
        "images_drawn": tally.images,
        "rejected": dict(tally.rejected),
        "similarity": {
            "nsfw_caps": _distribution(np.array([row["similarity"] for row in rows])),
            "train": _distribution(train_similarity),
        },
        "composition": "captions and 64-pixel icon scenes; unsafe means harmless stand-in icons",
        "intended_use": "testing whether a model redirects unsafe input; not for training",
        "licence": "MIT; the icon fonts keep their own open licences",
        "provenance": provenance(settings.model_dump(mode="json"), settings.seed),
    }


def _distribution(values: Any) -> dict[str, float]:
    quantiles = {f"q{100 * q:02.0f}": float(np.quantile(values, q)) for q in QUANTILES}
    return {"count": len(values), "mean": float(values.mean()), **quantiles}
