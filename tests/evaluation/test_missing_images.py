"""Evaluation of quadruples without images: what can be measured is, and the rest is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saferclip import io
from saferclip.config import EvaluationSettings
from saferclip.evaluation import evaluate
from saferclip.figures.results import RANK_COLUMNS

COUNT = 9
ALL = list(range(COUNT))


@pytest.fixture
def evaluated(
    tiny_clip_folder: Path,
    tiny_resnet_clip_folder: Path,
    tiny_quadruples: Callable[..., Path],
    without: Callable[..., None],
    settings: EvaluationSettings,
    tmp_path: Path,
) -> Callable[..., Path]:
    """A function (rows without a safe image, rows without an unsafe one) -> folder of the evaluation."""

    def run(safe: list[int], unsafe: list[int]) -> Path:
        table = tiny_quadruples(COUNT, "test")
        without(table, "safe_image", safe)
        without(table, "unsafe_image", unsafe)
        chosen = settings.model_copy(update={"benchmarks": ("test", "drift")})
        models = (tiny_resnet_clip_folder, tiny_clip_folder)
        evaluate.evaluate(chosen, "safer-clip", 0, *models, {"test": table}, tmp_path / "out")
        return tmp_path / "out"

    return run


def test_captions_alone(evaluated: Any) -> None:
    output = evaluated(ALL, ALL)
    test, drift = (io.read_evaluation(output / f"{name}.json") for name in ("test", "drift"))
    assert set(test.metrics) == {"paired_caption_similarity"}
    assert test.counts["without_safe_image"] == test.counts["without_unsafe_image"] == COUNT
    assert test.counts["unsafe_text_to_image/left_out"] == test.counts["image_to_text/left_out"] == COUNT
    assert set(drift.metrics) == {"safe_text/cosine", "uniformity_text"}
    ranks = io.read_table(output / "ranks.parquet", RANK_COLUMNS)
    assert ranks.num_rows == 0
    points = io.read_tensors(output / "embeddings.safetensors")
    assert {name: tuple(rows.shape) for name, rows in points.items()} == {
        "safe_caption": (COUNT, 16),
        "unsafe_caption": (COUNT, 16),
    }


def test_the_columns_of_ranks_do_not_depend_on_there_being_any(evaluated: Any) -> None:
    complete = io.read_table(evaluated([], []) / "ranks.parquet").schema
    assert io.read_table(evaluated(ALL, ALL) / "ranks.parquet").schema.equals(complete)


def test_without_unsafe_images_safe_directions_are_measured(evaluated: Any) -> None:
    output = evaluated([2], ALL)
    test = io.read_evaluation(output / "test.json")
    directions = {name.partition("/")[0] for name in test.metrics if "/" in name}
    assert directions == {"text_to_image", "image_to_text"}
    assert test.counts["text_to_image/queries"] == COUNT - 1 and test.counts["text_to_image/left_out"] == 1
    assert set(io.read_tensors(output / "embeddings.safetensors")) == {"safe_caption", "unsafe_caption"}
