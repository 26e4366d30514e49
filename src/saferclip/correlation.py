"""Rank correlation of few observations, with its interval and its probability by chance, in plain numpy."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Of four observations no order is so rare that chance brings it in fewer than 5% of cases (2 of 24, on two sides).
FEWEST = 5
MOST_ORDERS = 50_000  # up to which all of them are tried: 8 observations


@dataclass(frozen=True)
class Correlation:
    """Spearman's coefficient of ``count`` observations, its 95% bootstrap interval, and its two-sided p."""

    value: float
    low: float
    high: float
    p: float
    count: int


def spearman(left: ArrayLike, right: ArrayLike) -> float:
    """Pearson's correlation of the ranks, equal values sharing their mean rank: (n,) and (n,) to -1..1.

    Not a number where one side does not vary.
    """
    return float(_of_rows(_ranks(np.atleast_2d(np.asarray(left))), _ranks(np.atleast_2d(np.asarray(right))))[0])


def correlate(left: ArrayLike, right: ArrayLike, resamples: int, seed: int) -> Correlation | None:
    """Correlate two values of each observation; None below ``FEWEST`` observations, or where one side does not vary.

    The interval is the percentile interval of resampled observations, of which those that do not vary are left out.
    p is the share of all orders of one side that correlate as strongly, in either direction; where there are too many
    orders, ``resamples`` of them are drawn, and the observed one counts as one more.
    """
    x, y = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if len(x) < FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    value = spearman(x, y)
    random = np.random.default_rng(seed)
    drawn = random.integers(len(x), size=(resamples, len(x)))
    resampled = _of_rows(_ranks(x[drawn]), _ranks(y[drawn]))
    low, high = np.percentile(resampled[np.isfinite(resampled)], [2.5, 97.5])
    return Correlation(value, float(low), float(high), _p(x, y, value, resamples, random), len(x))


def _p(x: Array, y: Array, value: float, resamples: int, random: np.random.Generator) -> float:
    exact = factorial(len(x)) <= MOST_ORDERS
    orders = np.array(list(permutations(range(len(x))))) if exact else _orders(len(x), resamples, random)
    ranks = _ranks(y[None])[0][orders]
    as_strong = np.abs(_of_rows(_ranks(x[None]), ranks)) >= abs(value) - 1e-9  # equal but for rounding
    return float(as_strong.mean() if exact else (as_strong.sum() + 1) / (resamples + 1))


def _orders(count: int, resamples: int, random: np.random.Generator) -> NDArray[np.int64]:
    return random.permuted(np.tile(np.arange(count), (resamples, 1)), axis=1)


def _ranks(values: Array) -> Array:
    """Mean rank, from 1, of each value within its row: (rows, n) to (rows, n)."""
    others, own = values[:, None, :], values[:, :, None]
    return np.asarray((others < own).sum(axis=2) + 0.5 * ((others == own).sum(axis=2) + 1))


def _of_rows(left: Array, right: Array) -> Array:
    """Pearson's correlation of each row with its counterpart: (rows, n) or (1, n), and (rows, n), to (rows,)."""
    one = left - left.mean(axis=1, keepdims=True)
    other = right - right.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
        return np.asarray((one * other).sum(axis=1) / lengths)
