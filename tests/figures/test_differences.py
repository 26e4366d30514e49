"""Differences of methods to a reference, on made-up results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from saferclip import statistics
from saferclip.config import DifferenceSettings
from saferclip.figures import differences, figure, table
from saferclip.figures.results import Results, Term

RUNS = {"clip": (0,), "safe-clip": (0, 1), "safer-clip": (0, 1), "no-curriculum": (0, 1)}
SETTINGS = DifferenceSettings(
    reference="safer-clip", others="everywhere", groups={"curriculum": ("no-curriculum",), "loss": ("safe-clip",)}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("differences")


@pytest.fixture
def compared(make_run: Callable[..., Any]) -> Any:
    return make_run(runs=RUNS)


def settings_of(run: Any) -> Any:
    return run.settings.model_copy(update={"differences": SETTINGS})


def by_measure(run: Any) -> dict[tuple[str, str], differences.Difference]:
    results = Results(run.folder, settings_of(run))
    return {(found.method, found.measure.title): found for found in differences.differences(results, SETTINGS)}


def mean(run: Any, method: str, benchmark: str, metric: str) -> float:
    return sum(run.value(method, seed, benchmark, metric) for seed in RUNS[method]) / len(RUNS[method])


def test_differences_are_those_of_the_records(compared: Any) -> None:
    found = by_measure(compared)
    assert len(found) == 2 * len(differences.MEASURES)
    for variant in ("no-curriculum", "safe-clip"):
        expected = {}
        for method in (variant, "safer-clip"):
            on = [
                {
                    metric: mean(compared, method, benchmark, metric)
                    for metric in (
                        "unsafe_text_to_image/recall@1",
                        "unsafe_text_to_image/unsafe_share",
                        "unsafe_image_to_text/unsafe_share",
                        "text_to_image/recall@1",
                        "image_to_text/recall@1",
                    )
                }
                for benchmark in ("test", "nsfw_caps")
            ]
            columns = [list(values.values()) for values in on]
            redirected, text, image, safe_text, safe_image = (sum(pair) / 2 for pair in zip(*columns, strict=True))
            expected[method] = {
                "T*→V∪V* R@1": redirected,
                "safe first hits": 100 - (text + image) / 2,
                "safe R@1": (safe_text + safe_image) / 2,
                "zero-shot": mean(compared, method, "zero_shot", "mean/accuracy"),
            }
        for measure, value in expected[variant].items():
            entry = found[variant, measure]
            assert entry.value.mean == pytest.approx(value, abs=1e-3)
            assert entry.difference.mean == pytest.approx(value - expected["safer-clip"][measure], abs=1e-3)
            assert entry.difference.low is not None and entry.difference.high is not None
            assert entry.difference.low <= entry.difference.mean <= entry.difference.high


def test_p_values_are_corrected_for_all_differences_together(compared: Any) -> None:
    results = Results(compared.folder, settings_of(compared))
    found = differences.differences(results, SETTINGS)
    alone = [entry.contrast.p_value() for entry in found]
    assert [entry.p_value for entry in found] == statistics.holm(alone)
    assert all(entry.p_value >= own for entry, own in zip(found, alone, strict=True))


def test_queries_are_paired_with_those_of_the_whole(compared: Any) -> None:
    """Interval of a difference, as a bootstrap of differences over the same queries gives it."""
    results = Results(compared.folder, settings_of(compared))
    measure = differences.Measure("one set", ("test",), {"text_to_image/recall@1": 1})
    terms = [*measure.terms(results, "safe-clip"), Term(-1, "safer-clip", "test", "text_to_image/recall@1")]
    contrast = results.contrast(terms)
    own, whole = (
        results.outcomes(method, "test", "text_to_image/recall@1").values.mean(axis=0)
        for method in ("safe-clip", "safer-clip")
    )
    means = statistics.bootstrap_means(own - whole, results.resamples, results.seed)
    assert contrast.interval == statistics.percentile_interval(float((own - whole).mean()), means)
    assert contrast.effect_size() == pytest.approx(statistics.effect_size(own - whole))


def test_table_and_figure_show_every_variant(compared: Any, folder: Path) -> None:
    settings = settings_of(compared)
    table.write("differences", settings, compared.folder, folder / "differences")
    frame = pd.read_csv(folder / "differences.csv")
    assert len(frame) == 3 * len(differences.MEASURES)
    assert list(frame["method"].unique()) == ["SaFeR-CLIP", "no-curriculum", "Safe-CLIP"]
    figure.draw("differences", settings, compared.folder, folder / "differences")
    assert (folder / "differences.png").stat().st_size > 10_000


def test_benchmarks_that_a_run_lacks_are_left_out(make_run: Callable[..., Any]) -> None:
    run = make_run(runs=RUNS, benchmarks=("test",))
    results = Results(run.folder, settings_of(run))
    assert [measure.title for measure in differences.shown(results)] == ["T*→V∪V* R@1", "safe first hits", "safe R@1"]
    entry = differences.differences(results, SETTINGS)[0]
    own, whole = (
        mean(run, method, "test", "unsafe_text_to_image/recall@1") for method in ("no-curriculum", "safer-clip")
    )
    assert entry.difference.mean == pytest.approx(own - whole, abs=1e-3)


def test_tables_beside_the_papers_numbers_hold_the_papers_methods_alone(compared: Any) -> None:
    for name in ("main", "unsafe_gallery"):
        rows = table.build(name, compared.settings, compared.folder).rows
        assert [row[0] for row in rows] == ["CLIP", "Safe-CLIP", "SaFeR-CLIP"]


def test_somebody_elses_methods_are_shown_where_the_paper_has_none_of_them(make_run: Callable[..., Any]) -> None:
    run = make_run(runs={"clip": (0,), "no-curriculum": (0,)}, benchmarks=("test",))
    assert [row[0] for row in table.build("main", run.settings, run.folder).rows] == ["CLIP", "no-curriculum"]
