"""The evaluation of variants against one that compares every query with every item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saferclip import io, models
from saferclip.config import EmbeddedData, EvaluationSettings, RobustnessStep, SceneDetail
from saferclip.data import embedded
from saferclip.data.robustness import build
from saferclip.evaluation import evaluate, robustness
from saferclip.evaluation.encoder import Encoder, Encoders
from saferclip.evaluation.result import Result
from saferclip.heads import Head

DETAIL = SceneDetail(named_objects=2, colour=0.7, background=0.5)
Rows = list[dict[str, Any]]
Remove = Callable[[Path, str, list[int]], None]


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Path]:
    """Quadruples of the embedded world and their variants."""
    rows = embedded.quadruples(EmbeddedData(seed=3, train=1, validation=1, test=14, detail=DETAIL))["test"]
    io.write_table(tmp_path / "test.parquet", rows)
    build.build(RobustnessStep(seed=3, detail=DETAIL, queries=9, typos=1), tmp_path / "test.parquet", tmp_path)
    return {"test": tmp_path / "test.parquet", "robustness": tmp_path / build.TABLE}


class Slow:
    """Embeds one item at a time and looks at every one."""

    def __init__(self, tables: dict[str, Path], encoder: Encoder) -> None:
        self.encoder = encoder
        self.quadruples = {row["id"]: row for row in io.read_table(tables["test"]).to_pylist()}
        self.variants: dict[str, Rows] = {}
        for row in io.read_table(tables["robustness"]).to_pylist():
            self.variants.setdefault(row["variant"], []).append(row)
        self.asked = [row["id"] for row in self.variants["unchanged"]]

    def text(self, caption: str) -> np.ndarray:
        return models.encode_texts(self.encoder.clip, [caption], 1)[0].double().numpy()

    def image(self, cell: Any) -> np.ndarray:
        return models.encode_images(self.encoder.clip, [io.decode_image(cell)], 1)[0].double().numpy()

    def outcome(self, query: np.ndarray, unsafe: list[np.ndarray], safe: list[np.ndarray], right: int) -> list[float]:
        """Whether the right item is first, and whether an unsafe one is; ``right`` counts the unsafe ones first."""
        values = [float(query @ item) for item in [*unsafe, *safe]]
        first = int(np.argmax(values))
        return [100.0 * (first == right), 100.0 * (first < len(unsafe))]


def evaluated(tables: dict[str, Path], encoders: Encoders, settings: EvaluationSettings) -> Result:
    return robustness.evaluate(tables["robustness"], encoders, settings, tables["test"])


def assert_shares(result: Result, direction: str, outcomes: list[list[float]]) -> None:
    first, unsafe = np.mean(outcomes, axis=0)
    assert result.metrics[f"{direction}/recall@1"].value == pytest.approx(first)
    if f"{direction}/unsafe_share" in result.metrics:
        assert result.metrics[f"{direction}/unsafe_share"].value == pytest.approx(unsafe)
    assert result.metrics[f"{direction}/recall@1"].count == len(outcomes)


def test_reworded_captions_search_the_images_of_all_varied_quadruples(
    tables: dict[str, Path], encoders: Encoders, settings: EvaluationSettings
) -> None:
    result, slow = evaluated(tables, encoders, settings), Slow(tables, encoders.model)
    unsafe = [slow.image(slow.quadruples[name]["unsafe_image"]) for name in slow.asked]
    safe = [slow.image(slow.quadruples[name]["safe_image"]) for name in slow.asked]
    photos = [slow.image(row["image"]) for row in slow.variants["style_photo"]]
    for name in ("unchanged", "paraphrase", "typo", "synonym", "two_unsafe", "several", "relation"):
        found, alike, own, moved = [], [], [], []
        for row in slow.variants[name]:
            place = slow.asked.index(row["id"])
            query = slow.text(row["caption"])
            found.append(slow.outcome(query, unsafe, safe, len(unsafe) + place))
            alike.append(slow.outcome(query, photos, safe, len(unsafe) + place))
            own.append(slow.outcome(query, unsafe, [], place))
            moved.append(float(query @ slow.text(slow.quadruples[row["id"]]["unsafe_caption"])))
        assert_shares(result, f"{name}/unsafe_text_to_image", found)
        assert_shares(result, f"{name}/unsafe_text_to_photo", alike)
        assert_shares(result, f"{name}/own_unsafe_image", own)
        assert f"{name}/own_unsafe_image/unsafe_share" not in result.metrics
        assert result.metrics[f"{name}/control/cosine"].value == pytest.approx(np.mean(moved), abs=1e-5)
        assert result.counts[f"{name}/rows"] + result.counts[f"{name}/not_made"] == 9
    assert result.metrics["unchanged/control/cosine"].value == pytest.approx(1, abs=1e-6)


def test_images_in_other_styles_are_queries_and_stand_in_the_gallery(
    tables: dict[str, Path], encoders: Encoders, settings: EvaluationSettings
) -> None:
    result, slow = evaluated(tables, encoders, settings), Slow(tables, encoders.model)
    texts = {
        kind: [slow.text(slow.quadruples[name][f"{kind}_caption"]) for name in slow.asked]
        for kind in ("unsafe", "safe")
    }
    safe = [slow.image(slow.quadruples[name]["safe_image"]) for name in slow.asked]
    drawn = {name: [row["image"] for row in rows] for name, rows in slow.variants.items() if rows[0]["caption"] is None}
    assert len(drawn) == 7
    drawn["unchanged"] = [slow.quadruples[name]["unsafe_image"] for name in slow.asked]
    for name, cells in drawn.items():
        images = [slow.image(cell) for cell in cells]
        asked = enumerate(images)
        queries = [slow.outcome(image, texts["unsafe"], texts["safe"], 9 + place) for place, image in asked]
        assert_shares(result, f"{name}/unsafe_image_to_text", queries)
        found = [slow.outcome(text, images, safe, 9 + place) for place, text in enumerate(texts["unsafe"])]
        assert_shares(result, f"{name}/unsafe_text_to_image", found)


def test_pairs_with_other_objects_search_among_their_own_kind(
    tables: dict[str, Path], encoders: Encoders, settings: EvaluationSettings
) -> None:
    unseen = RobustnessStep(seed=3, detail=DETAIL, queries=9, typos=1, unseen=("devil", "syringe"))
    build.build(unseen, tables["test"], tables["robustness"].parent)
    result, slow = evaluated(tables, encoders, settings), Slow(tables, encoders.model)
    safe = [
        [embed(slow.quadruples[name][f"safe_{what}"]) for name in slow.asked]
        for what, embed in (("image", slow.image), ("caption", slow.text))
    ]
    for name in ("seen_object", "unseen_object"):
        texts = [slow.text(row["caption"]) for row in slow.variants[name]]
        images, photos = (
            [slow.image(row["image"]) for row in slow.variants[variant]] for variant in (name, f"{name}_photos")
        )
        for direction, queries, unsafe, right in (
            ("unsafe_text_to_image", texts, images, safe[0]),
            ("unsafe_text_to_photo", texts, photos, safe[0]),
            ("unsafe_image_to_text", images, texts, safe[1]),
        ):
            outcomes = [slow.outcome(query, unsafe, right, 9 + place) for place, query in enumerate(queries)]
            assert_shares(result, f"{name}/{direction}", outcomes)
        own = [slow.outcome(query, images, [], place) for place, query in enumerate(texts)]
        assert_shares(result, f"{name}/own_unsafe_image", own)
    assert not [metric for metric in result.metrics if "_photos/" in metric]


def test_safe_captions_search_their_images_and_what_they_meant_before_tuning(
    tables: dict[str, Path], encoders: Encoders, settings: EvaluationSettings
) -> None:
    result, slow = evaluated(tables, encoders, settings), Slow(tables, encoders.model)
    assert isinstance(encoders.base, Encoder)
    base = Slow(tables, encoders.base)
    unsafe = [slow.image(slow.quadruples[name]["unsafe_image"]) for name in slow.asked]
    kinds = ("ordinary", "shared_word", "related")
    safe = list(dict.fromkeys(row["caption"] for kind in kinds for row in slow.variants[kind]))
    other = list(dict.fromkeys(row["caption"] for row in slow.variants["unchanged"] if row["caption"] not in safe))
    frozen = [[base.text(caption) for caption in captions] for captions in (other, safe)]
    for kind in kinds:
        rows = slow.variants[kind]
        images = [slow.image(row["image"]) for row in rows]
        queries = [slow.text(row["caption"]) for row in rows]
        found = [slow.outcome(query, unsafe, images, len(unsafe) + place) for place, query in enumerate(queries)]
        assert_shares(result, f"{kind}/text_to_image", found)
        own = [len(other) + safe.index(row["caption"]) for row in rows]
        kept = [slow.outcome(query, *frozen, place) for query, place in zip(queries, own, strict=True)]
        assert_shares(result, f"{kind}/text_to_frozen_text", kept)
        cosines = [float(query @ base.text(row["caption"])) for query, row in zip(queries, rows, strict=True)]
        assert result.metrics[f"{kind}/safe_text/cosine"].value == pytest.approx(np.mean(cosines), abs=1e-5)


def test_the_untuned_model_keeps_every_safe_caption(
    tables: dict[str, Path], settings: EvaluationSettings, tiny_clip_folder: Path
) -> None:
    result = evaluated(tables, Encoders.load(tiny_clip_folder, tiny_clip_folder, 8), settings)
    for kind in ("ordinary", "shared_word", "related"):
        assert result.metrics[f"{kind}/text_to_frozen_text/recall@1"].value == 100
        assert result.metrics[f"{kind}/safe_text/cosine"].value == pytest.approx(1, abs=1e-6)


def test_quadruples_without_an_image_are_left_out_of_queries_and_gallery(
    tables: dict[str, Path], encoders: Encoders, settings: EvaluationSettings, without: Remove
) -> None:
    asked = Slow(tables, encoders.model).asked
    place = int(asked[2].removeprefix("test-"))
    without(tables["test"], "unsafe_image", [place])
    result = evaluated(tables, encoders, settings)
    for name in ("unchanged", "typo"):
        assert result.counts[f"{name}/unsafe_text_to_image/queries"] == 8
        assert result.counts[f"{name}/unsafe_text_to_image/gallery"] == 16
        assert result.counts[f"{name}/left_out"] == 1
        assert result.metrics[f"{name}/control/cosine"].count == 9
    assert asked[2] not in {row["query_id"] for row in result.ranks if row["direction"].startswith("typo/")}
    assert result.counts["redrawn/unsafe_image_to_text/queries"] == 9  # it has an image of its own
    assert result.counts["ordinary/text_to_image/gallery"] == 8 + 9


def test_withheld_images_leave_what_words_alone_can_tell(
    tmp_path: Path, tables: dict[str, Path], encoders: Encoders, settings: EvaluationSettings, without: Remove
) -> None:
    """Captions of any origin whose images are all withheld."""
    without(tables["test"], "unsafe_image", list(range(14)))
    without(tables["test"], "safe_image", list(range(14)))
    build.build(RobustnessStep(seed=3, queries=9, typos=2), tables["test"], tmp_path / "words")
    result = evaluated({**tables, "robustness": tmp_path / "words" / build.TABLE}, encoders, settings)
    measured = {name.partition("/")[0] for name in result.metrics}
    assert measured == {"unchanged", "paraphrase", "typo", "synonym", "ordinary", "phrase"}
    assert {name.partition("/")[2] for name in result.metrics} == {
        *("control/cosine", "safe_text/cosine", "text_to_frozen_text/recall@1", "text_to_frozen_text/unsafe_share")
    }
    assert result.counts["typo/left_out"] == 9
    assert result.counts["style_neon/not_made"] == 9


def test_what_the_untuned_model_hands_over_changes_no_byte(
    tmp_path: Path,
    tables: dict[str, Path],
    settings: EvaluationSettings,
    tiny_resnet_clip_folder: Path,
    tiny_clip_folder: Path,
) -> None:
    chosen = settings.model_copy(update={"benchmarks": ("robustness",)})
    clip, resnet = tiny_clip_folder, tiny_resnet_clip_folder
    evaluate.evaluate(chosen, "clip", 0, clip, clip, tables, tmp_path / "untuned")
    tuned = (chosen, "safer-clip", 2, resnet, clip, tables)
    evaluate.evaluate(*tuned, tmp_path / "alone")
    evaluate.evaluate(*tuned, tmp_path / "handed over", tmp_path / "untuned")
    for name in ("robustness.json", "ranks.parquet"):
        alone, handed = ((tmp_path / folder / name).read_bytes() for folder in ("alone", "handed over"))
        assert alone == handed
    build.build(RobustnessStep(seed=4, detail=DETAIL, queries=9, typos=1), tables["test"], tmp_path)
    with pytest.raises(io.DataError, match=r"embeddings.safetensors: was not made of"):
        evaluate.evaluate(*tuned, tmp_path / "refused", tmp_path / "untuned")


def test_variants_of_another_table_are_refused(
    tmp_path: Path,
    tables: dict[str, Path],
    encoders: Encoders,
    settings: EvaluationSettings,
    tiny_quadruples: Callable[..., Path],
) -> None:
    other = tiny_quadruples(5, "test")
    with pytest.raises(io.DataError, match=r"variants\.parquet: 'test-0000\d' is not in .*; make the variants of"):
        evaluated({**tables, "test": other}, encoders, settings)
    described = io.read_json(tmp_path / build.DESCRIPTION)
    del described["typo"]
    io.write_json(tmp_path / build.DESCRIPTION, described)
    with pytest.raises(io.DataError, match=r"variants\.parquet: row \d+: 'typo' is not described; make it anew"):
        evaluated(tables, encoders, settings)


def test_a_model_in_hyperbolic_space_has_all_but_what_compares_captions_with_captions(
    tables: dict[str, Path], encoders: Encoders, settings: EvaluationSettings
) -> None:
    plain = evaluated(tables, encoders, settings)
    head = Head(curvature=1.0, text_scale=0.5, image_scale=0.5, largest=5.0, text_limit=0.2, image_limit=0.2)
    model = Encoder(replace(encoders.model.clip, head=head), encoders.model.batch_size, "hyperbolic")
    found = evaluated(tables, Encoders(model, encoders.base), settings)
    assert found.metrics.keys() | found.left_out.keys() == plain.metrics.keys()
    assert not found.metrics.keys() & found.left_out.keys()
    assert all(name.endswith("cosine") or "/text_to_frozen_text/" in name for name in found.left_out)
    # What searches was moved to the limits first, so that limits beyond all queries find something else.
    free = replace(model.clip, head=head.model_copy(update={"text_limit": None, "image_limit": None}))
    others = evaluated(tables, Encoders(Encoder(free, 7, "free"), encoders.base), settings)
    assert [row["similarity"] for row in found.ranks] != [row["similarity"] for row in others.ranks]
    directions = {row["direction"] for row in found.ranks}
    for direction in directions:
        here, there = (
            [row["similarity"] for row in result.ranks if row["direction"] == direction] for result in (found, others)
        )
        assert here != there, f"{direction}: queries were not moved"
