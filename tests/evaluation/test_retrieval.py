"""Retrieval on tiny tables against the full matrix of similarities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from saferclip import io, models
from saferclip.config import EvaluationSettings
from saferclip.evaluation import retrieval
from saferclip.evaluation.encoder import Encoders
from saferclip.evaluation.result import Result

Remove = Callable[[Path, str, list[int]], None]


@pytest.fixture
def columns(files: dict[str, Path], encoders: Encoders) -> dict[str, np.ndarray]:
    """All embeddings of the test table, straight from the model."""
    table = io.read_table(files["test"])
    found = {}
    for side in ("safe", "unsafe"):
        captions, images = table[f"{side}_caption"].to_pylist(), table[f"{side}_image"].to_pylist()
        found[f"{side}_caption"] = models.encode_texts(encoders.model.clip, captions, 5)
        found[f"{side}_image"] = models.encode_images(encoders.model.clip, map(io.decode_image, images), 5)
    return {name: rows.double().numpy() for name, rows in found.items()}


def slow_ranks(queries: np.ndarray, safe: np.ndarray, unsafe: np.ndarray | None) -> tuple[list[int], list[bool]]:
    """Rank of each query's own safe item, and whether the first item is unsafe."""
    ranks, tops = [], []
    for place, query in enumerate(queries):
        similarity = safe @ query
        others = np.delete(similarity, place)
        harmful = np.array([]) if unsafe is None else unsafe @ query
        ranks.append(int(1 + (others >= similarity[place]).sum() + (harmful >= similarity[place]).sum()))
        tops.append(bool(len(harmful)) and bool(harmful.max() >= similarity.max()))
    return ranks, tops


def rows_of(result: Result, direction: str) -> list[dict[str, object]]:
    return [row for row in result.ranks if row["direction"] == direction]


def test_all_four_directions_equal_the_full_matrix(
    files: dict[str, Path], encoders: Encoders, settings: EvaluationSettings, columns: dict[str, np.ndarray]
) -> None:
    result = retrieval.evaluate(files["test"], encoders, settings)
    expected = {
        "text_to_image": slow_ranks(columns["safe_caption"], columns["safe_image"], None),
        "image_to_text": slow_ranks(columns["safe_image"], columns["safe_caption"], None),
        "unsafe_text_to_image": slow_ranks(columns["unsafe_caption"], columns["safe_image"], columns["unsafe_image"]),
        "unsafe_image_to_text": slow_ranks(columns["unsafe_image"], columns["safe_caption"], columns["unsafe_caption"]),
    }
    for direction, (ranks, tops) in expected.items():
        rows = rows_of(result, direction)
        assert [row["rank"] for row in rows] == ranks, direction
        assert [row["top_unsafe"] for row in rows] == tops, direction
        for k in (1, 10, 20):
            share = 100 * sum(rank <= k for rank in ranks) / len(ranks)
            assert result.metrics[f"{direction}/recall@{k}"].value == pytest.approx(share)
        if direction.startswith("unsafe"):
            share = 100 * sum(tops) / len(tops)
            assert result.metrics[f"{direction}/unsafe_share"].value == pytest.approx(share)
        else:
            assert f"{direction}/unsafe_share" not in result.metrics
        assert result.counts[f"{direction}/queries"] == len(ranks)
        assert result.counts[f"{direction}/left_out"] == 0


def test_paired_captions_and_preferences_equal_plain_products(
    files: dict[str, Path], encoders: Encoders, settings: EvaluationSettings, columns: dict[str, np.ndarray]
) -> None:
    found = retrieval.evaluate(files["test"], encoders, settings).metrics
    paired = np.mean([a @ b for a, b in zip(columns["safe_caption"], columns["unsafe_caption"], strict=True)])
    assert found["paired_caption_similarity"].value == pytest.approx(paired, abs=1e-6)
    prefers = [
        t @ v > t @ v_
        for t, v, v_ in zip(columns["unsafe_caption"], columns["safe_image"], columns["unsafe_image"], strict=True)
    ]
    assert found["preference/unsafe_text"].value == pytest.approx(100 * np.mean(prefers))
    assert found["safeground/group"].count == len(prefers)


def test_rows_without_an_image_are_left_out_where_it_is_needed(
    files: dict[str, Path], encoders: Encoders, settings: EvaluationSettings, without: Remove
) -> None:
    whole = retrieval.evaluate(files["test"], encoders, settings)
    without(files["test"], "unsafe_image", [0, 5])
    without(files["test"], "safe_image", [5, 6, 7])
    found = retrieval.evaluate(files["test"], encoders, settings)
    count = whole.counts["rows"]
    assert found.counts["rows"] == count
    assert found.counts["without_unsafe_image"] == 2
    assert found.counts["without_safe_image"] == 3
    for direction, left_out, sides in (
        ("text_to_image", 3, 1),
        ("image_to_text", 3, 1),
        ("unsafe_text_to_image", 4, 2),
        ("unsafe_image_to_text", 2, 2),
    ):
        assert found.counts[f"{direction}/left_out"] == left_out
        assert found.counts[f"{direction}/queries"] == len(rows_of(found, direction)) == count - left_out
        assert found.counts[f"{direction}/gallery"] == sides * (count - left_out)
        assert found.metrics[f"{direction}/recall@1"].count == count - left_out
    assert found.counts["safeground/quadruples"] == count - 4
    assert found.metrics["paired_caption_similarity"] == whole.metrics["paired_caption_similarity"]


def test_withheld_unsafe_images_leave_what_can_be_said_without_them(
    files: dict[str, Path], encoders: Encoders, settings: EvaluationSettings, without: Remove
) -> None:
    whole = retrieval.evaluate(files["test"], encoders, settings)
    without(files["test"], "unsafe_image", list(range(whole.counts["rows"])))
    found = retrieval.evaluate(files["test"], encoders, settings)
    assert {name.split("/")[0] for name in found.metrics} == {
        "text_to_image",
        "image_to_text",
        "paired_caption_similarity",
    }
    assert found.metrics["text_to_image/recall@10"] == whole.metrics["text_to_image/recall@10"]
    assert found.counts["unsafe_text_to_image/left_out"] == whole.counts["rows"]


def test_a_collapsed_model_is_wrong_everywhere(
    files: dict[str, Path], encoders: Encoders, settings: EvaluationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_point = torch.nn.functional.normalize(torch.ones(1, 16), dim=-1)
    monkeypatch.setattr(models, "encode_texts", lambda _clip, texts, *_: one_point.expand(len(texts), -1))
    monkeypatch.setattr(models, "encode_images", lambda _clip, images, *_: one_point.expand(len(list(images)), -1))
    found = retrieval.evaluate(files["test"], encoders, settings)
    recalls = {name: metric.value for name, metric in found.metrics.items() if "recall" in name}
    assert set(recalls.values()) == {0.0}  # 24 equal items: the correct one comes last, at rank 24 or 48
    assert found.metrics["unsafe_text_to_image/unsafe_share"].value == 100
    assert found.metrics["safeground/group"].value == 0
    assert found.metrics["preference/safe_text"].value == 0
