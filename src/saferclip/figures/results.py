"""Read what a run measured: values per seed from its JSON records, outcomes per query from its ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saferclip import io, statistics
from saferclip.config import FigureSettings
from saferclip.figures import paper, registry

Array = NDArray[np.float64]

MEAN_ACCURACY = "mean/accuracy"
PER_CLASS = "mean_per_class"
GALLERY_DIRECTIONS = ("text_to_image", "image_to_text")
RANK_COLUMNS = ("benchmark", "direction", "query_id", "rank", "top_id", "top_unsafe")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, its standard deviation over seeds, and a 95% interval over queries.

    ``sd`` is None for a single seed; the interval is None where a seed's record has none.
    """

    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    digits: int | None = None  # decimals in print, where a column mixes units


class Term(NamedTuple):
    """One summand of a contrast: ``weight`` times a method's metric on a benchmark."""

    weight: float
    method: str
    benchmark: str
    metric: str


class Contrast(NamedTuple):
    """A weighted sum of metrics: over all queries, with its bootstrap interval, and for each seed.

    ``differences`` (queries,) are the sums of single queries, averaged over seeds, and ``weights`` what each
    counts in the mean; they are None where the terms ask different benchmarks, whose queries are no pairs.
    """

    interval: statistics.Interval
    per_seed: Array
    means: Array  # of the resamplings of queries: (resamples,)
    differences: Array | None
    weights: Array | None

    def p_value(self, threshold: float = 0.0) -> float:
        """Two-sided bootstrap p over queries."""
        return statistics.p_value(self.means, threshold)

    def with_seeds(self) -> statistics.Interval | None:
        """The interval that is about other seeds, too; None for fewer than two."""
        return statistics.interval_with_seeds(self.means, self.per_seed)

    def effect_size(self, threshold: float = 0.0) -> float | None:
        """Cohen's d_z over queries, of the distance from ``threshold``; None where queries are no pairs."""
        if self.differences is None or len(self.differences) < 2:
            return None
        return statistics.effect_size(self.differences - threshold, self.weights)


class Outcomes(NamedTuple):
    """What a method did with each query, in percent: shape (seeds, queries)."""

    values: Array
    queries: Any  # ids
    groups: Any  # class of each query, where the metric is a mean over classes; else None

    def means(self) -> Array:
        """The metric for each seed."""
        if self.groups is None:
            return np.asarray(self.values.mean(axis=1))
        return np.array([statistics.mean_per_class(row, self.groups) for row in self.values])

    def weights(self) -> Array:
        """What each query counts in the metric, in all 1: shape (queries,)."""
        if self.groups is None:
            return np.full(len(self.queries), 1 / len(self.queries))
        _, group, counts = np.unique(self.groups, return_inverse=True, return_counts=True)
        return np.asarray(1 / (len(counts) * counts[group]))


class Results:
    """The files of one run, read when first asked for."""

    def __init__(self, folder: Path, settings: FigureSettings) -> None:
        self.folder = folder
        self.settings = settings
        self._records: dict[Path, io.EvaluationRecord] = {}
        self._ranks: dict[Path, pd.DataFrame] = {}

    @cached_property
    def runs(self) -> dict[str, tuple[int, ...]]:
        """Seeds of each method; the paper's methods come first, in the paper's order."""
        runs = self.settings.runs or _found(self.folder / "evaluation")
        known = list(paper.read().methods)
        order = {name: place for place, name in enumerate(known)}
        return {name: runs[name] for name in sorted(runs, key=lambda name: order.get(name, len(order)))}

    @property
    def methods(self) -> list[str]:
        return list(self.runs)

    @property
    def title(self) -> str:
        """How the run's quadruples are called."""
        return self.settings.title or "the test split"

    def titles(self) -> dict[str, str]:
        """How the two benchmarks of quadruples are called, as captions name them."""
        return registry.titles(self.title)

    def retrieval_benchmarks(self, metric: str = "") -> dict[str, str]:
        """Titles of the benchmarks of quadruples that were evaluated, or that a metric was measured on."""
        shown = self.has if not metric else partial(self.has_metric, metric=metric)
        return {name: title for name, title in self.titles().items() if shown(name)}

    def has(self, benchmark: str) -> bool:
        """Whether this run was evaluated on a benchmark."""
        method = self.methods[0]
        return self._record_path(method, self.runs[method][0], benchmark).is_file()

    def has_metric(self, benchmark: str, metric: str, method: str | None = None) -> bool:
        """Whether a metric was measured: withheld images leave gaps, and not every method has all of them."""
        if not self.has(benchmark):
            return False
        record = self.record(method, self.runs[method][0], benchmark) if method else self._first_record(benchmark)
        return metric in record.metrics

    def record(self, method: str, seed: int, benchmark: str) -> io.EvaluationRecord:
        """One evaluation record."""
        path = self._record_path(method, seed, benchmark)
        if path not in self._records:
            self._records[path] = io.read_evaluation(path)
        return self._records[path]

    def values(self, method: str, benchmark: str, metric: str) -> Array:
        """A metric of each seed, as recorded: shape (seeds,).  Raises DataError where it is missing."""
        return np.array([self._metric(method, seed, benchmark, metric).value for seed in self.runs[method]])

    def queries(self, benchmark: str, metric: str) -> int:
        """How many queries a metric is a mean of."""
        method = self.methods[0]
        return self._metric(method, self.runs[method][0], benchmark, metric).count

    def estimate(self, method: str, benchmark: str, metric: str) -> Estimate:
        """A metric's mean and spread over seeds, with an interval.

        That of a single seed is the recorded one; over several seeds it comes from the ranks.  Where they hold no
        outcomes, it is the mean of the seeds' recorded ones, which is at least as wide
        (``statistics.mean_of_intervals``), or None if these are not all there.  Raises DataError where ranks and
        records do not agree.
        """
        values = self.values(method, benchmark, metric)
        if len(values) == 1:
            recorded = self._metric(method, self.runs[method][0], benchmark, metric)
            return Estimate(recorded.value, None, recorded.low, recorded.high)
        mean, sd = float(values.mean()), float(values.std(ddof=1))
        if not _has_outcomes(benchmark, metric):
            return Estimate(mean, sd, *self._mean_ends(method, benchmark, metric))
        contrast = self.contrast([Term(1, method, benchmark, metric)])
        if not np.allclose(contrast.per_seed, values, atol=1e-3):
            raise io.DataError(
                f"{self.folder / 'evaluation' / method}: {benchmark} {metric} is {values.round(3)} in the records, "
                f"but {contrast.per_seed.round(3)} in the ranks; evaluate again"
            )
        return Estimate(mean, sd, contrast.interval.low, contrast.interval.high)

    def _mean_ends(self, method: str, benchmark: str, metric: str) -> tuple[float | None, float | None]:
        """Mean lower and mean upper end of the seeds' recorded intervals; None unless all have one."""
        recorded = [self._metric(method, seed, benchmark, metric) for seed in self.runs[method]]
        intervals = [
            statistics.Interval(each.value, each.low, each.high)
            for each in recorded
            if each.low is not None and each.high is not None
        ]
        return statistics.mean_of_intervals(intervals)[1:] if len(intervals) == len(recorded) else (None, None)

    def contrast(self, terms: Sequence[Term], resamples: int | None = None, only: int | None = None) -> Contrast:
        """A weighted sum of metrics, with a bootstrap over queries that is paired across methods.

        Outcomes are averaged over seeds, query by query, and summed over the terms that ask the
        same queries; then queries are resampled, each set of queries on its own, ``resamples`` times (by
        default as often as in the evaluation).  With ``only``, methods that were run with that seed stand for it alone.
        """
        resamples = resamples or self.resamples
        sets: dict[tuple[str, str], list[Term]] = {}
        for term in self._one_set_each(terms):
            sets.setdefault((term.benchmark, term.metric.rpartition("/")[0]), []).append(term)
        value, means, per_seed = 0.0, np.zeros(1), np.zeros(1)
        differences, weights = [], []
        for place, ((benchmark, direction), members) in enumerate(sets.items()):
            outcomes = [self.outcomes(term.method, term.benchmark, term.metric, only) for term in members]
            first = outcomes[0]
            for term, other in zip(members, outcomes, strict=True):
                if not np.array_equal(first.queries, other.queries):
                    raise io.DataError(
                        f"{members[0].method} and {term.method} answered different queries of {benchmark}"
                    )
                per_seed = _sum_of_seeds(per_seed, term.weight * other.means())
            summed = sum(term.weight * other.values.mean(axis=0) for term, other in zip(members, outcomes, strict=True))
            part = statistics.bootstrap_interval(summed, 1, 0, first.groups).value
            value += part
            # As in the evaluation, so that equal numbers come out: a seed of its own for each zero-shot set.
            own = list(self._described_sets).index(direction) if benchmark == "zero_shot" else place
            means = means + statistics.bootstrap_means(summed, resamples, self.seed + own, first.groups)
            # The value is the weighted mean of these differences, whether there is one set or several.
            differences.append(len(sets) * summed)
            weights.append(first.weights() / len(sets))
        interval = statistics.percentile_interval(value, means)
        if len({benchmark for benchmark, _ in sets}) > 1:
            return Contrast(interval, per_seed, means, None, None)
        return Contrast(interval, per_seed, means, np.concatenate(differences), np.concatenate(weights))

    def outcomes(self, method: str, benchmark: str, metric: str, only: int | None = None) -> Outcomes:
        """Outcomes per query of a recall, an unsafe share or an accuracy, in percent; of all seeds, or of one."""
        direction, _, measure = metric.rpartition("/")
        seeds = self.runs[method] if only is None or only not in self.runs[method] else (only,)
        rows = [self._rows(method, seed, benchmark, direction) for seed in seeds]
        for other in rows[1:]:
            if not np.array_equal(rows[0]["query_id"], other["query_id"]):
                raise io.DataError(f"seeds of {method} answered different queries of {benchmark} {direction}")
        values = np.array([100.0 * _outcome(frame, measure) for frame in rows])
        queries = rows[0]["query_id"].to_numpy()
        per_class = benchmark == "zero_shot" and self.per_class(direction)
        groups = self._labels[queries.astype(int)] if per_class else None
        return Outcomes(values, queries, groups)

    def hits(self, method: str, benchmark: str, direction: str) -> pd.DataFrame:
        """Query, first hit and whether that is unsafe, with a method's first seed."""
        return self._rows(method, self.runs[method][0], benchmark, direction)

    def ranks(self, method: str, seed: int) -> pd.DataFrame:
        """The rank of every query of one evaluation."""
        path = self.folder / "evaluation" / method / f"seed-{seed}" / "ranks.parquet"
        if path not in self._ranks:
            self._ranks[path] = io.read_table(path, RANK_COLUMNS).to_pandas()
        return self._ranks[path]

    @cached_property
    def zero_shot_sets(self) -> dict[str, dict[str, Any]]:
        """Title, classes and templates of each zero-shot set that was evaluated."""
        sets = self._described_sets
        return {name: task for name, task in sets.items() if self.has_metric("zero_shot", f"{name}/accuracy")}

    def per_class(self, name: str) -> bool:
        """Whether a zero-shot set's accuracy is the mean over its classes, not the share of all images."""
        return self._described_sets[name].get("metric", PER_CLASS) == PER_CLASS

    @cached_property
    def probes(self) -> dict[str, dict[str, Any]]:
        """Title of each compositional probe that was evaluated, and whether it is a control."""
        described = io.read_json(self.folder / "test_sets" / "probes.json") if self.has("probes") else {}
        return {name: probe for name, probe in described.items() if self.has_metric("probes", f"{name}/accuracy")}

    @cached_property
    def public_sets(self) -> bool:
        """Whether the zero-shot sets are public ones, not those of the embedded world."""
        return any("download" in task for task in self._described_sets.values())

    @cached_property
    def galleries(self) -> list[str]:
        """Names of the galleries of real images; the embedded world's only gallery has none."""
        ending = f"/{GALLERY_DIRECTIONS[0]}/unsafe_share"
        metrics = self._first_record("gallery").metrics if self.has("gallery") else {}
        return [metric.removesuffix(ending) for metric in metrics if metric.endswith(ending)]

    @cached_property
    def resamples(self) -> int:
        """As many bootstrap resamples as the evaluation took."""
        return int(self._evaluation_setting("bootstrap"))

    @cached_property
    def seed(self) -> int:
        """Where the bootstrap's random numbers start: as in the evaluation."""
        return int(self._evaluation_setting("bootstrap_seed"))

    @cached_property
    def published(self) -> list[str]:
        """Methods that the paper has; all methods, where it has no tuned one of them."""
        known = [method for method in self.methods if method in paper.read().methods]
        return known if len(known) > 1 else self.methods

    def interval_note(self, resamples: int | None = None) -> str:
        """What the numbers behind a value mean, for captions; ``resamples`` as in the evaluation by default."""
        resamples = resamples or self.resamples
        seeds = max(len(seeds) for seeds in self.runs.values())
        spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
        return f"Values: {spread} [95% interval, bootstrap over queries, {resamples:,} resamples]."

    def mean_ends_note(self, measures: str) -> list[str]:
        """What intervals over several seeds are of measures whose outcomes per query are not kept; none of one seed."""
        if all(len(seeds) == 1 for seeds in self.runs.values()):
            return []
        return [
            f"Over several seeds, the ends of intervals of {measures} are the means of the seeds' own: at least as "
            "wide as the interval of the mean, as far as these are normal."
        ]

    def _evaluation_setting(self, name: str) -> Any:
        benchmark = next(name for name in registry.BENCHMARKS if self.has(name))
        settings = self._first_record(benchmark).provenance["settings"]
        if name not in settings:
            raise io.DataError(f"{self.folder}: the evaluation's records do not say its '{name}'; evaluate again")
        return settings[name]

    def _record_path(self, method: str, seed: int, benchmark: str) -> Path:
        return self.folder / "evaluation" / method / f"seed-{seed}" / f"{benchmark}.json"

    def _first_record(self, benchmark: str) -> io.EvaluationRecord:
        method = self.methods[0]
        return self.record(method, self.runs[method][0], benchmark)

    def _metric(self, method: str, seed: int, benchmark: str, metric: str) -> io.Metric:
        metrics = self.record(method, seed, benchmark).metrics
        if metric not in metrics:
            path = self._record_path(method, seed, benchmark)
            raise io.DataError(f"{path}: metric '{metric}' is missing; it has {', '.join(metrics)}")
        return metrics[metric]

    def _rows(self, method: str, seed: int, benchmark: str, direction: str) -> pd.DataFrame:
        ranks = self.ranks(method, seed)
        rows = ranks[(ranks["benchmark"] == benchmark) & (ranks["direction"] == direction)]
        if rows.empty:
            raise io.DataError(f"ranks of {method}, seed {seed}, hold no queries of {benchmark} {direction}")
        return rows

    @cached_property
    def _described_sets(self) -> dict[str, dict[str, Any]]:
        return io.read_json(self.folder / "test_sets" / "zero_shot.json")

    @cached_property
    def _labels(self) -> Any:
        """Class of each image of the zero-shot table; its rows are the query ids of the ranks."""
        table = io.read_table(self.folder / "test_sets" / "zero_shot.parquet", ["label"])
        return table["label"].to_numpy()

    def _one_set_each(self, terms: Iterable[Term]) -> Iterable[Term]:
        """Write a mean over zero-shot sets, or over galleries, as the sum that it is."""
        for term in terms:
            metrics = [term.metric]
            if term.benchmark == "zero_shot" and term.metric == MEAN_ACCURACY:
                metrics = [f"{name}/accuracy" for name in self.zero_shot_sets]
            elif term.benchmark == "gallery" and self.galleries and term.metric.count("/") == 1:
                metrics = [f"{name}/{term.metric}" for name in self.galleries]
            yield from (term._replace(weight=term.weight / len(metrics), metric=metric) for metric in metrics)


def _found(folder: Path) -> dict[str, tuple[int, ...]]:
    """Methods and seeds that have been evaluated."""
    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*/seed-*")):
        found.setdefault(path.parent.name, []).append(int(path.name.removeprefix("seed-")))
    if not found:
        raise io.DataError(f"{folder}: holds no evaluation; run the workflow first")
    return {method: tuple(sorted(seeds)) for method, seeds in found.items()}


def _has_outcomes(benchmark: str, metric: str) -> bool:
    measure = metric.rpartition("/")[2]
    return measure.startswith("recall@") or measure == "unsafe_share" or benchmark in ("zero_shot", "probes")


def _outcome(rows: pd.DataFrame, measure: str) -> Array:
    """Whether each query met the measure: shape (queries,)."""
    if measure == "unsafe_share":
        return np.asarray(rows["top_unsafe"], dtype=np.float64)
    within = 1 if measure == "accuracy" else int(measure.removeprefix("recall@"))
    return np.asarray(rows["rank"] <= within, dtype=np.float64)


def _sum_of_seeds(left: Array, right: Array) -> Array:
    """Add values per seed; an untuned model's only value is that of every seed."""
    if 1 not in (len(left), len(right)) and len(left) != len(right):
        raise io.DataError(f"methods with {len(left)} and {len(right)} seeds cannot be compared seed by seed")
    return left + right
