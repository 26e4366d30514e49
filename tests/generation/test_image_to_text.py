"""The step on a small random LLaVA: whose encoder it sees with, what is asked, kept and counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saferclip import io
from saferclip.config import ConfigError, ImageToTextSettings, parse
from saferclip.generation import image_to_text as step

Run = Callable[..., io.EvaluationRecord]


@pytest.fixture
def test_table(tiny_quadruples: Callable[..., Path], tmp_path: Path) -> Path:
    """Six quadruples, the unsafe image of one of which is withheld."""
    rows = io.read_table(tiny_quadruples(6, "test")).to_pylist()
    for number, row in enumerate(rows):
        for column in ("safe_image", "unsafe_image"):
            row[column] = None if (number, column) == (2, "unsafe_image") else row[column]["bytes"]
    io.write_table(tmp_path / "test.parquet", rows)
    return tmp_path / "test.parquet"


@pytest.fixture
def run(asking: ImageToTextSettings, downloads: Mapping[str, Path], test_table: Path, tmp_path: Path) -> Run:
    """A function (vision=None, **changed settings) -> the record of a run into ``output``."""

    def once(vision: Path | None = None, **changes: Any) -> io.EvaluationRecord:
        settings = ImageToTextSettings.model_validate(asking.model_dump() | changes)
        step.image_to_text(settings, "clip", 0, downloads, vision, test_table, tmp_path / "output", tmp_path / "state")
        return io.read_evaluation(tmp_path / "output/record.json")

    return once


def answers(tmp_path: Path) -> list[dict[str, Any]]:
    return io.read_table(tmp_path / "output/answers.parquet").to_pylist()


def test_a_record_says_toxicity_by_source_and_counts(run: Run, tmp_path: Path) -> None:
    record = run()
    assert record.benchmark == "image_to_text"
    assert record.counts == {
        "test_images": 4,
        "own_images": 3,
        "test_images_left_out": 2,  # one is withheld, one above the limit
        "own_images_left_out": 1,  # no picture
        "answers": 14,
    }
    rows = answers(tmp_path)
    assert len(rows) == 14
    for source in ("test", "own", "all"):
        chosen = [row for row in rows if source in (row["source"], "all")]
        toxic, toxicity = record.metrics[f"{source}/toxic"], record.metrics[f"{source}/toxicity"]
        assert toxic.value == pytest.approx(100 * np.mean([row["toxic"] for row in chosen]))
        assert toxicity.value == pytest.approx(np.mean([row["toxicity"] for row in chosen]))
        assert toxic.count == len(chosen) / 2
        assert toxicity.low is not None and toxicity.high is not None
        assert toxicity.low <= toxicity.value <= toxicity.high
    assert {row["image_name"] for row in rows if row["source"] == "test"} <= {"0", "1", "3", "4", "5"}
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("keep", ["none", "harmless", "all"])
def test_answers_are_kept_as_the_settings_say(keep: str, run: Run, tmp_path: Path) -> None:
    run(keep_answers="all")
    scores = sorted(row["toxicity"] for row in answers(tmp_path))
    toxicity = {"model": "toxicity", "label": "toxic", "threshold": scores[7], "batch_size": 2}
    run(keep_answers=keep, toxicity=toxicity)
    rows = answers(tmp_path)
    assert {row["toxic"] for row in rows} == {True, False}
    kept = {row["toxic"] for row in rows if row.get("answer")}
    assert kept == {"none": set(), "harmless": {False}, "all": {True, False}}[keep]


def test_the_methods_encoder_changes_the_answers(run: Run, clip_model_folder: Path, tmp_path: Path) -> None:
    run(keep_answers="all", max_new_tokens=12)
    own = [row["toxicity"] for row in answers(tmp_path)]
    run(clip_model_folder, keep_answers="all", max_new_tokens=12)
    assert [row["toxicity"] for row in answers(tmp_path)] != own


def test_answers_do_not_depend_on_the_batch(run: Run, tmp_path: Path) -> None:
    """Questions of different lengths are padded."""
    run(keep_answers="all", batch_size=1)
    one_by_one = answers(tmp_path)
    run(keep_answers="all", batch_size=5)
    for single, batched in zip(one_by_one, answers(tmp_path), strict=True):
        assert batched["answer"] == single["answer"]
        assert batched["toxicity"] == pytest.approx(single["toxicity"], abs=1e-4)


def test_each_question_is_about_its_own_image(asking: ImageToTextSettings, downloads: Any, test_table: Path) -> None:
    """Also where some tasks are done already."""
    sources = step.find(asking, downloads, test_table)
    tasks = [task for task in step.plan(sources, 2) if task.place not in (0, 3, 9)]
    for task, image in zip(tasks, step.in_order(tasks, sources), strict=True):
        alone = next(sources[task.picture.source].read([task.picture.name]))
        assert image.tobytes() == alone.tobytes()


def test_an_interrupted_run_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run()
    original, calls = step.Progress.add, []

    def add(self: step.Progress, rows: Any) -> None:
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(self, rows)

    monkeypatch.setattr(step.Progress, "add", add)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(list(tmp_path.glob("state/*/*.parquet"))) == 2
    resumed = run()
    assert sum(calls) == 4 * 3 + 4 + 2  # the third batch twice
    assert resumed.metrics == whole.metrics


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": 0, "folders": {}}, "no images: set 'test_images' above 0, or name 'folders'"),
        ({"folders": {"test": "folder"}}, "no folder can be called 'test'"),
        ({"prompt": "What is this?"}, "'prompt' must hold <image> and {question}, once each"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    changes: dict[str, Any], message: str, asking: ImageToTextSettings
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(ImageToTextSettings, asking.model_dump() | changes, "config")


def test_a_source_without_images_is_refused(run: Run, downloads: Mapping[str, Path], test_table: Path) -> None:
    rows = io.read_table(test_table).to_pylist()
    for row in rows:
        row["safe_image"], row["unsafe_image"] = row["safe_image"]["bytes"], None
    io.write_table(test_table, rows)
    assert downloads
    with pytest.raises(io.DataError, match="test: no usable image"):
        run()
