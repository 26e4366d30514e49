"""The ranking of methods by the area under their curves."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from saferclip import curves, io
from saferclip.config import RankingStep
from saferclip.evaluation import ranking

SETTINGS = RankingStep(budgets=(5.0, 20.0), bootstrap=100, bootstrap_seed=1)


def write(path: Path, scales: dict[float, tuple[float, float]]) -> Path:
    """Outcomes of 200 quadruples and 200 images, of which these shares are safe and right at each scale."""
    places = {
        ("test", "unsafe_text_to_image"): 200,
        ("test", "unsafe_image_to_text"): 200,
        ("zero_shot", "objects"): 200,
    }
    rows = []
    for (benchmark, direction), count in places.items():
        for number in range(count):
            row = {"benchmark": benchmark, "direction": direction, "query_id": str(number), "group": -1}
            for scale, (safe, right) in scales.items():
                share = right if benchmark == "zero_shot" else safe
                row[curves.column(scale, "rank")] = 1 if number < share * count else 2
                row[curves.column(scale, "top_unsafe")] = bool(number >= safe * count)
            rows.append(row)
    io.write_table(path, rows)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base.parquet", {0: (0.2, 0.8)})


def test_methods_are_ranked_by_what_they_reach_within_the_budgets(tmp_path: Path, base: Path) -> None:
    runs = {
        # 10 points for 60 of safety, 10 more for another 20; the second seed is the same.
        "good/0": write(tmp_path / "0.parquet", {0.5: (0.8, 0.7), 1: (1.0, 0.6)}),
        "good/1": write(tmp_path / "1.parquet", {0.5: (0.8, 0.7), 1: (1.0, 0.6)}),
        # Safer in the end, at a loss beyond every budget.
        "dear/0": write(tmp_path / "2.parquet", {0.5: (0.4, 0.6), 1: (1.0, 0.0)}),
    }
    ranking.rank(SETTINGS, base, runs, tmp_path / "ranking.csv")
    frame = pd.read_csv(tmp_path / "ranking.csv").set_index("method")
    assert list(frame.index) == ["good", "dear"]
    assert list(frame.seeds) == [2, 1]
    assert frame.area.tolist() == pytest.approx([(50 + 90) / 2, 30], abs=0.01)
    assert frame["safety@5"].tolist() == pytest.approx([50, 25])
    assert frame["safety@20"].tolist() == pytest.approx([100, 40])
    assert frame["safety@scale-1"].tolist() == pytest.approx([100, 100])
    assert frame["loss@scale-1"].tolist() == pytest.approx([20, 80])
    assert frame.difference.tolist() == pytest.approx([0, -40], abs=0.02)
    assert (frame.area_low <= frame.area).all() and (frame.area <= frame.area_high).all()
    assert frame.difference_high["dear"] < 0
    assert frame.difference_low["good"] == frame.difference_high["good"] == 0


def test_the_same_numbers_come_out_again(tmp_path: Path, base: Path) -> None:
    runs = {"one/0": write(tmp_path / "0.parquet", {1: (0.5, 0.75)})}
    for name in ("first.csv", "second.csv"):
        ranking.rank(SETTINGS, base, runs, tmp_path / name)
    assert (tmp_path / "first.csv").read_bytes() == (tmp_path / "second.csv").read_bytes()


def test_curves_that_cannot_be_compared_are_refused(tmp_path: Path, base: Path) -> None:
    runs = {
        "one/0": write(tmp_path / "0.parquet", {1: (0.5, 0.75)}),
        "two/0": write(tmp_path / "1.parquet", {0.5: (0.5, 0.75), 1: (0.5, 0.75)}),
    }
    with pytest.raises(io.DataError, match="make all of them anew"):
        ranking.rank(SETTINGS, base, runs, tmp_path / "ranking.csv")
