"""What other methods, or variants of a method, gain and lose against a reference, for the figure and the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from saferclip import statistics
from saferclip.config import DifferenceSettings
from saferclip.figures.results import MEAN_ACCURACY, Contrast, Estimate, Results, Term


@dataclass(frozen=True)
class Measure:
    """A number of a model, in percent: the weighted sum of metrics, averaged over the benchmarks that have them."""

    title: str
    benchmarks: tuple[str, ...]
    metrics: dict[str, float]  # weight of each
    constant: float = 0.0  # added to a value; differences do not have it

    def terms(self, results: Results, method: str) -> list[Term]:
        """The sum for one method; empty where nothing of it was measured."""
        found = [
            benchmark
            for benchmark in self.benchmarks
            if all(results.has_metric(benchmark, metric) for metric in self.metrics)
        ]
        return [
            Term(weight / len(found), method, benchmark, metric)
            for benchmark in found
            for metric, weight in self.metrics.items()
        ]


QUADRUPLES = ("test", "nsfw_caps")
REDIRECTED, ACCURACY = "T*→V∪V* R@1", "zero-shot"
MEASURES = (
    Measure(REDIRECTED, QUADRUPLES, {"unsafe_text_to_image/recall@1": 1}),
    Measure(
        "safe first hits",
        QUADRUPLES,
        {"unsafe_text_to_image/unsafe_share": -0.5, "unsafe_image_to_text/unsafe_share": -0.5},
        constant=100,
    ),
    Measure("safe R@1", QUADRUPLES, {"text_to_image/recall@1": 0.5, "image_to_text/recall@1": 0.5}),
    Measure(ACCURACY, ("zero_shot",), {MEAN_ACCURACY: 1}),
)


@dataclass(frozen=True)
class Difference:
    """What one method has more or less than the reference in one measure."""

    group: str
    method: str
    measure: Measure
    value: Estimate  # of the method itself
    contrast: Contrast  # method minus reference
    p_value: float  # corrected by Holm for all differences that are shown

    @property
    def difference(self) -> Estimate:
        """The difference, its spread over seeds, and its interval over queries."""
        return estimate(self.contrast)


def measured(results: Results, measure: Measure, method: str) -> Estimate:
    """A method's own value."""
    return estimate(results.contrast(measure.terms(results, method)), measure.constant)


def shown(results: Results) -> list[Measure]:
    """The measures that this run has."""
    return [measure for measure in MEASURES if measure.terms(results, results.methods[0])]


def differences(results: Results, settings: DifferenceSettings) -> list[Difference]:
    """All differences that the run measured, group by group, in the order of the settings."""
    asked = list(_asked(results, settings))
    contrasts = [contrast(results, measure, method, settings.reference) for _, method, measure in asked]
    p_values = statistics.holm([found.p_value() for found in contrasts])
    return [
        Difference(group, method, measure, measured(results, measure, method), found, p_value)
        for (group, method, measure), found, p_value in zip(asked, contrasts, p_values, strict=True)
    ]


def _asked(results: Results, settings: DifferenceSettings) -> Iterator[tuple[str, str, Measure]]:
    for group, methods in settings.groups.items():
        for method in methods:
            for measure in shown(results):
                yield group, method, measure


def contrast(results: Results, measure: Measure, method: str, reference: str) -> Contrast:
    """A method's measure minus the reference's."""
    less = [term._replace(weight=-term.weight) for term in measure.terms(results, reference)]
    # As many resamples as tests of differences take: a p below 0.05 must be left after so many comparisons.
    return results.contrast([*measure.terms(results, method), *less], results.settings.resamples)


def estimate(found: Contrast, constant: float = 0.0) -> Estimate:
    """A contrast's value, its spread over seeds, and its interval over queries."""
    value, low, high = (number + constant for number in found.interval)
    sd = float(found.per_seed.std(ddof=1)) if len(found.per_seed) > 1 else None
    return Estimate(value, sd, low, high)
