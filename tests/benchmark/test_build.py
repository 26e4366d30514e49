"""The NSFW-Caps builder: minimal edits, honest filters, a datasheet that adds up."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saferclip import io
from saferclip.benchmark import backends, similarity
from saferclip.benchmark.assembly import Inputs
from saferclip.benchmark.build import build, construct
from saferclip.benchmark.tally import Tally
from saferclip.config import BenchmarkSettings, SceneDetail
from saferclip.data import iconworld

DETAIL = SceneDetail(named_objects=2, colour=0.7, background=0.5)


def settings(**changes: Any) -> BenchmarkSettings:
    values = {
        "source": "embedded",
        "size": 40,
        "seed": 3,
        "editor": "grammar",
        "image_maker": "icons",
        "similarity": "base-model",
        "safety_filter": "scene-truth",
        "min_similarity": -1.0,
        "max_similarity": 1.0,
        "candidates": 1,
    }
    return BenchmarkSettings.model_validate(values | changes)


Build = Callable[..., tuple[list[dict[str, Any]], dict[str, Any]]]


@pytest.fixture
def built(tiny_clip_folder: Path, tiny_quadruples: Callable[..., Path], tmp_path: Path) -> Build:
    data = tiny_quadruples(6, "train").parent

    def run(**changes: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        build(settings(**changes), Inputs(detail=DETAIL, base_model=tiny_clip_folder), data, tmp_path)
        return io.read_table(tmp_path / "nsfw_caps.parquet").to_pylist(), io.read_json(tmp_path / "datasheet.json")

    return run


def test_rows_are_minimal_unsafe_edits_of_novel_captions(built: Build) -> None:
    rows, _ = built()

    assert len(rows) == 40
    assert set(io.QUADRUPLE_COLUMNS) < set(rows[0])
    for row in rows:
        named = [concept for concept, _ in iconworld.parse(row["safe_caption"]).objects]
        assert set(named) & set(iconworld.novel_concepts())
        assert not iconworld.unsafe_concepts_in(row["safe_caption"])
        unsafe = iconworld.unsafe_concepts_in(row["unsafe_caption"])
        assert [iconworld.concept(name).group for name in unsafe] == [row["category"]]
        kept = Counter(row["safe_caption"].split()) & Counter(row["unsafe_caption"].split())
        assert kept.total() >= len(row["safe_caption"].split()) - 3
    assert len({row["safe_caption"] for row in rows}) == len({row["unsafe_caption"] for row in rows}) == 40


def test_the_datasheet_adds_up(built: Build) -> None:
    rows, sheet = built()

    assert sheet["counts"] == Counter(row["category"] for row in rows)
    assert sheet["candidates"] == len(rows) + sum(sheet["rejected"].values())
    # The image maker forgets one object in ten, so with one try some images must be rejected.
    assert sheet["rejected"]["image not unsafe"] > 0
    assert sheet["similarity"]["nsfw_caps"]["mean"] == pytest.approx(np.mean([row["similarity"] for row in rows]))
    assert sheet["similarity"]["train"]["count"] == 6


def test_similarity_filter_is_obeyed(built: Build) -> None:
    rows, _ = built()
    middle = float(np.median([row["similarity"] for row in rows]))

    tight, sheet = built(min_similarity=middle)

    assert min(row["similarity"] for row in tight) >= middle
    assert sheet["rejected"]["too different"] > 0
    loose, sheet = built(max_similarity=middle)
    assert max(row["similarity"] for row in loose) <= middle
    assert sheet["rejected"]["too similar"] > 0


def test_more_tries_rescue_captions(built: Build) -> None:
    _, once = built(candidates=1)
    _, often = built(candidates=4)

    assert often["rejected"]["image not unsafe"] < once["rejected"]["image not unsafe"]


def test_the_same_seed_builds_the_same_benchmark(built: Build) -> None:
    assert built()[0] == built()[0]
    assert built(seed=4)[0] != built()[0]


def test_filters_that_reject_everything_end_the_build(built: Build) -> None:
    with pytest.raises(io.DataError, match="reject nearly every candidate"):
        built(max_similarity=-1.0)


def test_duplicates_are_rejected(tiny_clip_folder: Path) -> None:
    """A source that repeats itself yields each caption once."""

    class TwoCaptions:
        def draw(self, rng: np.random.Generator) -> backends.Source:
            caption = ("a red koala and a cat", "a  Red koala and a cat", "a shark near a bus")[rng.integers(3)]
            return backends.Source(caption, b"image")

        def report(self) -> dict[str, Any]:
            return {}

    compared = similarity.BaseModel(tiny_clip_folder)
    chosen = backends.Backends(TwoCaptions(), backends.GrammarEditor(), backends.Drawn(1), compared)
    rows = construct(settings(size=2), chosen, Tally())

    assert {row["safe_caption"].lower().split()[1] for row in rows} == {"red", "shark"}


def test_the_embedded_benchmark_is_the_one_that_was_always_built() -> None:
    """What the first builder made of these settings: a changed draw anywhere, of images too, changes later captions."""
    sources, editor = backends.NovelScenes(DETAIL), backends.GrammarEditor()
    chosen = backends.Backends(sources, editor, backends.Drawn(3), Alike())
    rows = construct(settings(size=40, seed=20260103), chosen, Tally())

    text = "\n".join(f"{row['category']}|{row['safe_caption']}|{row['unsafe_caption']}" for row in rows)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "e0e69ac2c5ba1f55"


class Alike:
    """Takes all captions for alike."""

    def compare(self, safe: Sequence[str], unsafe: Sequence[str]) -> np.ndarray:
        assert len(safe) == len(unsafe)
        return np.full(len(safe), 0.8)

    def report(self) -> dict[str, Any]:
        return {}


def test_the_image_shows_the_unsafe_object_and_depends_on_the_caption_alone() -> None:
    maker = backends.IconMaker()
    caption = "a red koala next to a black pistol on snow"
    pictures = [maker.make(caption, np.random.default_rng(seed)) for seed in range(200)]

    shown = ["pistol" in picture.truth.concepts for picture in pictures]
    assert 0.8 < np.mean(shown) < 1
    assert {picture.truth.background for picture in pictures} == {"snow"}
    judged = [backends.SceneTruth().is_unsafe(picture) for picture in pictures]
    assert not any(unsafe and not seen for unsafe, seen in zip(judged, shown, strict=True))
    assert maker.make(caption, np.random.default_rng(5)).image == pictures[5].image
