from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saferclip import io, models
from saferclip.config import EvaluationSettings
from saferclip.evaluation import probes
from saferclip.evaluation.encoder import Encoders

COUNT = 20


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Captions and foils in turns: a random model may prefer one order of colours for every image."""
    random = np.random.default_rng(6)
    orders = [("red", "blue"), ("blue", "red")]
    rows = [
        {
            "probe": name,
            "id": f"{name}-{number}",
            "caption": "a {} thing and a {} thing".format(*orders[number % 2]),
            "foil": "a {} thing and a {} thing".format(*orders[1 - number % 2]),
            "image": io.encode_png(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)),
        }
        for name in ("binding", "counting")
        for number in range(COUNT)
    ]
    io.write_table(tmp_path / "probes.parquet", rows)
    io.write_json(
        tmp_path / "probes.json", {name: {"title": name, "control": False} for name in ("binding", "counting")}
    )
    return tmp_path / "probes.parquet"


def slow(path: Path, encoders: Encoders) -> list[bool]:
    """Whether each row's image is nearer to its caption, computed row by row."""
    found = []
    for row in io.read_table(path).to_pylist():
        image = models.encode_images(encoders.model.clip, [io.decode_image(row["image"])], 1)[0]
        caption, foil = models.encode_texts(encoders.model.clip, [row["caption"], row["foil"]], 2)
        found.append(float(image @ caption) > float(image @ foil))
    return found


def test_accuracy_is_the_share_of_images_nearer_to_their_caption(
    table: Path, encoders: Encoders, settings: EvaluationSettings
) -> None:
    found, expected = probes.evaluate(table, encoders, settings), slow(table, encoders)
    assert 0 < sum(expected) < len(expected)
    for place, name in enumerate(("binding", "counting")):
        part = expected[place * COUNT : (place + 1) * COUNT]
        metric = found.metrics[f"{name}/accuracy"]
        assert (metric.value, metric.count) == (100 * np.mean(part), COUNT)
        assert metric.low is not None and metric.high is not None and metric.low <= metric.value <= metric.high
    assert [row["rank"] for row in found.ranks] == [1 if right else 2 for right in expected]
    assert [row["top_id"] for row in found.ranks] == ["caption" if right else "foil" for right in expected]
    assert [row["query_id"] for row in found.ranks][:2] == ["binding-0", "binding-1"]


def test_a_tie_is_an_error(table: Path, encoders: Encoders, settings: EvaluationSettings) -> None:
    rows = [{**row, "foil": row["caption"], "image": row["image"]["bytes"]} for row in io.read_table(table).to_pylist()]
    io.write_table(table, rows)
    assert probes.evaluate(table, encoders, settings).metrics["binding/accuracy"].value == 0


def test_rows_without_an_image_are_left_out(
    table: Path, encoders: Encoders, settings: EvaluationSettings, without: Callable[..., None]
) -> None:
    without(table, "image", [0, 1, *range(COUNT, 2 * COUNT)])
    found: Any = probes.evaluate(table, encoders, settings)
    assert set(found.metrics) == {"binding/accuracy"}
    assert found.metrics["binding/accuracy"].count == COUNT - 2
    assert found.counts == {
        **{"rows": 2 * COUNT, "without_image": COUNT + 2},
        **{"binding/images": COUNT - 2, "counting/images": 0},
    }


def test_a_probe_that_is_not_described_is_refused(
    table: Path, encoders: Encoders, settings: EvaluationSettings
) -> None:
    io.write_json(table.with_suffix(".json"), {"binding": {"title": "Binding", "control": False}})
    message = r"probes\.parquet: row 20 belongs to probe 'counting', which probes\.json does not name"
    with pytest.raises(io.DataError, match=message):
        probes.evaluate(table, encoders, settings)
