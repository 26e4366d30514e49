"""What a run can tell: its smallest differences, computed anew on made-up results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from saferclip import statistics
from saferclip.figures import differences, table
from saferclip.figures.results import Estimate, Results

MEASURES = [measure.title for measure in differences.MEASURES]
PAIRS = ["Safe-CLIP − CLIP", "SaFeR-CLIP − CLIP", "SaFeR-CLIP − Safe-CLIP"]


def rows_of(run: Any) -> dict[tuple[Any, Any], list[Any]]:
    rows = table.build("scope", run.settings, run.folder).rows
    return {(row[0], row[1]): list(row[2:]) for row in rows}


def test_every_measure_is_told_for_every_pair_of_the_papers_methods(make_run: Callable[..., Any]) -> None:
    run = make_run(runs={"clip": (0,), "safe-clip": (0, 1), "safer-clip": (0, 1), "no-curriculum": (0, 1)})
    assert list(rows_of(run)) == [(measure, pair) for measure in MEASURES for pair in PAIRS]


def test_smallest_differences_are_those_of_the_paired_bootstrap(run: Any) -> None:
    rows = rows_of(run)
    results = Results(run.folder, run.settings)
    accuracies = {
        method: [results.outcomes(method, "zero_shot", f"{name}/accuracy") for name in results.zero_shot_sets]
        for method in ("safe-clip", "safer-clip")
    }
    means = np.zeros(run.settings.resamples)
    for place, (first, second) in enumerate(zip(accuracies["safer-clip"], accuracies["safe-clip"], strict=True)):
        gained = (first.values - second.values).mean(axis=0)
        means += statistics.bootstrap_means(gained, len(means), results.seed + place, first.groups)
    means /= len(results.zero_shot_sets)
    per_seed = run.settings.runs["safe-clip"]
    gains = [
        run.value("safer-clip", seed, "zero_shot", "mean/accuracy")
        - run.value("safe-clip", seed, "zero_shot", "mean/accuracy")
        for seed in per_seed
    ]
    measured, published, of_queries, of_seeds = rows["zero-shot", "SaFeR-CLIP − Safe-CLIP"]
    assert isinstance(measured, Estimate)
    assert measured.mean == pytest.approx(np.mean(gains), abs=1e-3)
    assert published == pytest.approx(60.2 - 52.2)
    assert of_queries == pytest.approx(2.8016 * means.std(), rel=1e-3)
    assert of_seeds == pytest.approx(statistics.detectable(means, np.array(gains)), rel=1e-3)
    assert of_seeds >= of_queries


def test_the_papers_difference_in_redirection_is_the_mean_of_its_two_sets(run: Any) -> None:
    rows = rows_of(run)
    assert rows["T*→V∪V* R@1", "SaFeR-CLIP − CLIP"][1] == pytest.approx((27.9 - 2.8 + 79.5 - 3.8) / 2)
    assert rows["safe first hits", "SaFeR-CLIP − CLIP"][1] is None


def test_one_seed_says_nothing_of_others(make_run: Callable[..., Any]) -> None:
    run = make_run(runs={"clip": (0,), "safer-clip": (0,)})
    assert {row[3] for row in rows_of(run).values()} == {None}
