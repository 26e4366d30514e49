"""Estimates and contrasts against plain computations from the same files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from saferclip import io
from saferclip.figures.results import Estimate, Results, Term

REDIRECTION = "unsafe_text_to_image/recall@1"


@pytest.fixture
def results(run: Any) -> Results:
    return Results(run.folder, run.settings)


def rank_rows(run: Any, method: str, seed: int, benchmark: str, direction: str) -> list[dict[str, Any]]:
    rows = pq.read_table(run.folder / f"evaluation/{method}/seed-{seed}/ranks.parquet").to_pylist()
    return [row for row in rows if (row["benchmark"], row["direction"]) == (benchmark, direction)]


def seed_averaged(run: Any, method: str, seeds: tuple[int, ...], direction: str, k: int) -> list[float]:
    """Share of seeds in which each query had the correct item among the first k, in percent."""
    runs = [rank_rows(run, method, seed, "test", direction) for seed in seeds]
    return [100 * sum(rows[query]["rank"] <= k for rows in runs) / len(runs) for query in range(len(runs[0]))]


def resampled(values: list[float], resamples: int, seed: int) -> list[float]:
    random = np.random.default_rng(seed)
    draws = random.integers(len(values), size=(resamples, len(values)))
    return [sum(values[place] for place in row) / len(row) for row in draws.tolist()]


def test_an_estimate_is_mean_and_sd_over_seeds_with_an_interval_over_queries(run: Any, results: Results) -> None:
    values = [run.value("safe-clip", seed, "test", REDIRECTION) for seed in (0, 1, 2)]
    mean = sum(values) / 3
    found = results.estimate("safe-clip", "test", REDIRECTION)
    assert found.mean == pytest.approx(mean)
    assert found.sd == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in values) / 2))
    means = resampled(seed_averaged(run, "safe-clip", (0, 1, 2), "unsafe_text_to_image", 1), 200, seed=7)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_a_single_seed_has_no_sd_and_keeps_its_recorded_interval(run: Any, results: Results) -> None:
    recorded = run.record("clip", 0, "test")["metrics"][REDIRECTION]
    expected = Estimate(recorded["value"], None, recorded["low"], recorded["high"])
    assert results.estimate("clip", "test", REDIRECTION) == expected


def test_several_seeds_without_outcomes_have_the_mean_of_their_intervals(run: Any, results: Results) -> None:
    found = results.estimate("safer-clip", "drift", "alignment")
    values = [run.value("safer-clip", seed, "drift", "alignment") for seed in (0, 1, 2)]
    assert (found.mean, found.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    recorded = [run.record("safer-clip", seed, "drift")["metrics"]["alignment"] for seed in (0, 1, 2)]
    ends = [sum(metric[end] for metric in recorded) / 3 for end in ("low", "high")]
    assert (found.low, found.high) == pytest.approx(tuple(ends))


def test_an_interval_that_a_seed_lacks_is_not_made_of_the_others(make_run: Callable[..., Any]) -> None:
    other = make_run(benchmarks=("test", "drift"))
    path = other.folder / "evaluation/safer-clip/seed-1/drift.json"
    record = json.loads(path.read_text())
    del record["metrics"]["alignment"]["high"]
    io.write_json(path, record)
    results = Results(other.folder, other.settings)
    found = results.estimate("safer-clip", "drift", "alignment")
    assert found.sd is not None
    assert (found.low, found.high) == (None, None)
    assert results.estimate("safe-clip", "drift", "alignment").low is not None


def test_zero_shot_means_are_over_classes_then_sets(run: Any, results: Results) -> None:
    table = pq.read_table(run.folder / "test_sets/zero_shot.parquet", columns=["set", "label"]).to_pylist()
    means = []
    for name in json.loads((run.folder / "test_sets/zero_shot.json").read_text()):
        rows = rank_rows(run, "safer-clip", 1, "zero_shot", name)
        right: dict[int, list[bool]] = {}
        for row in rows:
            right.setdefault(table[int(row["query_id"])]["label"], []).append(row["rank"] == 1)
        means.append(100 * sum(sum(members) / len(members) for members in right.values()) / len(right))
    contrast = results.contrast([Term(1, "safer-clip", "zero_shot", "mean/accuracy")])
    assert contrast.per_seed[1] == pytest.approx(sum(means) / len(means))
    assert contrast.per_seed[1] == pytest.approx(run.value("safer-clip", 1, "zero_shot", "mean/accuracy"))
    assert contrast.interval.low < contrast.interval.value < contrast.interval.high


def test_a_contrast_of_methods_resamples_the_same_queries(run: Any, results: Results) -> None:
    ours = seed_averaged(run, "safer-clip", (0, 1, 2), "unsafe_text_to_image", 1)
    theirs = seed_averaged(run, "safe-clip", (0, 1, 2), "unsafe_text_to_image", 1)
    means = resampled([left - right for left, right in zip(ours, theirs, strict=True)], 200, seed=7)
    terms = [Term(1, "safer-clip", "test", REDIRECTION), Term(-1, "safe-clip", "test", REDIRECTION)]
    value, low, high = results.contrast(terms).interval
    assert value == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (low, high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_a_contrast_tests_and_measures_its_size_by_the_differences_of_queries(run: Any, results: Results) -> None:
    ours = seed_averaged(run, "safer-clip", (0, 1, 2), "unsafe_text_to_image", 1)
    theirs = seed_averaged(run, "safe-clip", (0, 1, 2), "unsafe_text_to_image", 1)
    differences = [left - right for left, right in zip(ours, theirs, strict=True)]
    means = resampled(differences, 500, seed=7)
    terms = [Term(1, "safer-clip", "test", REDIRECTION), Term(-1, "safe-clip", "test", REDIRECTION)]
    contrast = results.contrast(terms, resamples=500)
    for threshold in (0.0, float(np.median(means))):
        tail = min(sum(mean <= threshold for mean in means), sum(mean >= threshold for mean in means))
        assert contrast.p_value(threshold) == pytest.approx(min(1, 2 * (tail + 1) / 501))
        expected = (np.mean(differences) - threshold) / np.std(differences, ddof=1)
        assert contrast.effect_size(threshold) == pytest.approx(expected)


def test_the_differences_of_several_sets_have_the_contrasts_value_as_their_mean(results: Results) -> None:
    terms = [Term(1, "safer-clip", "zero_shot", "mean/accuracy"), Term(-1, "clip", "zero_shot", "mean/accuracy")]
    contrast = results.contrast(terms)
    assert contrast.differences is not None
    assert contrast.weights is not None
    assert contrast.weights.sum() == pytest.approx(1)
    assert (contrast.weights * contrast.differences).sum() == pytest.approx(contrast.interval.value)
    assert contrast.differences.min() >= -100  # every image is in percent, though its set is one of several
    assert contrast.differences.min() < -50


def test_queries_of_different_benchmarks_are_no_pairs(results: Results) -> None:
    terms = [Term(1, "safer-clip", "test", REDIRECTION), Term(-1, "safer-clip", "nsfw_caps", REDIRECTION)]
    assert results.contrast(terms).effect_size() is None


def test_a_contrast_with_an_untuned_method_uses_its_only_value_for_every_seed(run: Any, results: Results) -> None:
    terms = [Term(1, "safer-clip", "test", REDIRECTION), Term(-0.5, "clip", "test", REDIRECTION)]
    base = run.value("clip", 0, "test", REDIRECTION)
    expected = [run.value("safer-clip", seed, "test", REDIRECTION) - 0.5 * base for seed in (0, 1, 2)]
    assert results.contrast(terms).per_seed == pytest.approx(expected)


def test_different_sets_of_queries_are_resampled_independently(results: Results) -> None:
    def width(*terms: Term) -> float:
        interval = results.contrast(terms).interval
        return interval.high - interval.low

    ours = Term(1, "safer-clip", "test", REDIRECTION)
    other = Term(1, "safer-clip", "nsfw_caps", REDIRECTION)
    # Variances of independent sums add up; of the same thing twice, standard deviations do.
    assert width(ours, other) == pytest.approx(math.hypot(width(ours), width(other)), rel=0.25)
    assert width(ours, ours) == pytest.approx(2 * width(ours))


def edit_ranks(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    io.write_table(path, [change(row) for row in pq.read_table(path).to_pylist()])


def test_ranks_that_disagree_with_the_record_are_refused(make_run: Callable[..., Any]) -> None:
    other = make_run(benchmarks=("test",))
    edit_ranks(other.folder / "evaluation/safe-clip/seed-1/ranks.parquet", lambda row: {**row, "rank": 1})
    with pytest.raises(io.DataError, match=r"safe-clip: test .*in the records, but .* in the ranks; evaluate again"):
        Results(other.folder, other.settings).estimate("safe-clip", "test", REDIRECTION)


def test_other_queries_are_refused(make_run: Callable[..., Any]) -> None:
    other = make_run(benchmarks=("test",))
    edit_ranks(
        other.folder / "evaluation/clip/seed-0/ranks.parquet", lambda row: {**row, "query_id": f"x{row['query_id']}"}
    )
    results = Results(other.folder, other.settings)
    with pytest.raises(io.DataError, match="safer-clip and clip answered different queries of test"):
        results.contrast([Term(1, "safer-clip", "test", REDIRECTION), Term(-1, "clip", "test", REDIRECTION)])
    edit_ranks(
        other.folder / "evaluation/safe-clip/seed-2/ranks.parquet",
        lambda row: {**row, "query_id": f"x{row['query_id']}"},
    )
    with pytest.raises(io.DataError, match="seeds of safe-clip answered different queries of test"):
        results.outcomes("safe-clip", "test", REDIRECTION)


def test_different_numbers_of_seeds_cannot_be_compared_seed_by_seed(make_run: Callable[..., Any]) -> None:
    other = make_run(benchmarks=("test",), runs={"clip": (0,), "safe-clip": (0, 1), "safer-clip": (0, 1, 2)})
    terms = [Term(1, "safer-clip", "test", REDIRECTION), Term(-1, "safe-clip", "test", REDIRECTION)]
    with pytest.raises(io.DataError, match="3 and 2 seeds"):
        Results(other.folder, other.settings).contrast(terms)


def test_missing_metrics_and_files_are_named(results: Results, tmp_path: Path, run: Any) -> None:
    with pytest.raises(io.DataError, match=r"drift\.json: metric 'beauty' is missing; it has safe_text/cosine"):
        results.values("clip", "drift", "beauty")
    with pytest.raises(io.DataError, match=r"holds no evaluation; run the workflow first"):
        _ = Results(tmp_path, run.settings.model_copy(update={"runs": None})).runs
    with pytest.raises(io.DataError, match=r"test\.json"):
        Results(tmp_path, run.settings).values("clip", "test", REDIRECTION)


def test_without_settings_the_folder_says_what_was_run_and_the_papers_methods_come_first(run: Any) -> None:
    settings = run.settings.model_copy(update={"runs": None, "title": None})
    assert list(Results(run.folder, settings).runs.items()) == list(run.settings.runs.items())
    shuffled = run.settings.model_copy(update={"runs": {"ablation": (0,), "safer-clip": (1,), "clip": (0,)}})
    assert Results(run.folder, shuffled).methods == ["clip", "safer-clip", "ablation"]


def test_what_settings_leave_out_is_not_read(run: Any) -> None:
    fewer = run.settings.model_copy(update={"runs": {"clip": (0,), "safer-clip": (1, 2)}})
    found = Results(run.folder, fewer).estimate("safer-clip", "test", REDIRECTION)
    assert found.mean == pytest.approx(np.mean([run.value("safer-clip", seed, "test", REDIRECTION) for seed in (1, 2)]))
