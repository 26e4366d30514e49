"""The step: a model folder like a trained one, a record, and the choice of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from saferclip import io, models
from saferclip.editing import edit, selection
from saferclip.io import DataError
from saferclip.provenance import file_digest
from saferclip.training.validation import SELECTION_SCORE


@pytest.mark.parametrize("kind", ["uwm", "projection"])
def test_an_edit_is_the_same_every_time_and_says_what_it_is(inputs: Any, tmp_path: Path, kind: str) -> None:
    settings = getattr(inputs, kind)()
    for name in ("one", "other"):
        edit.edit(settings, **inputs.files(), output=tmp_path / name)
    assert {file.name for file in (tmp_path / "one").iterdir()} == {models.WEIGHTS, models.ARCHITECTURE, edit.RECORD}
    assert (tmp_path / "one" / models.WEIGHTS).read_bytes() == (tmp_path / "other" / models.WEIGHTS).read_bytes()
    record = io.read_json(tmp_path / "one" / edit.RECORD)
    assert record["provenance"]["settings"] == settings.model_dump(mode="json")
    assert record["provenance"]["seed"] is None
    assert record["inputs_sha256"]["train"] == file_digest(inputs.train)
    assert record["validation_rows"]["text_to_image"] == 6
    assert 0 <= record["validation"][SELECTION_SCORE] <= 100


def record(path: Path, score: float | None, **settings: Any) -> Path:
    scores = {} if score is None else {"text_to_image/recall@1": 50.0, SELECTION_SCORE: score}
    io.write_json(path, {"validation": scores, "provenance": {"settings": {"edit": settings, "batch_size": 4}}})
    return path


def test_the_highest_score_is_chosen_and_the_first_of_equals(tmp_path: Path) -> None:
    paths = [
        record(tmp_path / f"{place}.json", score, kind="projection", rank=rank, subspace="shared")
        for place, (rank, score) in enumerate([(2, 4.0), (4, 6.0), (8, 6.0)])
    ]
    lone = record(tmp_path / "lone.json", 3.0, kind="uwm", factor=-1)
    selection.select({"projection": paths, "uwm": [lone]}, tmp_path / "chosen.csv")
    found = pd.read_csv(tmp_path / "chosen.csv")
    assert found["settings"].tolist() == ["rank=2", "rank=4", "rank=8", "as configured"]
    assert found["chosen"].tolist() == [False, True, False, True]
    assert found[SELECTION_SCORE].tolist() == [4.0, 6.0, 6.0, 3.0]


def test_a_choice_needs_scores(tmp_path: Path) -> None:
    path = record(tmp_path / "a.json", None, kind="uwm")
    with pytest.raises(DataError, match="no selection score"):
        selection.select({"uwm": [path]}, tmp_path / "chosen.csv")
