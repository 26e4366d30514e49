from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from saferclip import io, models
from saferclip.config import EvaluationSettings
from saferclip.evaluation import geometry
from saferclip.evaluation.encoder import Encoder, Encoders
from saferclip.evaluation.evaluate import evaluate

Remove = Callable[[Path, str, list[int]], None]
K = 4


@pytest.fixture
def chosen(settings: EvaluationSettings) -> EvaluationSettings:
    return settings.model_copy(update={"benchmarks": ("geometry",), "neighbours": K})


def embedded(path: Path, encoder: Encoder) -> dict[str, np.ndarray]:
    """Different safe captions and safe images, in their order."""
    table = io.read_table(path)
    captions = list(dict.fromkeys(table["safe_caption"].to_pylist()))
    images = {cell["bytes"]: cell for cell in table["safe_image"].to_pylist()}
    texts = models.encode_texts(encoder.clip, captions, 5)
    pictures = models.encode_images(encoder.clip, map(io.decode_image, images.values()), 5)
    return {"text": texts.double().numpy(), "image": pictures.double().numpy()}


def slow_spread(rows: np.ndarray) -> float:
    return float(((rows - rows.mean(axis=0)) ** 2).sum(axis=1).mean())


def nearest(rows: np.ndarray) -> list[set[int]]:
    order = np.argsort(-(rows @ rows.T) + 9 * np.eye(len(rows)), axis=1)
    return [set(places) for places in order[:, :K].tolist()]


def test_geometry_equals_plain_formulas(files: dict[str, Path], encoders: Encoders, chosen: EvaluationSettings) -> None:
    found = geometry.evaluate(files["test"], encoders, chosen)
    assert isinstance(encoders.base, Encoder)
    tuned, base = embedded(files["test"], encoders.model), embedded(files["test"], encoders.base)
    for name in ("text", "image"):
        after, before = tuned[name], base[name]
        pairs = zip(nearest(before), nearest(after), strict=True)
        expected = {
            "spread": slow_spread(after),
            "spread_ratio": slow_spread(after) / slow_spread(before),
            "neighbour_overlap": np.mean([len(a & b) / len(a | b) for a, b in pairs]),
        }
        values = {key: found.metrics[f"{name}/{key}"].value for key in expected}
        assert values == pytest.approx(expected, rel=1e-4)
        assert expected["neighbour_overlap"] < 0.9  # two different models
        assert found.counts[f"{name}/inputs"] == len(after)


def test_the_interval_of_the_ratio_resamples_both_spreads_together(chosen: EvaluationSettings) -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.nn.functional.normalize(torch.randn(40, 6, generator=generator), dim=-1)
    after = torch.nn.functional.normalize(before + torch.tensor([1.0, 0, 0, 0, 0, 0]), dim=-1)
    found = geometry.spread_ratio(after, before, chosen)
    random = np.random.default_rng(chosen.bootstrap_seed)
    drawn = random.integers(40, size=(chosen.bootstrap, 40))
    ratios = [slow_spread(after.numpy()[rows]) / slow_spread(before.numpy()[rows]) for rows in drawn]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(ratios, [2.5, 97.5])), rel=1e-4)
    assert found.low is not None and found.high is not None and found.low < found.value < found.high < 1


def test_resamples_drawn_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.cat(list(geometry.resampled_counts(9, 20, 3)))
    monkeypatch.setattr(geometry, "DRAWN_AT_ONCE", 40)
    parts = list(geometry.resampled_counts(9, 20, 3))
    assert len(parts) == 5
    assert torch.equal(torch.cat(parts), whole)
    assert (whole.sum(dim=1) == 9).all()


def test_the_untuned_model_keeps_everything(
    files: dict[str, Path], chosen: EvaluationSettings, tiny_clip_folder: Path
) -> None:
    found = geometry.evaluate(files["test"], Encoders.load(tiny_clip_folder, tiny_clip_folder, 8), chosen).metrics
    for name in ("text/spread_ratio", "text/neighbour_overlap", "image/spread_ratio", "image/neighbour_overlap"):
        assert (found[name].value, found[name].low, found[name].high) == (1, 1, 1)


def test_copies_count_once(files: dict[str, Path], encoders: Encoders, chosen: EvaluationSettings) -> None:
    once = geometry.evaluate(files["test"], encoders, chosen)
    table = io.read_table(files["test"]).to_pylist()
    for row in table:
        row |= {column: row[column]["bytes"] for column in ("safe_image", "unsafe_image")}
    io.write_table(files["test"], [*table, *({**row, "id": f"{row['id']}-again"} for row in table)])
    twice = geometry.evaluate(files["test"], encoders, chosen)
    assert twice.metrics == once.metrics
    assert twice.counts["rows"] == 2 * once.counts["rows"]


def test_rows_without_a_safe_image_still_count_for_text(
    files: dict[str, Path], encoders: Encoders, chosen: EvaluationSettings, without: Remove
) -> None:
    complete = geometry.evaluate(files["test"], encoders, chosen)
    without(files["test"], "safe_image", [0, 1, 2])
    found = geometry.evaluate(files["test"], encoders, chosen)
    assert found.counts["image/inputs"] == complete.counts["image/inputs"] - 3
    assert found.metrics["text/spread_ratio"] == complete.metrics["text/spread_ratio"]
    assert found.metrics["image/spread_ratio"] != complete.metrics["image/spread_ratio"]


def test_what_cannot_differ_is_left_out(
    files: dict[str, Path], encoders: Encoders, chosen: EvaluationSettings, without: Remove
) -> None:
    rows = io.read_table(files["test"]).num_rows
    without(files["test"], "safe_image", list(range(1, rows)))
    one = geometry.evaluate(files["test"], encoders, chosen)
    assert not any(name.startswith("image/") for name in one.metrics) and one.counts["image/inputs"] == 1
    without(files["test"], "safe_image", list(range(rows)))
    assert geometry.evaluate(files["test"], encoders, chosen).counts["image/inputs"] == 0
    all_others = chosen.model_copy(update={"neighbours": one.counts["text/inputs"] - 1})
    found = geometry.evaluate(files["test"], encoders, all_others).metrics
    assert "text/spread_ratio" in found and "text/neighbour_overlap" not in found


def test_with_what_the_untuned_model_hands_over_nothing_changes(
    tmp_path: Path,
    chosen: EvaluationSettings,
    files: dict[str, Path],
    tiny_resnet_clip_folder: Path,
    tiny_clip_folder: Path,
) -> None:
    evaluate(chosen, "clip", 0, tiny_clip_folder, tiny_clip_folder, files, tmp_path / "untuned")
    tuned = (chosen, "safer-clip", 0, tiny_resnet_clip_folder, tiny_clip_folder, files)
    evaluate(*tuned, tmp_path / "alone")
    evaluate(*tuned, tmp_path / "handed over", tmp_path / "untuned")
    found = [(tmp_path / name / "geometry.json").read_bytes() for name in ("alone", "handed over")]
    assert found[0] == found[1]


def test_drift_and_geometry_compare_one_table(
    tmp_path: Path, chosen: EvaluationSettings, files: dict[str, Path], tiny_clip_folder: Path
) -> None:
    both = chosen.model_copy(update={"benchmarks": ("drift", "geometry")})
    apart = {**files, "geometry": files["nsfw_caps"]}
    with pytest.raises(io.DataError, match="drift and geometry compare the same inputs; name one file for both"):
        evaluate(both, "clip", 0, tiny_clip_folder, tiny_clip_folder, apart, tmp_path / "out")
