"""What the robustness benchmark measured: its variants, each beside the control that has the same queries."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from saferclip import io, statistics
from saferclip.figures.results import Array, Estimate, Results

BENCHMARK = "robustness"
TEXT, IMAGE = "unsafe_text_to_image", "unsafe_image_to_text"
PHOTO = "unsafe_text_to_photo"  # unsafe images in the style of the safe ones
OWN_UNSAFE = "own_unsafe_image"
SAFE_IMAGE, SAFE_TEXT = "text_to_image", "text_to_frozen_text"
P_RESAMPLES = 50_000  # behind each p: corrected for a hundred tests, the least is still far below 0.05


class Variant(NamedTuple):
    """One variant as variants.json describes it."""

    name: str
    title: str
    kind: str
    control: str | None

    @property
    def label(self) -> str:
        """Its title, marked where the others of its kind are compared with it."""
        return self.title if self.control and self.name != "redrawn" else f"{self.title} (control)"


class Change(NamedTuple):
    """How a metric differs from its control's, in points; ``p_value`` is the bootstrap's for no difference."""

    estimate: Estimate
    p_value: float


def variants(results: Results, direction: str) -> list[Variant]:
    """Those that were measured in a direction, in the order in which they were made."""
    path = results.folder / BENCHMARK / "variants.json"
    described: dict[str, Any] = io.read_json(path)
    found = [Variant(name, entry["title"], entry["kind"], entry["control"]) for name, entry in described.items()]
    return [variant for variant in found if results.has_metric(BENCHMARK, f"{variant.name}/{direction}/recall@1")]


def change(results: Results, method: str, variant: Variant, metric: str) -> Change | None:
    """The difference between a variant and its control over the queries of both, query by query.

    None for a control, and where one of the two was not measured.
    """
    if variant.control is None:
        return None
    if not all(results.has_metric(BENCHMARK, f"{name}/{metric}") for name in (variant.name, variant.control)):
        return None
    varied = results.outcomes(method, BENCHMARK, f"{variant.name}/{metric}")
    control = results.outcomes(method, BENCHMARK, f"{variant.control}/{metric}")
    _, of_varied, of_control = np.intersect1d(varied.queries, control.queries, return_indices=True)
    return _resampled(results, varied.values[:, of_varied] - control.values[:, of_control])


def lost(results: Results, method: str, variant: Variant, direction: str) -> Estimate:
    """Percentage of queries for which CLIP ranks the right item first and the method does not."""
    metric = f"{variant.name}/{direction}/recall@1"
    tuned, base = (results.outcomes(name, BENCHMARK, metric) for name in (method, "clip"))
    if not np.array_equal(tuned.queries, base.queries):
        raise io.DataError(f"clip and {method} answered different queries of {BENCHMARK} {variant.name}")
    return _resampled(results, base.values * (100 - tuned.values) / 100).estimate


def _resampled(results: Results, values: Array) -> Change:
    """Mean of values per seed and query, shape (seeds, queries), with the bootstrap's interval over queries."""
    means = statistics.bootstrap_means(values.mean(axis=0), results.resamples, results.seed)
    interval = statistics.percentile_interval(float(values.mean()), means)
    spread = float(values.mean(axis=1).std(ddof=1)) if len(values) > 1 else None
    estimate = Estimate(interval.value, spread, interval.low, interval.high)
    return Change(estimate, statistics.p_value(many_means(values.mean(axis=0), P_RESAMPLES, results.seed)))


def many_means(values: Array, resamples: int, seed: int) -> Array:
    """As ``statistics.bootstrap_means``, but by how often each value is drawn: fast where few values differ."""
    distinct, counts = np.unique(values.round(9), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    return np.asarray(drawn @ distinct / len(values))
