from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from saferclip import io, models
from saferclip.config import EvaluationSettings
from saferclip.evaluation import drift
from saferclip.evaluation.encoder import Encoder, Encoders

Remove = Callable[[Path, str, list[int]], None]


def embedded(path: Path, encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """Safe captions and safe images of all rows."""
    table = io.read_table(path)
    texts = models.encode_texts(encoder.clip, table["safe_caption"].to_pylist(), 5)
    images = models.encode_images(encoder.clip, map(io.decode_image, table["safe_image"].to_pylist()), 5)
    return texts.double().numpy(), images.double().numpy()


def slow_uniformity(rows: np.ndarray) -> float:
    return math.log(np.mean([math.exp(-2 * ((a - b) ** 2).sum()) for a, b in combinations(rows, 2)]))


def test_drift_equals_plain_formulas(files: dict[str, Path], encoders: Encoders, settings: EvaluationSettings) -> None:
    found = {name: metric.value for name, metric in drift.evaluate(files["test"], encoders, settings).metrics.items()}
    texts, images = embedded(files["test"], encoders.model)
    base_texts, base_images = embedded(files["test"], encoders.base)
    expected = {
        "safe_text/cosine": np.mean([a @ b for a, b in zip(texts, base_texts, strict=True)]),
        "safe_image/cosine": np.mean([a @ b for a, b in zip(images, base_images, strict=True)]),
        "alignment": np.mean([((a - b) ** 2).sum() for a, b in zip(texts, images, strict=True)]),
        "uniformity_text": slow_uniformity(texts),
        "uniformity_image": slow_uniformity(images),
    }
    assert found == pytest.approx(expected, abs=1e-5)
    assert expected["safe_text/cosine"] < 0.9  # two different models


def test_the_untuned_model_does_not_drift(
    files: dict[str, Path], settings: EvaluationSettings, tiny_clip_folder: Path
) -> None:
    found = drift.evaluate(files["test"], Encoders.load(tiny_clip_folder, tiny_clip_folder, 8), settings).metrics
    for name in ("safe_text/cosine", "safe_image/cosine"):
        assert (found[name].value, found[name].low, found[name].high) == pytest.approx((1, 1, 1), abs=1e-6)


def test_rows_without_a_safe_image_still_count_for_text(
    files: dict[str, Path], encoders: Encoders, settings: EvaluationSettings, without: Remove
) -> None:
    without(files["test"], "safe_image", [0, 1, 2])
    found = drift.evaluate(files["test"], encoders, settings)
    count = found.counts["rows"]
    assert (found.metrics["safe_text/cosine"].count, found.metrics["uniformity_text"].count) == (count, count)
    assert (found.metrics["safe_image/cosine"].count, found.metrics["alignment"].count) == (count - 3, count - 3)
    assert found.counts["without_safe_image"] == 3
