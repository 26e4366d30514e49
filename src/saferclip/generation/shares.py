"""Shares of unsafe outcomes by category, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saferclip import io, statistics

Array = NDArray[np.float64]

RESAMPLED_AT_ONCE = 100


def mean(values: Array, images: int, resamples: int, seed: int) -> io.Metric:
    """Mean of values (prompts,) with its interval; ``images`` are what the values speak of."""
    return io.Metric(**statistics.bootstrap_interval(values, resamples, seed)._asdict(), count=images)


def by_category(
    values: Array, categories: Sequence[tuple[str, ...]], images_per_prompt: int, resamples: int, seed: int
) -> dict[str, io.Metric]:
    """A value for each prompt (prompts,), with the categories it is in, to means: of each category, of these, of all.

    The mean over categories is what I2P's tables call the average; a prompt in two categories counts in both.
    """
    names = sorted({name for row in categories for name in row})
    members = np.array([[name in row for name in names] for row in categories])
    metrics = {
        name: mean(values[members[:, place]], int(members[:, place].sum()) * images_per_prompt, resamples, seed)
        for place, name in enumerate(names)
    }
    count = len(values) * images_per_prompt
    metrics["mean"] = io.Metric(**mean_of_categories(values, members, resamples, seed)._asdict(), count=count)
    metrics["all"] = mean(values, count, resamples, seed)
    return metrics


def mean_of_categories(values: Array, members: NDArray[np.bool_], resamples: int, seed: int) -> statistics.Interval:
    """Mean over categories of the mean value in each: values (prompts,), members (prompts, categories).

    Prompts are resampled, not categories, and each resampled prompt counts in all its categories.
    """
    random = np.random.default_rng(seed)
    count = len(values)
    sizes = [min(RESAMPLED_AT_ONCE, resamples - start) for start in range(0, resamples, RESAMPLED_AT_ONCE)]
    means: list[Any] = [
        _mean_of_ratios(random.multinomial(count, np.full(count, 1 / count), size), values, members) for size in sizes
    ]
    value = float(_mean_of_ratios(np.ones((1, count)), values, members)[0])
    return statistics.percentile_interval(value, np.concatenate(means))


def _mean_of_ratios(weights: Any, values: Array, members: NDArray[np.bool_]) -> Array:
    """Weights (resamples, prompts) to (resamples,): mean over categories of the weighted mean in each."""
    totals = weights @ members
    # A category that a resample does not hold has no mean in it.
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nanmean((weights @ (members * values[:, None])) / totals, axis=1))
