"""Bootstrap over queries, in plain numpy: the one implementation behind every interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95


def bootstrap_means(outcomes: ArrayLike, resamples: int, seed: int) -> NDArray[np.float64]:
    """Means of ``outcomes`` over queries drawn with replacement.

    ``outcomes`` has shape (queries,) or (queries, columns); the result has shape (resamples,) or
    (resamples, columns).  All columns see the same draws, and so do two calls with equal seed and
    number of queries: the difference of two results is a paired bootstrap.  Raises ValueError
    without queries or resamples, and for values that are not finite.
    """
    values = np.asarray(outcomes, dtype=np.float64)
    if values.ndim not in (1, 2) or len(values) == 0:
        raise ValueError(f"outcomes must have shape (queries,) or (queries, columns), not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("outcomes must be finite")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    generator = np.random.default_rng(seed)
    # One resample at a time: memory does not grow with the number of resamples.
    return np.stack([values[generator.integers(len(values), size=len(values))].mean(axis=0) for _ in range(resamples)])


def stratified_bootstrap_means(strata: Sequence[ArrayLike], resamples: int, seed: int) -> NDArray[np.float64]:
    """Mean of the strata's means, each stratum resampled within itself: shape (resamples,).

    For measures such as the mean accuracy per class, where every class counts the same.  Strata
    have shape (queries of the stratum,); each draws from a random stream of its own.
    """
    if not strata:
        raise ValueError("at least one stratum is needed")
    seeds = np.random.SeedSequence(seed).generate_state(len(strata))
    means = [bootstrap_means(stratum, resamples, int(own)) for stratum, own in zip(strata, seeds, strict=True)]
    return np.mean(means, axis=0)


def percentile_interval(replicates: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """The central interval that holds ``level`` of the bootstrap replicates, shape (resamples,)."""
    tail = (1 - level) / 2
    low, high = np.quantile(np.asarray(replicates, dtype=np.float64), [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_interval(outcomes: ArrayLike, resamples: int, seed: int, level: float = LEVEL) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``outcomes``, shape (queries,)."""
    return percentile_interval(bootstrap_means(outcomes, resamples, seed), level)
