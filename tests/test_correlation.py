from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from saferclip import correlation
from saferclip.correlation import FEWEST, correlate, spearman


def slow(left: np.ndarray, right: np.ndarray) -> float:
    return float(pd.DataFrame({"left": left, "right": right}).corr(method="spearman").iloc[0, 1])


def pairs(count: int, seed: int = 3, tied: bool = False) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    left = random.normal(size=count)
    right = -left + random.normal(size=count)
    return (left.round(), right.round()) if tied else (left, right)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("count", [5, 9, 40])
def test_the_coefficient_is_that_of_pandas(count: int, tied: bool) -> None:
    left, right = pairs(count, tied=tied)
    assert spearman(left, right) == pytest.approx(slow(left, right), abs=1e-12)


def test_perfect_order_is_one() -> None:
    assert spearman([1, 2, 3, 10], [2, 4, 5, 6]) == 1
    assert spearman([1, 2, 3, 10], [6, 5, 4, 2]) == -1


@pytest.mark.parametrize("tied", [False, True])
def test_p_is_the_share_of_all_orders(tied: bool) -> None:
    left, right = pairs(6, tied=tied)
    observed = abs(slow(left, right))
    orders = [abs(slow(left, right[list(order)])) for order in permutations(range(6))]
    found = correlate(left, right, 100, 0)
    assert found is not None
    assert found.p == pytest.approx(np.mean(np.array(orders) >= observed - 1e-9))


def test_p_of_many_observations_is_estimated() -> None:
    left, right = pairs(20)
    right = right + np.random.default_rng(1).normal(0, 3, 20)
    found = correlate(left, right, 5000, 0)
    assert found is not None
    random = np.random.default_rng(8)
    shuffled = [abs(slow(left, random.permutation(right))) for _ in range(1000)]
    assert 0.001 < found.p < 0.5
    assert found.p == pytest.approx(np.mean(np.array(shuffled) >= abs(found.value)), abs=0.03)
    least = correlate(np.arange(20), np.arange(20), 99, 0)
    assert least is not None and least.p == 1 / 100


def test_the_interval_is_that_of_resampled_pairs() -> None:
    left, right = pairs(12)
    found = correlate(left, right, 400, 5)
    drawn = np.random.default_rng(5).integers(12, size=(400, 12))
    resampled = [slow(left[rows], right[rows]) for rows in drawn]
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])))
    assert (found.value, found.count) == (pytest.approx(spearman(left, right)), 12)


def test_resamples_of_one_observation_alone_are_left_out() -> None:
    found = correlate(np.arange(5), [1, 2, 4, 3, 5], 5000, 0)  # some of 5^5 resamples are copies of one pair
    assert found is not None
    assert np.isfinite(found.low) and np.isfinite(found.high)


def test_too_few_or_equal_observations_have_none() -> None:
    assert correlate(np.arange(FEWEST - 1), np.arange(FEWEST - 1), 100, 0) is None
    assert correlate(np.arange(FEWEST), np.ones(FEWEST), 100, 0) is None
    assert correlate(np.ones(FEWEST), np.arange(FEWEST), 100, 0) is None


def test_the_fewest_observations_are_those_of_which_an_order_can_be_rare() -> None:
    least = {}
    for count in (FEWEST - 1, FEWEST):
        values = np.arange(count, dtype=float)
        least[count] = correlation._p(values, values, 1.0, 10, np.random.default_rng(0))
    assert least[FEWEST] < 0.05 < least[FEWEST - 1]
