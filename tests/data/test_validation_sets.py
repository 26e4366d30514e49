"""Zero-shot sets beside the validation split: the test sets' classes, none of their images."""

from __future__ import annotations

from pathlib import Path

from saferclip import io
from saferclip.config import MiniSets, SceneDetail, SetsStep, ValidationSets
from saferclip.data import embedded, test_sets, validation_sets

DETAIL = SceneDetail(named_objects=2, colour=0.7, background=0.5)


def test_same_classes_other_images(tmp_path: Path) -> None:
    world = {"seed": 3, "detail": DETAIL, "zero_shot_images": 4}
    validation_sets.build(ValidationSets(**world), tmp_path / "validation")
    sizes = MiniSets(**world, gallery_unsafe=1, gallery_safe_ratio=1)
    test_sets.build(SetsStep(embedded=sizes), {}, None, tmp_path / "test")
    read = [io.read_table(tmp_path / name / "zero_shot.parquet") for name in ("validation", "test")]
    for column in ("set", "label"):
        assert read[0][column].to_pylist() == read[1][column].to_pylist()
    pictures = [{cell["bytes"] for cell in table["image"].to_pylist()} for table in read]
    assert len(pictures[0]) == len(pictures[1]) == 9 * 4
    assert not pictures[0] & pictures[1]
    described = [io.read_json(tmp_path / name / "zero_shot.json") for name in ("validation", "test")]
    assert described[0] == described[1]
    assert sorted(path.name for path in (tmp_path / "validation").iterdir()) == ["zero_shot.json", "zero_shot.parquet"]


def test_no_other_table_draws_from_their_stream() -> None:
    assert not set(embedded.VALIDATION_STREAMS.values()) & set(embedded.STREAMS.values())
