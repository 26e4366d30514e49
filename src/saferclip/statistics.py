"""Means over queries and their bootstrap intervals, in plain numpy: behind every interval of a run."""

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
    total = sum((_resampled_means(part, len(part) - 1, resamples, random) for part in members), np.zeros(resamples))
    if len(alone):
        total += len(alone) * _resampled_means(alone, max(1, len(alone) - 1), resamples, random)
    return np.asarray(total / len(counts))


def percentile_interval(value: float, means: Array) -> Interval:
    """The 95% percentile interval of bootstrap means, around the value they were resampled from."""
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def bootstrap_interval(values: ArrayLike, resamples: int, seed: int, groups: ArrayLike | None = None) -> Interval:
    """Mean of per-query values (n,) with its 95% bootstrap interval over queries."""
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean()) if groups is None else mean_per_class(data, groups)
    return percentile_interval(mean, bootstrap_means(data, resamples, seed, groups))


def _resampled_means(values: Array, draws: int, resamples: int, random: np.random.Generator) -> Array:
    """Means of ``draws`` out of (n,) values, in pieces that bound the memory for indices."""
    if len(values) == 0:
        raise ValueError("nothing to resample: no queries")
    piece = max(1, _RESAMPLED_AT_ONCE // draws)
    sizes: Sequence[int] = [min(piece, resamples - start) for start in range(0, resamples, piece)]
    means: list[Any] = [values[random.integers(len(values), size=(size, draws))].mean(axis=1) for size in sizes]
    return np.concatenate(means)
