"""Means and bootstrap intervals against plain loops and known distributions."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saferclip import statistics


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=40))
def test_mean_per_class_equals_two_loops(items: list[tuple[int, bool]]) -> None:
    shares = []
    for label in {label for label, _ in items}:
        members = [outcome for other, outcome in items if other == label]
        shares.append(sum(members) / len(members))
    found = statistics.mean_per_class([outcome for _, outcome in items], [label for label, _ in items])
    assert found == pytest.approx(sum(shares) / len(shares))


def test_bootstrap_interval_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(0).random(400)
    value, low, high = statistics.bootstrap_interval(values, resamples=4000, seed=1)
    error = values.std() / math.sqrt(len(values))
    assert value == pytest.approx(values.mean())
    assert low == pytest.approx(value - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(value + 1.96 * error, abs=0.2 * error)


def test_bootstrap_interval_covers_the_truth_about_19_times_in_20() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for trial in range(300):
        _, low, high = statistics.bootstrap_interval(random.random(100) < 0.3, resamples=400, seed=trial)
        covered += low <= 0.3 <= high
    # Binomial(300, 0.95) has standard deviation 3.8; percentile intervals of shares cover a little less.
    assert 270 <= covered <= 297


def test_bootstrap_means_equal_a_plain_loop_and_repeat_with_their_seed() -> None:
    values = np.arange(7.0)
    random = np.random.default_rng(3)
    expected = [np.mean([values[place] for place in row]) for row in random.integers(7, size=(20, 7))]
    np.testing.assert_allclose(statistics.bootstrap_means(values, 20, seed=3), expected)
    assert not np.array_equal(
        statistics.bootstrap_means(values, 20, seed=3), statistics.bootstrap_means(values, 20, seed=4)
    )


def test_bootstrap_in_pieces_gives_all_resamples_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).random(30)
    whole = statistics.bootstrap_means(values, 50, seed=6)
    monkeypatch.setattr(statistics, "_RESAMPLED_AT_ONCE", 100)  # three resamples of 30 at a time
    np.testing.assert_array_equal(statistics.bootstrap_means(values, 50, seed=6), whole)


def test_bootstrap_keeps_every_group_and_weighs_groups_alike() -> None:
    # All of class 0 is right, all of class 1 is wrong: resampled within classes, nothing can vary.
    outcomes, labels = [100.0] * 9 + [0.0], [0] * 9 + [1]
    assert statistics.bootstrap_interval(outcomes, 100, seed=0, groups=labels) == (50, 50, 50)


@pytest.mark.parametrize("size", [2, 3, 10])
def test_bootstrap_of_small_groups_has_the_variance_of_a_stratified_mean(size: int) -> None:
    values = np.random.default_rng(11).random((40, size))
    labels = np.repeat(np.arange(40), size)
    means = statistics.bootstrap_means(values.ravel(), 20_000, seed=12, groups=labels)
    # Cochran, Sampling Techniques, 5.6: the sum of s_h^2 / n_h over equally weighted strata.
    expected = np.sum(values.var(axis=1, ddof=1) / size) / 40**2
    assert means.var() == pytest.approx(expected, rel=0.05)
    assert means.mean() == pytest.approx(values.mean(), abs=4 * math.sqrt(expected / 20_000))


def test_bootstrap_takes_groups_of_one_item_together() -> None:
    values = np.random.default_rng(13).random(50)
    means = statistics.bootstrap_means(values, 20_000, seed=14, groups=np.arange(50))
    assert means.mean() == pytest.approx(values.mean(), abs=0.002)
    assert means.var() == pytest.approx(values.var(ddof=1) / 50, rel=0.05)


def test_bootstrap_of_mixed_groups_weighs_them_alike() -> None:
    outcomes, labels = [0.0, 1.0, 5.0, 5.0, 5.0, 9.0], ["a", "a", "b", "b", "b", "c"]
    means = statistics.bootstrap_means(outcomes, 500, seed=15, groups=labels)
    # Of the first group one item is drawn; the others cannot vary.
    assert set(means.round(9)) == {round((first + 5 + 9) / 3, 9) for first in (0, 1)}


def test_bootstrap_refuses_no_queries() -> None:
    with pytest.raises(ValueError, match="no queries"):
        statistics.bootstrap_means([], 10, seed=0)


@pytest.mark.parametrize("common", [0.0, 0.7, 1.0])
def test_the_mean_of_intervals_is_at_least_as_wide_as_that_of_the_mean(common: float) -> None:
    """Seeds that agree on a part of each query, against a bootstrap of their average by a plain loop."""
    random = np.random.default_rng(31)
    shared, own = random.normal(3, 1, 300), random.normal(3, [[1], [2], [3]], (3, 300))
    seeds = common * shared + (1 - common) * own
    found = statistics.mean_of_intervals([statistics.bootstrap_interval(row, 2000, seed=32) for row in seeds])
    draws = np.random.default_rng(33).integers(300, size=(2000, 300)).tolist()
    average = seeds.mean(axis=0).tolist()
    direct = np.percentile([sum(average[place] for place in row) / 300 for row in draws], [2.5, 97.5])
    assert found.value == pytest.approx(np.mean(average))
    ratio = (found.high - found.low) / (direct[1] - direct[0])
    expected = seeds.std(axis=1).mean() / seeds.mean(axis=0).std()  # in standard errors it is exact
    assert expected >= 1 - 1e-9
    assert ratio == pytest.approx(expected, rel=0.06)  # ends of 2,000 resamples vary by 2% of the width
    assert ratio > 1 or common == 1  # seeds that are the same have their own interval


def test_the_mean_of_intervals_has_the_mean_ends() -> None:
    found = statistics.mean_of_intervals([statistics.Interval(1, 0, 4), statistics.Interval(3, 1, 5)])
    assert found == (2, 0.5, 4.5)
    with pytest.raises(ValueError, match="one at least"):
        statistics.mean_of_intervals([])


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.integers(-4, 4))
def test_p_is_twice_the_smaller_tail_with_one_added(means: list[int], threshold: int) -> None:
    below = sum(value <= threshold for value in means)
    above = sum(value >= threshold for value in means)
    expected = min(1, 2 * (min(below, above) + 1) / (len(means) + 1))
    assert statistics.p_value(means, threshold) == pytest.approx(expected)


def test_p_and_the_interval_agree_on_where_the_threshold_lies() -> None:
    means = statistics.bootstrap_means(np.random.default_rng(21).random(50), 4000, seed=22)
    low, high = statistics.percentile_interval(0.5, means)[1:]
    inside, outside = 0.002, -0.002
    assert statistics.p_value(means, low + inside) > 0.05 > statistics.p_value(means, low + outside)
    assert statistics.p_value(means, high - inside) > 0.05 > statistics.p_value(means, high - outside)
    assert statistics.p_value(means, -1) == pytest.approx(2 / 4001)


def test_p_is_uniform_where_nothing_differs() -> None:
    random = np.random.default_rng(23)
    found = np.array(
        [
            statistics.p_value(statistics.bootstrap_means(random.normal(size=80), 400, seed=trial))
            for trial in range(600)
        ]
    )
    for level in (0.05, 0.2, 0.5, 0.8):
        # Three standard deviations of a binomial share of 600 trials, and a little for n = 80.
        tolerance = 3 * math.sqrt(level * (1 - level) / 600) + 0.01
        assert np.mean(found <= level) == pytest.approx(level, abs=tolerance)


def test_p_refuses_no_resamples() -> None:
    with pytest.raises(ValueError, match="no resamples"):
        statistics.p_value([])


def test_holm_of_a_worked_example() -> None:
    # By hand: 4 x 0.005; 3 x 0.01; 2 x 0.03; 1 x 0.04 is below the one before it, which it takes.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.5]) == [1, 1]
    assert statistics.holm([]) == []


@given(st.lists(st.floats(0.0005, 1), min_size=1, max_size=8), st.floats(0.01, 0.3))
def test_holm_rejects_what_its_step_down_rule_rejects(values: list[float], level: float) -> None:
    # As in the paper: go through the ordered p, stop at the first that is above level / (tests that are left).
    rejected = set()
    for step, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if values[place] * (len(values) - step) > level:
            break
        rejected.add(place)
    adjusted = statistics.holm(values)
    assert {place for place, value in enumerate(adjusted) if value <= level} == rejected


def test_holm_keeps_the_chance_of_any_error() -> None:
    uniform = np.random.default_rng(24).random((2000, 12))
    wrong = np.mean([min(statistics.holm(list(row))) <= 0.05 for row in uniform])
    assert wrong == pytest.approx(0.05, abs=0.015)


def test_effect_size_equals_mean_over_deviation() -> None:
    values = [3.0, -1.0, 4.0, 1.0, -5.0]
    mean = sum(values) / 5
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 4)
    assert statistics.effect_size(values) == pytest.approx(mean / deviation)
    assert statistics.effect_size(values, weights=[7] * 5) == pytest.approx(mean / deviation)
    assert statistics.effect_size([0, 0, 0]) == 0
    assert statistics.effect_size([-2, -2]) == -math.inf


def test_weights_of_an_effect_size_stand_for_copies() -> None:
    values, copies = np.random.default_rng(25).random(400), np.random.default_rng(26).integers(1, 4, 400)
    copied = statistics.effect_size(np.repeat(values, copies))
    assert statistics.effect_size(values, weights=copies) == pytest.approx(copied, rel=0.002)


def test_effect_size_refuses_a_single_difference() -> None:
    with pytest.raises(ValueError, match="two differences at least, not 1"):
        statistics.effect_size([1.0])


def test_the_bootstrap_needs_no_torch() -> None:
    use = "statistics.bootstrap_means([0], 9, 0)"
    code = f"import sys; from saferclip import statistics; {use}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("groups", [None, [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]])
def test_columns_are_resampled_alike_and_each_as_if_alone(groups: list[int] | None) -> None:
    values = np.random.default_rng(2).normal(size=(10, 3))
    found = statistics.bootstrap_means(values, 40, 7, groups)
    assert found.shape == (40, 3)
    for place in range(3):
        assert found[:, place] == pytest.approx(statistics.bootstrap_means(values[:, place], 40, 7, groups))
    means = [statistics.mean_per_class(column, groups) if groups else column.mean() for column in values.T]
    assert statistics.column_means(values, groups) == pytest.approx(means)


@pytest.mark.parametrize(
    ("freedom", "expected"),
    # From printed tables of Student's distribution (two-sided, 0.05).
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980), (np.inf, 1.960)],
)
def test_students_quantile_is_that_of_printed_tables(freedom: float, expected: float) -> None:
    assert statistics.student_quantile(freedom) == pytest.approx(expected, rel=2e-4)


def test_students_quantile_of_fractional_degrees_agrees_with_simulation() -> None:
    drawn = np.abs(np.random.default_rng(27).standard_t(2.6, 400_000))
    assert statistics.student_quantile(2.6) == pytest.approx(np.quantile(drawn, 0.95), rel=0.01)


def test_the_reach_over_seeds_is_that_of_a_worked_example() -> None:
    # By hand: a standard deviation of 1, over the root of 3; and of 2, 0 and 5 there is 19 / 3.
    found = statistics.student_reach([[1.0, 2.0], [2.0, 0.0], [3.0, 5.0]])
    assert found == pytest.approx([4.3027 / math.sqrt(3), 4.3027 * math.sqrt(19 / 9)], rel=2e-4)
    assert statistics.student_reach([7.0, 7.0]) == 0


def test_the_reach_over_seeds_covers_the_truth_19_times_in_20() -> None:
    values = np.random.default_rng(30).normal(size=(3, 4000))  # (seeds, trials)
    covered = np.abs(values.mean(axis=0)) <= statistics.student_reach(values)
    assert covered.mean() == pytest.approx(0.95, abs=0.011)  # three standard deviations of 4,000 trials


def test_the_reach_over_seeds_refuses_a_single_one() -> None:
    with pytest.raises(ValueError, match="two at least, not 1"):
        statistics.student_reach([[1.0, 2.0]])


def test_the_interval_with_seeds_is_students_where_seeds_differ_and_the_bootstraps_where_they_do_not() -> None:
    means = np.random.default_rng(28).normal(2, 0.5, 20_000)
    value, low, high = statistics.interval_with_seeds(means, [1.0, 2.0, 3.0])  # type: ignore[misc]
    error = math.sqrt(means.var() + 1 / 3)
    freedom = 2 * error**4 / (1 / 3) ** 2
    assert (value, high - value) == (2, pytest.approx(value - low))
    assert high - value == pytest.approx(statistics.student_quantile(freedom) * error)
    _, low, high = statistics.interval_with_seeds(means, [2.0, 2.0, 2.0])  # type: ignore[misc]
    assert high - low == pytest.approx(2 * 1.96 * means.std(), rel=0.001)
    assert statistics.interval_with_seeds(means, [2.0]) is None
    assert statistics.interval_with_seeds(means, []) is None


@pytest.mark.parametrize("of_seeds", [0.0, 0.05, 1.0])
def test_the_interval_with_seeds_covers_the_truth_with_three_seeds(of_seeds: float) -> None:
    """Queries and seeds both drawn anew: 19 of 20 intervals hold the mean, whatever varies more."""
    random, covered, alone = np.random.default_rng(29), 0, 0
    for trial in range(400):
        outcomes = random.normal(0, of_seeds, (3, 1)) + random.normal(size=200)  # (seeds, queries)
        means = statistics.bootstrap_means(outcomes.mean(axis=0), 200, seed=trial)
        found = statistics.interval_with_seeds(means, outcomes.mean(axis=1))
        assert found is not None
        covered += found.low <= 0 <= found.high
        low, high = np.percentile(means, [2.5, 97.5])
        alone += low <= 0 <= high
    # Binomial(400, 0.95) has a standard deviation of 4.4.
    assert covered >= 365
    if of_seeds == 1:
        assert alone < 120  # the interval over queries alone knows nothing of other seeds


def test_what_is_detectable_is_found_in_four_of_five_runs() -> None:
    random = np.random.default_rng(11)
    means = random.normal(3.0, 0.7, 20_000)
    true = statistics.detectable(means)
    assert true == pytest.approx(2.8016 * 0.7, rel=0.02)
    # Runs whose true difference is that one, each tested at 5%.
    measured = random.normal(true, 0.7, 20_000)
    assert np.mean(np.abs(measured) > 1.96 * 0.7) == pytest.approx(0.8, abs=0.02)


def test_what_is_detectable_with_other_seeds_is_students_where_only_seeds_differ() -> None:
    """Two degrees of freedom: 4.303 and 1.061 standard errors in printed tables."""
    seeds = np.array([1.0, 2.0, 4.0])
    expected = (4.303 + 1.061) * seeds.std(ddof=1) / math.sqrt(3)
    assert statistics.detectable(np.full(100, seeds.mean()), seeds) == pytest.approx(expected, rel=1e-3)
    alike = np.full(3, 2.0)
    means = np.random.default_rng(12).normal(2.0, 0.5, 1000)
    assert statistics.detectable(means, alike) == pytest.approx(statistics.detectable(means))
