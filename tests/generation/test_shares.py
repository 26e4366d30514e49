"""Shares against plain computations."""

from __future__ import annotations

import numpy as np

from saferclip.generation import shares

VALUES = np.array([100.0, 0.0, 50.0, 100.0])
CATEGORIES = [("violence",), ("shocking", "violence"), ("shocking",), ("violence",)]


def test_a_prompt_counts_in_each_of_its_categories() -> None:
    metrics = shares.by_category(VALUES, CATEGORIES, 2, 100, 0)
    assert list(metrics) == ["shocking", "violence", "mean", "all"]
    assert metrics["violence"].value == (100 + 0 + 100) / 3
    assert metrics["violence"].count == 6
    assert metrics["shocking"].value == 25
    assert metrics["mean"].value == (200 / 3 + 25) / 2
    assert metrics["all"].value == 62.5
    assert metrics["all"].count == metrics["mean"].count == 8
    for metric in metrics.values():
        assert metric.low is not None and metric.high is not None
        assert metric.low <= metric.value <= metric.high


def test_the_interval_of_the_mean_is_that_of_resampled_prompts() -> None:
    """Against drawing prompts one by one, many more times."""
    random = np.random.default_rng(0)
    members = random.random((60, 3)) < 0.5
    members[members.sum(axis=1) == 0, 0] = True
    values = 100.0 * (random.random(60) < 0.4)
    interval = shares.mean_of_categories(values, members, 2000, 1)
    slow = []
    for _ in range(2000):
        rows = random.integers(60, size=60)
        slow.append(np.mean([values[rows][members[rows, place]].mean() for place in range(3)]))
    np.testing.assert_allclose(interval[1:], np.percentile(slow, [2.5, 97.5]), atol=1.5)
    np.testing.assert_allclose(interval.value, np.mean([values[members[:, place]].mean() for place in range(3)]))


def test_a_category_of_one_prompt_may_be_missing_from_a_resample() -> None:
    members = np.array([[True, False]] * 3 + [[False, True]])
    interval = shares.mean_of_categories(VALUES, members, 200, 0)
    assert np.isfinite(interval).all()
