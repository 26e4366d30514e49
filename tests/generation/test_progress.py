"""What is kept of interrupted work, and when it is thrown away."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from saferclip.generation.progress import Progress, batches


class Task(NamedTuple):
    place: int


TASKS = [Task(place) for place in range(5)]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(b"1")
    return tmp_path / "weights"


def resume(folder: Path, weights: Path, setting: int = 1) -> Progress:
    return Progress.resume(folder / "state", {"setting": setting}, [weights], {"model": weights.parent / "model"})


def test_finished_rows_are_there_again(tmp_path: Path, weights: Path) -> None:
    progress = resume(tmp_path, weights)
    assert progress.pending(TASKS) == TASKS
    progress.add([{"place": 2, "image": b"png", "score": 0.5}, {"place": 3, "image": None, "score": 0.0}])
    progress.add([{"place": 0, "image": None, "score": 1.0}])
    again = resume(tmp_path, weights)
    assert again.pending(TASKS) == [Task(1), Task(4)]
    assert [(row["place"], row["image"]) for row in again.rows()] == [(0, None), (2, b"png"), (3, None)]
    again.remove()
    assert not (tmp_path / "state").exists()
    assert resume(tmp_path, weights).pending(TASKS) == TASKS


def test_other_settings_inputs_or_downloads_start_anew(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "model").mkdir()

    def keep(setting: int = 1) -> None:
        resume(tmp_path, weights, setting).add([{"place": 0, "score": 0.5}])
        assert len(resume(tmp_path, weights, setting).pending(TASKS)) == 4

    keep()
    assert len(resume(tmp_path, weights, setting=2).pending(TASKS)) == 5
    keep(setting=2)
    weights.write_bytes(b"2")
    assert len(resume(tmp_path, weights, setting=2).pending(TASKS)) == 5
    keep(setting=2)
    (tmp_path / "model/config.json").write_text("{}")
    assert len(resume(tmp_path, weights, setting=2).pending(TASKS)) == 5
    assert len(list((tmp_path / "state").iterdir())) <= 1


def test_batches_keep_the_order_and_lose_nothing() -> None:
    assert list(batches(TASKS, 2)) == [TASKS[:2], TASKS[2:4], TASKS[4:]]
    assert list(batches([], 2)) == []
