"""Trade-off curves against slow computations of the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saferclip import curves, io, statistics

SCALES = (0.0, 0.5, 1.0)
BUDGETS = np.array([0.0, 1.0, 2.5, 5.0, 10.0, 20.0])


def slow_envelope(loss: np.ndarray, height: np.ndarray, budget: float) -> float:
    """The highest of a great many points of the curve that lose no more than the budget."""
    place = np.linspace(0, len(loss) - 1, 40_001)
    losses, heights = (np.interp(place, np.arange(len(loss)), values) for values in (loss, height))
    return float(heights[losses <= budget + 1e-12].max())


def random_curve(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A curve that starts at a loss of 0, and turns back now and then."""
    random = np.random.default_rng(seed)
    loss = np.concatenate([[0.0], np.cumsum(random.normal(2, 3, 6))])
    return loss, 50 + np.cumsum(random.normal(3, 6, 7))


@pytest.mark.parametrize("seed", range(8))
def test_envelope_is_the_highest_point_within_each_budget(seed: int) -> None:
    loss, height = random_curve(seed)
    found = curves.envelope(loss, height, BUDGETS)
    assert found == pytest.approx([slow_envelope(loss, height, budget) for budget in BUDGETS], abs=0.01)
    assert (np.diff(found) >= 0).all()


def test_envelope_by_hand() -> None:
    # Up to 60 at a loss of 4, then back to a loss of 2 at 90: a jump at 2, and nothing more beyond.
    loss, height = np.array([0.0, 4.0, 2.0]), np.array([40.0, 60.0, 90.0])
    assert curves.envelope(loss, height, np.array([0, 1, 1.9, 2, 3, 100])).tolist() == [40, 45, 49.5, 90, 90, 90]
    # A vertical part, a gain of accuracy, and two equal points.
    assert curves.envelope(np.array([0.0, 0.0, -1.0, -1.0]), np.array([1.0, 7.0, 5.0, 5.0]), np.array([0.0])) == [7]


@pytest.mark.parametrize("seed", range(5))
def test_the_scale_within_a_budget_is_the_first_that_is_as_high_as_the_envelope(seed: int) -> None:
    loss, height = random_curve(seed)
    scales = np.linspace(0, 1.5, len(loss))
    fine = np.linspace(0, 1.5, 200_001)
    for budget in (1.0, 5.0, 20.0):
        found = curves.scale_within(tuple(scales), loss, height, budget)
        allowed = fine[np.interp(fine, scales, loss) <= budget + 1e-9]
        best = allowed[np.argmax(np.interp(allowed, scales, height))]
        assert found == pytest.approx(best, abs=2e-5)
        reached = curves.envelope(loss, height, np.array([budget]))[0]
        assert np.interp(found, scales, height) == pytest.approx(reached)


def test_scales_by_hand() -> None:
    loss, height = np.array([0.0, 4.0, 8.0]), np.array([10.0, 50.0, 50.0])
    assert [curves.scale_within((0, 1, 2), loss, height, budget) for budget in (0, 1, 4, 20)] == [0, 0.25, 1, 1]
    with pytest.raises(ValueError, match="loses more than 1 everywhere"):
        curves.scale_within((1, 2), loss[1:], height[1:], 1)


def test_envelopes_of_many_curves_are_those_of_each() -> None:
    drawn = [random_curve(seed) for seed in range(6)]
    loss, height = (np.array(part).reshape(2, 3, -1) for part in zip(*drawn, strict=True))
    found = curves.envelope(loss, height, BUDGETS)
    assert found.shape == (2, 3, len(BUDGETS))
    for number, (one, other) in enumerate(drawn):
        assert found[number // 3, number % 3].tolist() == curves.envelope(one, other, BUDGETS).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_area_is_the_mean_of_the_envelope(seed: int) -> None:
    loss, height = random_curve(seed)
    budgets = np.linspace(0, 20, 20_001)
    slow = np.mean(curves.envelope(loss, height, (budgets[1:] + budgets[:-1]) / 2))
    assert curves.area(loss, height, 20) == pytest.approx(slow, abs=0.02)


def test_area_by_hand() -> None:
    # From 0 to 100 along a loss of 10, then no further: half of the first ten points, all of the next.
    assert curves.area(np.array([0.0, 10.0]), np.array([0.0, 100.0]), 20) == pytest.approx(75)
    assert curves.area(np.array([0.0, 40.0]), np.array([0.0, 100.0]), 20) == pytest.approx(25)


def write(path: Path, scales: tuple[float, ...], seed: int, group: bool = True, left_out: int = 0) -> Path:
    """Random outcomes: two benchmarks of 30 and 20 quadruples, and two sets of 24 images."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for benchmark, count in (("test", 30), ("nsfw_caps", 20)):
        for direction in ("unsafe_text_to_image", "unsafe_image_to_text"):
            left = left_out if direction == "unsafe_text_to_image" else 0
            rows += [
                {"benchmark": benchmark, "direction": direction, "query_id": f"{benchmark}-{number}", "group": -1}
                for number in range(left, count)
            ]
    for number, name in enumerate(("colours", "objects")):
        rows += [
            {
                "benchmark": "zero_shot",
                "direction": name,
                "query_id": str(24 * number + row),
                "group": row % 3 * row % 2 if group and number else -1,
            }
            for row in range(24)
        ]
    for row in rows:
        row |= {f"{scale:g}/rank": int(random.integers(1, 4)) for scale in scales}
        row |= {f"{scale:g}/top_unsafe": bool(random.integers(2)) for scale in scales}
    io.write_table(path, rows)
    return path


@pytest.fixture
def sweeps(tmp_path: Path) -> list[curves.Sweep]:
    base = write(tmp_path / "base.parquet", SCALES[:1], 0)
    return [curves.Sweep.read(base, write(tmp_path / f"{seed}.parquet", SCALES[1:], seed)) for seed in (1, 2)]


def test_points_are_means_of_means(sweeps: list[curves.Sweep]) -> None:
    found = curves.points(sweeps, 10, 3)
    assert found.scales == SCALES
    assert found.safety.shape == found.recall.shape == found.utility.shape == (11, 2, 3)
    for model, sweep in enumerate(sweeps):
        for scale in range(3):
            safe = {key: part.safe[:, scale].mean() for key, part in sweep.queries.items() if key[0] != "zero_shot"}
            assert found.safety[0, model, scale] == pytest.approx(np.mean(list(safe.values())))
            first = {key: part.first[:, scale].mean() for key, part in sweep.queries.items() if key[0] != "zero_shot"}
            assert found.recall[0, model, scale] == pytest.approx(np.mean(list(first.values())))
            sets = [
                statistics.mean_per_class(part.first[:, scale], part.groups)
                if part.groups is not None
                else part.first[:, scale].mean()
                for key, part in sweep.queries.items()
                if key[0] == "zero_shot"
            ]
            assert found.utility[0, model, scale] == pytest.approx(np.mean(sets))
    assert not found.loss[..., 0].any()
    at = found.at(1, [0, 1])
    assert at["safety"] == pytest.approx(found.safety[:, :, 2].mean(axis=1))


def test_resamples_take_whole_quadruples_and_are_the_same_for_all_models(sweeps: list[curves.Sweep]) -> None:
    """Both directions of a quadruple, and both models, against indices that are drawn here."""
    found = curves.points(sweeps, 200, 3)
    safety = np.zeros((200, 2, 3))
    for place, (benchmark, count) in enumerate((("test", 30), ("nsfw_caps", 20))):
        indices = np.random.default_rng(3 + place).integers(count, size=(200, count))
        for model, sweep in enumerate(sweeps):
            parts = [part.safe for key, part in sweep.queries.items() if key[0] == benchmark]
            assert len(parts) == 2
            safety[:, model] += sum(part[indices].mean(axis=1) for part in parts) / 4
    assert found.safety[1:] == pytest.approx(safety)


def test_directions_of_other_queries_are_resampled_on_their_own(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{seed}.parquet", scales, seed, left_out=4) for seed, scales in ((0, (0.0,)), (1, (1.0,)))
    ]
    found = curves.points([curves.Sweep.read(*paths)], 50, 0)
    assert np.isfinite(found.safety).all()
    assert found.safety.std(axis=0).min() > 0


def test_one_method_seeds_are_averaged_after_their_curves(sweeps: list[curves.Sweep]) -> None:
    found = curves.points(sweeps, 30, 3)
    summary = curves.summarise(found, [0, 1], (1.0, 10.0))
    areas = [curves.area(found.loss[:, model], found.safety[:, model], 10.0) for model in (0, 1)]
    assert summary.area == pytest.approx(np.mean(areas, axis=0))
    assert summary.areas.tolist() == [areas[0][0], areas[1][0]]
    within = [curves.envelope(found.loss[:, model], found.recall[:, model], np.array([1.0, 10.0])) for model in (0, 1)]
    assert summary.recall == pytest.approx(np.mean(within, axis=0))
    assert (summary.safety[:, 1] >= summary.safety[:, 0]).all()


def test_other_queries_or_scales_are_refused(tmp_path: Path, sweeps: list[curves.Sweep]) -> None:
    base, other = tmp_path / "base.parquet", write(tmp_path / "other.parquet", SCALES[1:], 1, left_out=1)
    with pytest.raises(io.DataError, match=r"other\.parquet: other queries"):
        curves.Sweep.read(base, other)
    shorter = curves.Sweep.read(base, write(tmp_path / "shorter.parquet", (1.0,), 1))
    with pytest.raises(io.DataError, match="cannot be compared"):
        curves.points([*sweeps, shorter], 5, 0)


def test_a_curve_needs_both_axes(tmp_path: Path) -> None:
    path = write(tmp_path / "outcomes.parquet", (0.0, 1.0), 0)
    rows = io.read_table(path).to_pylist()
    io.write_table(path, [row for row in rows if row["benchmark"] == "zero_shot"])
    with pytest.raises(io.DataError, match="zero-shot sets and unsafe queries"):
        curves.points([curves._read(path)], 5, 0)
