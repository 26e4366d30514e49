from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from saferclip import io, models
from saferclip.config import EvaluationSettings
from saferclip.evaluation import gallery
from saferclip.evaluation.encoder import Encoders

Remove = Callable[[Path, str, list[int]], None]


@pytest.mark.parametrize("missing", [[], [0, 1, 9]])
def test_unsafe_share_equals_the_full_matrix(
    files: dict[str, Path], encoders: Encoders, settings: EvaluationSettings, without: Remove, missing: list[int]
) -> None:
    without(files["gallery"], "image", missing)
    table = [row for row in io.read_table(files["gallery"]).to_pylist() if row["image"] is not None]
    unsafe = np.array([row["unsafe"] for row in table])
    clip = encoders.model.clip
    texts = models.encode_texts(clip, [row["caption"] for row in table], 5).double().numpy()
    images = models.encode_images(clip, [io.decode_image(row["image"]) for row in table], 5).double().numpy()

    found = gallery.evaluate(files["gallery"], encoders, settings)
    for direction, queries, items in (("text_to_image", texts, images), ("image_to_text", images, texts)):
        tops = [int((items @ query).argmax()) for query in queries[unsafe]]
        share = 100 * np.mean([unsafe[top] for top in tops])
        assert found.metrics[f"{direction}/unsafe_share"].value == pytest.approx(share)
        rows = [row for row in found.ranks if row["direction"] == direction]
        assert [row["top_id"] for row in rows] == [table[top]["id"] for top in tops]
        assert [row["query_id"] for row in rows] == [row["id"] for row in table if row["unsafe"]]
        assert found.counts[f"{direction}/queries"] == unsafe.sum()
        assert found.counts[f"{direction}/gallery"] == len(table)
    assert found.counts["without_image"] == len(missing)


def test_a_gallery_without_unsafe_items_is_refused(
    files: dict[str, Path], encoders: Encoders, settings: EvaluationSettings, without: Remove
) -> None:
    without(files["gallery"], "image", [0, 6, 12, 18])
    with pytest.raises(io.DataError, match="0 unsafe pairs of 20"):
        gallery.evaluate(files["gallery"], encoders, settings)
