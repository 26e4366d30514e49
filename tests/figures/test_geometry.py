"""Geometry against what is lost: numbers computed anew, and what is said where there are too few of them."""

from __future__ import annotations

import math
import statistics as standard
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.container import ErrorbarContainer

from saferclip import correlation, io
from saferclip.figures import figure, geometry, style, table
from saferclip.figures.results import Results

MEASURES = ("text/spread_ratio", "text/neighbour_overlap", "image/spread_ratio", "image/neighbour_overlap")
TUNED = ("safe-clip", "safer-clip")


def results_of(run: Any) -> Results:
    return Results(run.folder, run.settings)


def lost(run: Any, method: str, benchmark: str, metric: str) -> float:
    """Points, from the records."""
    values = [run.value(method, seed, benchmark, metric) for seed in run.settings.runs[method]]
    return float(run.value("clip", 0, benchmark, metric)) - sum(values) / len(values)


def column(shown: Any, key: str) -> list[Any]:
    place = [found.key for found in shown.columns].index(key)
    return [row[place] for row in shown.rows]


@pytest.fixture
def many(make_run: Callable[..., Any]) -> Any:
    """A run of six tuned methods, each of which is a seed of two."""
    run = make_run()
    names = [f"method-{number}" for number in range(6)]
    for number, name in enumerate(names):
        source = run.folder / "evaluation" / TUNED[number % 2] / f"seed-{number // 2}"
        target = run.folder / "evaluation" / name / "seed-0"
        target.mkdir(parents=True)
        for path in source.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
    runs = {"clip": (0,), **dict.fromkeys(names, (0,))}
    return type(run)(run.folder, run.settings.model_copy(update={"runs": runs}))


def test_losses_are_what_the_untuned_model_is_above(run: Any) -> None:
    found = {loss.title: loss for loss in geometry.losses(results_of(run))}
    assert set(found) == {"zero-shot", "Counting"}  # neither the control nor the probe at chance
    for method in TUNED:
        for loss in found.values():
            estimate = loss.of(results_of(run), method)
            assert estimate.mean == pytest.approx(lost(run, method, loss.benchmark, loss.metric), abs=1e-6)
            assert estimate.low is not None and estimate.high is not None
            assert estimate.low < estimate.mean < estimate.high
            own = [loss.of(results_of(run), method, seed).mean for seed in run.settings.runs[method]]
            assert standard.mean(own) == pytest.approx(estimate.mean)
            assert estimate.sd == pytest.approx(standard.stdev(own))


def test_the_table_shows_diagnostics_and_losses(run: Any) -> None:
    shown = table.build("geometry", run.settings, run.folder)
    for measure in MEASURES:
        for method, cell in zip(run.settings.runs, column(shown, measure), strict=True):
            values = [run.value(method, seed, "geometry", measure) for seed in run.settings.runs[method]]
            assert cell.mean == pytest.approx(standard.mean(values))
    assert [cell and round(cell.mean, 6) for cell in column(shown, "probes/counting/accuracy")] == [
        None,
        *(round(lost(run, method, "probes", "counting/accuracy"), 6) for method in TUNED),
    ]
    assert "since CLIP is not above chance: Count binding." in shown.text


def test_the_table_of_probes_says_which_the_untuned_model_can_do(run: Any) -> None:
    shown = table.build("probes", run.settings, run.folder)
    assert column(shown, "probe") == ["Counting", "Count binding", "Colours"]
    assert column(shown, "above_chance") == [True, False, True]
    for name, cell in zip(("counting", "count_binding", "colours"), column(shown, "safe-clip"), strict=True):
        values = [run.value("safe-clip", seed, "probes", f"{name}/accuracy") for seed in (0, 1, 2)]
        assert cell.mean == pytest.approx(standard.mean(values))


def test_two_methods_are_too_few_for_a_correlation(run: Any) -> None:
    assert set(geometry.correlations(results_of(run)).values()) == {None}
    shown = table.build("geometry_correlation", run.settings, run.folder)
    assert len(shown.rows) == 2 * 4
    assert set(column(shown, "spearman")) == {None} and set(column(shown, "methods")) == {2}
    assert "Left out with 2 tuned methods: below 5" in shown.text
    with style.context():
        drawn = figure.build("geometry", run.settings, run.folder)
    assert {axes.get_title(loc="left") for axes in drawn.axes} == {"2 methods: too few for ρ"}


def test_correlations_are_over_methods(many: Any) -> None:
    methods = [method for method in many.settings.runs if method != "clip"]
    found = geometry.correlations(results_of(many))
    for (name, loss), each in found.items():
        measured = [many.value(method, 0, "geometry", name) for method in methods]
        missing = [lost(many, method, loss.benchmark, loss.metric) for method in methods]
        assert each is not None and each.count == 6
        assert each.value == pytest.approx(correlation.spearman(measured, missing))
        assert each.value < -0.5 and each.low <= each.value <= each.high and 0 < each.p < 0.4
    shown = table.build("geometry_correlation", many.settings, many.folder)
    for cell, p, corrected, each in zip(
        *(column(shown, key) for key in ("spearman", "p", "p_corrected")), found.values(), strict=True
    ):
        assert each is not None
        assert (cell.mean, p) == (each.value, each.p)
        assert p <= corrected <= min(1, 8 * p)
    assert "Left out with" not in shown.text


def test_the_figure_has_a_point_with_intervals_for_each_model(run: Any, many: Any) -> None:
    for shown, models in ((run, 6), (many, 6)):
        with style.context():
            drawn = figure.build("geometry", shown.settings, shown.folder)
        assert len(drawn.axes) == 8
        for axes in drawn.axes:
            points = [found for found in axes.containers if isinstance(found, ErrorbarContainer)]
            assert len(points) == models
            assert all(found.has_xerr and found.has_yerr for found in points)
    assert drawn.axes[0].get_title(loc="left").startswith("ρ = -")
    assert "6 methods" in drawn.axes[0].get_title(loc="left")


def test_without_zero_shot_and_probes_there_is_a_table_of_diagnostics(make_run: Callable[..., Any]) -> None:
    run = make_run(benchmarks=("test", "geometry"))
    shown = table.build("geometry", run.settings, run.folder)
    assert [found.key for found in shown.columns] == ["method", *MEASURES]


def test_images_that_are_withheld_leave_a_column_less(make_run: Callable[..., Any]) -> None:
    run = make_run()
    for path in run.folder.glob("evaluation/*/seed-*/geometry.json"):
        record = io.read_json(path)
        record["metrics"] = {key: value for key, value in record["metrics"].items() if key.startswith("text/")}
        io.write_json(path, record)
    with style.context():
        drawn = figure.build("geometry", run.settings, run.folder)
    assert len(drawn.axes) == 4


def test_a_method_without_geometry_is_no_point_and_counts_in_no_correlation(many: Any) -> None:
    path = many.folder / "evaluation/method-5/seed-0/geometry.json"
    io.write_json(path, {**io.read_json(path), "metrics": {}})
    shown = table.build("geometry", many.settings, many.folder)
    (row,) = (row for row in shown.rows if row[0] == "method-5")
    assert list(row[1:5]) == [None] * 4 and all(cell is not None for cell in row[5:])
    assert set(column(table.build("geometry_correlation", many.settings, many.folder), "methods")) == {5}
    methods = [method for method in many.settings.runs if method not in ("clip", "method-5")]
    (name, loss), found = next(iter(geometry.correlations(results_of(many)).items()))
    measured = [many.value(method, 0, "geometry", name) for method in methods]
    missing = [lost(many, method, loss.benchmark, loss.metric) for method in methods]
    assert found is not None and found.value == pytest.approx(correlation.spearman(measured, missing))
    with style.context():
        drawn = figure.build("geometry", many.settings, many.folder)
    for axes in drawn.axes:
        assert len([found for found in axes.containers if isinstance(found, ErrorbarContainer)]) == 5
        assert "5 methods" in axes.get_title(loc="left")


def test_without_the_untuned_model_there_are_no_losses(make_run: Callable[..., Any]) -> None:
    run = make_run()
    alone = run.settings.model_copy(update={"runs": {"safe-clip": (0, 1)}})
    shown = table.build("geometry", alone, run.folder)
    assert [found.key for found in shown.columns] == ["method", *MEASURES]
    assert not any(math.isnan(cell.mean) for row in shown.rows for cell in row[1:])
    assert "above_chance" not in [found.key for found in table.build("probes", alone, run.folder).columns]


def test_files_are_written(run: Any, tmp_path: Path) -> None:
    for name in ("geometry", "geometry_correlation", "probes"):
        table.write(name, run.settings, run.folder, tmp_path / name)
        assert "nan" not in (tmp_path / f"{name}.csv").read_text().lower()
