"""The rule that chooses learning rates."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from saferclip import io
from saferclip.training import selection


def epochs(folder: Path, name: str, *scores: float) -> Path:
    path = folder / f"{name}.csv"
    rows = [{"epoch": number + 1, "selection_score": score} for number, score in enumerate(scores)]
    io.write_csv(path, rows)
    return path


def test_highest_final_score_wins_for_each_method(tmp_path: Path) -> None:
    runs = {
        "safe-clip": {1e-2: epochs(tmp_path, "a", 9, 20), 1e-3: epochs(tmp_path, "b", 1, 21)},
        "safer-clip": {
            3e-3: epochs(tmp_path, "c", 99, 40.5),
            3e-4: epochs(tmp_path, "d", 1, 40.5),
            1e-3: epochs(tmp_path, "e", 1, 40),
        },
    }
    selection.select(runs, tmp_path / "selection.csv")
    rows = pd.read_csv(tmp_path / "selection.csv")
    assert list(rows.columns) == ["method", "learning_rate", "score", "chosen"]
    chosen = rows[rows.chosen]
    assert dict(zip(chosen.method, chosen.learning_rate, strict=True)) == {"safe-clip": 1e-3, "safer-clip": 3e-4}
    assert rows[rows.method == "safer-clip"].score.tolist() == [40.5, 40, 40.5]
    assert rows[rows.method == "safer-clip"].learning_rate.tolist() == [3e-4, 1e-3, 3e-3]


@pytest.mark.parametrize("content", [None, "", "epoch,loss\n1,0.5\n", "epoch,selection_score\n"])
def test_table_without_score_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "epochs.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(io.DataError, match=r"epochs\.csv: no selection score"):
        selection.select({"safer-clip": {1e-3: path}}, tmp_path / "selection.csv")
    assert not (tmp_path / "selection.csv").exists()
