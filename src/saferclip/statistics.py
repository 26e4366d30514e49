"""Means over queries, their bootstrap intervals, and tests of differences, in plain numpy.

Behind every interval and every p of a run; docs/method.md says how claims are judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_RESAMPLED_AT_ONCE = 4_000_000  # values; 32 MB of indices


class Interval(NamedTuple):
    """A mean with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def mean_per_class(outcomes: ArrayLike, labels: ArrayLike) -> float:
    """Mean over classes of the mean outcome within a class; both arguments have shape (items,).

    Classes without an item do not count.
    """
    values, groups = np.asarray(outcomes, dtype=np.float64), np.asarray(labels)
    return float(np.mean([values[groups == label].mean() for label in np.unique(groups)]))


def bootstrap_means(values: ArrayLike, resamples: int, seed: int, groups: ArrayLike | None = None) -> Array:
    """Means of ``resamples`` resamplings of queries with replacement: values (n,) to (resamples,).

    Values of shape (n, columns), such as one column for each method, give (resamples, columns): all columns are
    resampled alike, each as it would be alone.

    With ``groups`` (n,), such as the classes of images, queries are resampled within their group and
    the result is the mean of the groups' means, as in ``mean_per_class``.  Groups are often small, and
    drawing all n items of one would understate its variance by (n - 1) / n, so n - 1 are drawn (Rao &
    Wu 1988, section 2); groups of one item, which say nothing of their variance, are taken as one
    group.
    """
    data = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(seed)
    if groups is None:
        return _resampled_means(data, len(data), resamples, random)
    _, group, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    members = [data[group == place] for place in np.flatnonzero(counts > 1)]
    alone = data[counts[group] == 1]
    zeros = np.zeros((resamples, *data.shape[1:]))
    total = sum((_resampled_means(part, len(part) - 1, resamples, random) for part in members), zeros)
    if len(alone):
        total += len(alone) * _resampled_means(alone, max(1, len(alone) - 1), resamples, random)
    return np.asarray(total / len(counts))


def column_means(values: ArrayLike, groups: ArrayLike | None = None) -> Array:
    """Mean of each column, or the mean of its groups' means: values (n, columns) to (columns,)."""
    data = np.asarray(values, dtype=np.float64)
    if groups is None:
        return np.asarray(data.mean(axis=0))
    return np.array([mean_per_class(column, groups) for column in data.T])


def percentile_interval(value: float, means: Array) -> Interval:
    """The 95% percentile interval of bootstrap means, around the value they were resampled from."""
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def bootstrap_interval(values: ArrayLike, resamples: int, seed: int, groups: ArrayLike | None = None) -> Interval:
    """Mean of per-query values (n,) with its 95% bootstrap interval over queries."""
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean()) if groups is None else mean_per_class(data, groups)
    return percentile_interval(mean, bootstrap_means(data, resamples, seed, groups))


def mean_of_intervals(intervals: Sequence[Interval]) -> Interval:
    """An interval of the mean of several values from their own: the means of values, of lower and of upper ends.

    For seeds whose outcomes per query are not kept, so that their average cannot be resampled.  The standard error of
    an average is at most the average of the standard errors, however much the values have in common (Minkowski's
    inequality), and so this interval is at least as wide as that of the average, as far as both are normal.  Like
    them it is about other queries, not about other seeds.  Raises ValueError where there are none.
    """
    if not intervals:
        raise ValueError("a mean of intervals needs one at least")
    return Interval(*(float(mean) for mean in np.mean(intervals, axis=0)))


def p_value(means: ArrayLike, threshold: float = 0.0) -> float:
    """Two-sided p of bootstrap means (resamples,): might the true value lie on the other side of ``threshold``?

    Twice the smaller share of resamples at or beyond the threshold, at most 1: below 0.05 where the 95%
    percentile interval leaves the threshold out (Efron & Tibshirani 1993, sections 13.3 and 15.4).  One is added
    to count and resamples, so that p is never 0 and never too small (Davison & Hinkley 1997, section 4.2): no p
    can be below 2 / (resamples + 1).
    """
    data = np.asarray(means, dtype=np.float64)
    if len(data) == 0:
        raise ValueError("nothing to test: no resamples")
    fewer = min(np.count_nonzero(data <= threshold), np.count_nonzero(data >= threshold))
    return float(min(1.0, 2 * (fewer + 1) / (len(data) + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p of each test, adjusted for their number as by Holm (1979), in the order given.

    Whoever takes those below 0.05 for findings errs in any of them with a probability of at most 0.05,
    however the tests depend on each other.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * values[order]))
    return [float(value) for value in adjusted]


def student_quantile(freedom: float, coverage: float = 0.95) -> float:
    """How many standard errors an interval reaches to each side, with (fractional) degrees of freedom."""
    # t = sqrt(freedom) tan(angle) turns Student's density into a power of the cosine on a bounded range.
    freedom = min(freedom, 1e6)  # beyond, the grid below could not show it, and 1.960 does not change
    angles = np.linspace(0, np.pi / 2, 200_001)[:-1]
    # Equal steps of a power of the angle, since with many degrees all of the mass lies at small angles.
    angles = angles**3 / angles[-1] ** 2
    heights = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(np.diff(angles) * (heights[1:] + heights[:-1]) / 2)])
    return float(np.sqrt(freedom) * np.tan(np.interp(coverage * below[-1], below, angles)))


def student_reach(values: ArrayLike) -> Array:
    """How far the 95% interval of a mean over seeds reaches to each side: values (seeds, ...) to (...).

    Student's quantile, with one degree of freedom less than seeds, times the standard error of the mean (Student
    1908).  It is about other seeds on the same data.  Raises ValueError for fewer than two seeds, which say nothing
    of others.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) < 2:
        raise ValueError(f"an interval over seeds needs two at least, not {len(data)}")
    return np.asarray(student_quantile(len(data) - 1) * data.std(axis=0, ddof=1) / np.sqrt(len(data)))


def interval_with_seeds(means: ArrayLike, per_seed: ArrayLike) -> Interval | None:
    """A 95% interval of a mean over seeds that is about other seeds as well as other queries.

    From the bootstrap means over queries (resamples,) of the seeds' average, and the value of each seed (seeds,).
    Both variances are added; the quantile is Student's, with the degrees of freedom of Satterthwaite (1946), where
    queries, of which there are many, count as known.  So three seeds that differ much are worth two degrees (4.3
    standard errors to each side), and seeds that hardly differ leave the interval over queries (1.96).  A bootstrap of
    three seeds would end at the lowest and the highest, and cover the truth three times in four at most.  Where
    methods answer the same query differently from seed to seed, that counts in both variances, which errs on
    the safe side.  None for fewer than two seeds, which say nothing of others.
    """
    values = np.asarray(per_seed, dtype=np.float64)
    if len(values) < 2:
        return None
    error, freedom = _error_with_seeds(means, values)
    value, reach = float(values.mean()), student_quantile(freedom) * error
    return Interval(value, value - reach, value + reach)


def detectable(means: ArrayLike, per_seed: ArrayLike | None = None) -> float:
    """The smallest true difference that a run like this one would find in four of five cases.

    In the unit of the bootstrap means over queries (resamples,), for a two-sided test at 5%: standard errors times the
    two quantiles of test and power (Bloom 1995: 2.80 where their number is known).  With the value of each seed
    (seeds,), two at least, it is about other seeds as ``interval_with_seeds`` is; without, about other queries.
    """
    if per_seed is None:
        error, freedom = float(np.asarray(means, dtype=np.float64).std()), np.inf
    else:
        error, freedom = _error_with_seeds(means, np.asarray(per_seed, dtype=np.float64))
    # Four of five lie above the lower end of an interval that leaves a fifth out on either side.
    return (student_quantile(freedom) + student_quantile(freedom, 0.6)) * error


def _error_with_seeds(means: ArrayLike, per_seed: Array) -> tuple[float, float]:
    """Standard error over queries and seeds, and its degrees of freedom."""
    of_queries = float(np.asarray(means, dtype=np.float64).var())
    of_seeds = float(per_seed.var(ddof=1)) / len(per_seed)
    total = of_queries + of_seeds
    freedom = (len(per_seed) - 1) * (total / of_seeds) ** 2 if of_seeds > 0 else np.inf
    return float(np.sqrt(total)), freedom


def effect_size(differences: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Cohen's d_z of differences (n,): their mean in units of their own standard deviation (Cohen 1988, 2.3.5).

    With ``weights`` (n,), such as those of images in a mean over classes, both are weighted.  Differences that
    are all the same and not 0 have an infinite one.  Raises ValueError for fewer than two.
    """
    data = np.asarray(differences, dtype=np.float64)
    if len(data) < 2:
        raise ValueError(f"an effect size needs two differences at least, not {len(data)}")
    shares = np.full(len(data), 1.0) if weights is None else np.asarray(weights, dtype=np.float64)
    mean = np.average(data, weights=shares)
    # Of n equal weights this is the usual n - 1; of others, n counts as many equal ones (Kish 1965, 11.2).
    count = shares.sum() ** 2 / np.square(shares).sum()
    spread = np.sqrt(np.average(np.square(data - mean), weights=shares) * count / (count - 1))
    if np.ptp(data) == 0:
        return float(np.copysign(np.inf, mean)) if mean else 0.0
    return float(mean / spread)


def _resampled_means(values: Array, draws: int, resamples: int, random: np.random.Generator) -> Array:
    """Means of ``draws`` out of (n,) or (n, columns) values, in pieces that bound the memory for indices."""
    if len(values) == 0:
        raise ValueError("nothing to resample: no queries")
    piece = max(1, _RESAMPLED_AT_ONCE // draws)
    sizes: Sequence[int] = [min(piece, resamples - start) for start in range(0, resamples, piece)]
    means: list[Any] = [_means_at(random.integers(len(values), size=(size, draws)), values, draws) for size in sizes]
    return np.concatenate(means)


def _means_at(places: NDArray[np.int64], values: Array, draws: int) -> Array:
    """Means of the values at these places (resamples, draws)."""
    if values.ndim == 1:
        return np.asarray(values[places].mean(axis=1))
    # How often each value was drawn, times the values: the places of all columns at once would not fit into memory.
    count = len(values)
    own = places + count * np.arange(len(places))[:, None]
    drawn = np.bincount(own.ravel(), minlength=count * len(places)).reshape(len(places), count)
    return np.asarray(drawn @ values / draws)
