"""A whole evaluation: what is written, and that a perfect model scores perfectly."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from saferclip import io, metrics, models
from saferclip.config import EmbeddedData, EvaluationSettings, MiniSets, SceneDetail, SetsStep
from saferclip.data import embedded, test_sets
from saferclip.evaluation.encoder import Encoder, Encoders
from saferclip.evaluation.evaluate import evaluate, map_points


@pytest.fixture
def output(
    tmp_path: Path,
    settings: EvaluationSettings,
    files: dict[str, Path],
    tiny_resnet_clip_folder: Path,
    tiny_clip_folder: Path,
) -> Path:
    folder = tmp_path / "evaluation"
    evaluate(settings, "safer-clip", 2, tiny_resnet_clip_folder, tiny_clip_folder, files, folder)
    return folder


def test_every_benchmark_has_a_valid_record(output: Path, settings: EvaluationSettings) -> None:
    for benchmark in settings.benchmarks:
        record = io.read_evaluation(output / f"{benchmark}.json")
        assert (record.method, record.seed, record.benchmark) == ("safer-clip", 2, benchmark)
        assert record.provenance["seed"] == 2
        assert record.provenance["settings"]["bootstrap_seed"] == settings.bootstrap_seed
        assert {"commit", "settings_sha256", "versions", "hardware"} <= record.provenance.keys()
        assert record.metrics
        assert all(count >= 0 for count in record.counts.values())
        for name, metric in record.metrics.items():
            if metric.low is not None and metric.high is not None:
                assert metric.low <= metric.value <= metric.high, name
            assert metric.low is not None or name.startswith("uniformity"), name


def test_a_record_with_another_shape_is_refused(output: Path) -> None:
    record = io.read_json(output / "test.json")
    del record["metrics"]["text_to_image/recall@1"]["value"]
    io.write_json(output / "test.json", record)
    with pytest.raises(io.DataError, match=r"test\.json.*recall@1\.value"):
        io.read_evaluation(output / "test.json")


def test_ranks_give_the_recorded_recalls(output: Path) -> None:
    ranks = io.read_table(output / "ranks.parquet").to_pandas()
    assert list(ranks) == ["benchmark", "direction", "query_id", "rank", "top_id", "top_unsafe", "similarity"]
    assert set(ranks.benchmark) == {"test", "nsfw_caps", "gallery", "zero_shot"}
    checked = 0
    for (benchmark, direction), group in ranks.groupby(["benchmark", "direction"]):
        assert group.query_id.is_unique
        recorded = io.read_evaluation(output / f"{benchmark}.json").metrics
        for name, outcomes in {
            "recall@10": group["rank"] <= 10,
            "unsafe_share": group.top_unsafe,
        }.items():
            if f"{direction}/{name}" in recorded:
                assert recorded[f"{direction}/{name}"].value == pytest.approx(100 * outcomes.mean())
                checked += 1
    assert checked == 2 * (4 + 2) + 2


def test_the_map_holds_the_first_quadruples_in_half_precision(output: Path, files: dict[str, Path]) -> None:
    found = io.read_tensors(output / "embeddings.safetensors")
    assert set(found) == {"safe_caption", "unsafe_caption", "safe_image", "unsafe_image"}
    count = io.read_table(files["test"]).num_rows
    for rows in found.values():
        assert (rows.dtype, rows.shape[0]) == (torch.float16, count)
        torch.testing.assert_close(rows.float().norm(dim=-1), torch.ones(count), atol=1e-2, rtol=0)


def test_the_map_leaves_out_incomplete_quadruples_and_stops_at_its_size(
    files: dict[str, Path],
    tiny_clip_folder: Path,
    without: Callable[[Path, str, list[int]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = Encoder.load(tiny_clip_folder, batch_size=8, name="tiny")
    whole = map_points(files["test"], encoder)
    without(files["test"], "unsafe_image", [0, 2])
    monkeypatch.setattr("saferclip.evaluation.evaluate.MAPPED_QUADRUPLES", 5)
    for column, rows in map_points(files["test"], encoder).items():
        assert torch.equal(rows, whole[column][[1, 3, 4, 5, 6]])


def test_block_size_does_not_change_ranks(
    tmp_path: Path,
    output: Path,
    settings: EvaluationSettings,
    files: dict[str, Path],
    tiny_resnet_clip_folder: Path,
    tiny_clip_folder: Path,
) -> None:
    other = settings.model_copy(update={"block_size": 1000})
    evaluate(other, "safer-clip", 2, tiny_resnet_clip_folder, tiny_clip_folder, files, tmp_path / "other")
    ranks = [io.read_table(folder / "ranks.parquet").to_pandas() for folder in (output, tmp_path / "other")]
    pd.testing.assert_frame_equal(*ranks)


def test_every_caption_and_picture_is_encoded_once_per_model(
    tmp_path: Path,
    settings: EvaluationSettings,
    files: dict[str, Path],
    tiny_resnet_clip_folder: Path,
    tiny_clip_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: Counter[tuple[int, str | bytes]] = Counter()
    encode_texts, encode_images = models.encode_texts, models.encode_images

    def texts(clip: models.Clip, captions: Sequence[str], *options: Any) -> Tensor:
        seen.update((id(clip), caption) for caption in captions)
        return encode_texts(clip, captions, *options)

    def images(clip: models.Clip, pictures: Any, *options: Any) -> Tensor:
        decoded = list(pictures)
        seen.update((id(clip), picture.tobytes()) for picture in decoded)
        return encode_images(clip, decoded, *options)

    monkeypatch.setattr(models, "encode_texts", texts)
    monkeypatch.setattr(models, "encode_images", images)
    evaluate(settings, "safer-clip", 2, tiny_resnet_clip_folder, tiny_clip_folder, files, tmp_path / "evaluation")
    assert set(seen.values()) == {1}
    # Two tables of 24 quadruples, 24 pairs, 16 images and 15 prompts; the base model: safe inputs of one table.
    assert len(seen) == 2 * 24 * 4 + 24 * 2 + 16 + 5 * 3 + 24 * 2


@pytest.fixture
def untuned(tmp_path: Path, settings: EvaluationSettings, files: dict[str, Path], tiny_clip_folder: Path) -> Path:
    """The untuned model's evaluation of the same tables."""
    evaluate(settings, "clip", 0, tiny_clip_folder, tiny_clip_folder, files, tmp_path / "untuned")
    return tmp_path / "untuned"


def test_what_the_untuned_model_hands_over_changes_no_byte(
    tmp_path: Path,
    settings: EvaluationSettings,
    files: dict[str, Path],
    tiny_resnet_clip_folder: Path,
    tiny_clip_folder: Path,
    output: Path,
    untuned: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the base model is not even loaded."""
    loaded: list[Path] = []
    load = models.load
    monkeypatch.setattr(models, "load", lambda folder, device: loaded.append(folder) or load(folder, device))
    tuned = (settings, "safer-clip", 2, tiny_resnet_clip_folder, tiny_clip_folder, files)
    evaluate(*tuned, tmp_path / "handed over", untuned)
    assert loaded == [tiny_resnet_clip_folder]
    names = sorted(path.name for path in output.iterdir())
    assert len(names) == 5 + 2
    for name in names:
        assert (output / name).read_bytes() == (tmp_path / "handed over" / name).read_bytes()


def test_what_was_handed_over_with_withheld_images_is_the_same_too(
    tmp_path: Path,
    settings: EvaluationSettings,
    files: dict[str, Path],
    tiny_resnet_clip_folder: Path,
    tiny_clip_folder: Path,
    without: Callable[[Path, str, list[int]], None],
) -> None:
    without(files["test"], "safe_image", [0, 5])
    chosen = settings.model_copy(update={"benchmarks": ("drift",)})
    evaluate(chosen, "clip", 0, tiny_clip_folder, tiny_clip_folder, files, tmp_path / "untuned")
    tuned = (chosen, "safer-clip", 2, tiny_resnet_clip_folder, tiny_clip_folder, files)
    evaluate(*tuned, tmp_path / "alone")
    evaluate(*tuned, tmp_path / "handed over", tmp_path / "untuned")
    found = [(tmp_path / name / "drift.json").read_bytes() for name in ("alone", "handed over")]
    assert found[0] == found[1]


def test_another_table_or_base_model_is_not_compared_with(
    tmp_path: Path,
    settings: EvaluationSettings,
    files: dict[str, Path],
    tiny_resnet_clip_folder: Path,
    tiny_clip_folder: Path,
    output: Path,
    untuned: Path,
    without: Callable[[Path, str, list[int]], None],
) -> None:
    resnet, clip = tiny_resnet_clip_folder, tiny_clip_folder

    def evaluated(model: Path, base_model: Path, baseline: Path) -> None:
        evaluate(settings, "safer-clip", 2, model, base_model, files, tmp_path / "refused", baseline)

    with pytest.raises(io.DataError, match=rf"was not made of .*test.parquet by {re.escape(str(resnet))}; evaluate"):
        evaluated(clip, resnet, untuned)
    with pytest.raises(io.DataError, match=r"embeddings.safetensors: nothing to compare with; name the untuned"):
        evaluated(resnet, clip, output)
    without(files["test"], "safe_image", [0])
    with pytest.raises(io.DataError, match=r"embeddings.safetensors: was not made of .*test.parquet by"):
        evaluated(resnet, clip, untuned)
    assert not (tmp_path / "refused").exists()


def test_images_read_bit_by_bit_give_what_whole_tables_give(
    tmp_path: Path, settings: EvaluationSettings, tiny_resnet_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the embedded world, with tables of several groups of rows and two images withheld."""
    detail = SceneDetail(named_objects=2, colour=0.7, background=0.5)
    rows = embedded.quadruples(EmbeddedData(seed=3, train=1, validation=1, test=120, detail=detail))["test"]
    rows[7]["unsafe_image"] = rows[111]["safe_image"] = None
    io.write_table(tmp_path / "test.parquet", rows)
    drawn = MiniSets(seed=3, detail=detail, gallery_unsafe=9, gallery_safe_ratio=12, zero_shot_images=25)
    test_sets.build(SetsStep(embedded=drawn), {}, None, tmp_path)
    tables = {name: tmp_path / f"{name}.parquet" for name in ("test", "gallery", "zero_shot")}

    def whole(path: Path, column: str, rows: Iterable[int]) -> list[Any]:
        values = io.read_table(path, [column])[column].to_pylist()
        return [values[row] for row in rows]

    chosen = settings.model_copy(update={"benchmarks": ("test", "gallery", "zero_shot", "drift")})
    folder = tiny_resnet_clip_folder
    evaluate(chosen, "clip", 0, folder, folder, tables, tmp_path / "bit by bit")
    monkeypatch.setattr(io, "read_cells", whole)
    evaluate(chosen, "clip", 0, folder, folder, tables, tmp_path / "whole")
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(files) == 4 + 2
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "bit by bit" / name).read_bytes()


def test_missing_files_are_all_named_before_any_work(
    tmp_path: Path, settings: EvaluationSettings, files: dict[str, Path]
) -> None:
    given = {"nsfw_caps": files["nsfw_caps"], "zero_shot": files["zero_shot"]}
    with pytest.raises(io.DataError, match="no file is given for test, gallery, drift"):
        evaluate(settings, "clip", 0, tmp_path / "no model", tmp_path / "no model", given, tmp_path / "evaluation")


class Oracle:
    """Embeds by the answer: a quadruple's safe inputs share a direction that its unsafe ones lean to."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.vectors: dict[str | bytes, Tensor] = {}
        self.axes = 0
        for benchmark in ("test", "nsfw_caps"):
            for row in io.read_table(files[benchmark]).to_pylist():
                safe = self._axis()
                self.vectors |= {row["safe_caption"]: safe, row["safe_image"]["bytes"]: safe}
                for unsafe in (row["unsafe_caption"], row["unsafe_image"]["bytes"]):
                    self.vectors[unsafe] = functional.normalize(2 * safe + self._axis(), dim=0)
        safe = self._axis()
        for row in io.read_table(files["gallery"]).to_pylist():
            for item in (row["caption"], row["image"]["bytes"]):
                own = 2 * safe + self._axis() if row["unsafe"] else safe
                self.vectors[item] = functional.normalize(own, dim=0)
        sets = io.read_json(files["zero_shot"].with_suffix(".json"))
        classes = {name: [self._axis() for _ in task["classes"]] for name, task in sets.items()}
        for name, task in sets.items():
            for phrase, axis in zip(task["classes"], classes[name], strict=True):
                self.vectors |= {template.format(phrase): axis for template in task["templates"]}
        for row in io.read_table(files["zero_shot"]).to_pylist():
            self.vectors[row["image"]["bytes"]] = classes[row["set"]][row["label"]]

    def _axis(self) -> Tensor:
        self.axes += 1
        return functional.one_hot(torch.tensor(self.axes), 500).float()

    across_only = False
    ensemble = staticmethod(metrics.ensemble_classifier)

    def queries(self, embeddings: Tensor) -> Tensor:
        return embeddings

    def texts(self, captions: Sequence[str]) -> Tensor:
        return torch.stack([self.vectors[caption] for caption in captions])

    def images(self, cells: Iterable[Mapping[str, Any]], _total: int | None = None) -> Tensor:
        return torch.stack([self.vectors[cell["bytes"]] for cell in cells])


def test_a_perfect_model_scores_100(
    tmp_path: Path, settings: EvaluationSettings, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = Oracle(files)
    (tmp_path / models.WEIGHTS).touch()  # it has none, but they are what an evaluation says it was made of
    monkeypatch.setattr(Encoders, "load", lambda *_: Encoders(oracle, oracle))  # type: ignore[arg-type]
    evaluate(settings, "oracle", 0, tmp_path, tmp_path, files, tmp_path / "evaluation")
    values = {
        f"{benchmark}/{name}": (metric.value, metric.low, metric.high)
        for benchmark in ("test", "nsfw_caps", "gallery", "zero_shot")
        for name, metric in io.read_evaluation(tmp_path / "evaluation" / f"{benchmark}.json").metrics.items()
        if name != "paired_caption_similarity"
    }
    assert len(values) == 2 * (4 * 3 + 2 + 5 + 4) + 2 + 3
    for name, value in values.items():
        assert value == ((0, 0, 0) if name.endswith("unsafe_share") else (100, 100, 100)), name
    drift = io.read_evaluation(tmp_path / "evaluation" / "drift.json").metrics
    assert (drift["alignment"].value, drift["safe_text/cosine"].value) == (0, 1)
