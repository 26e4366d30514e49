"""What each component of a method earns: its variants' differences to the whole, for the figure and the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from saferclip import statistics
from saferclip.config import AblationSettings
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
MEASURES = (
    Measure("T*→V∪V* R@1", QUADRUPLES, {"unsafe_text_to_image/recall@1": 1}),
    Measure(
        "safe first hits",
        QUADRUPLES,
        {"unsafe_text_to_image/unsafe_share": -0.5, "unsafe_image_to_text/unsafe_share": -0.5},
        constant=100,
    ),
    Measure("safe R@1", QUADRUPLES, {"text_to_image/recall@1": 0.5, "image_to_text/recall@1": 0.5}),
    Measure("zero-shot", ("zero_shot",), {MEAN_ACCURACY: 1}),
)


@dataclass(frozen=True)
class Ablation:
    """What one variant of a component changes in one measure."""

    component: str
    variant: str
    measure: Measure
    value: Estimate  # of the variant itself
    contrast: Contrast  # variant minus whole
    p_value: float  # corrected by Holm for all differences that are shown

    @property
    def difference(self) -> Estimate:
        """The difference, its spread over seeds, and its interval over queries."""
        return _estimate(self.contrast)


def measured(results: Results, measure: Measure, method: str) -> Estimate:
    """A method's own value."""
    return _estimate(results.contrast(measure.terms(results, method)), measure.constant)


def shown(results: Results) -> list[Measure]:
    """The measures that this run has."""
    return [measure for measure in MEASURES if measure.terms(results, results.methods[0])]


def ablations(results: Results, settings: AblationSettings) -> list[Ablation]:
    """All differences that the run measured, component by component, in the order of the settings."""
    asked = list(_asked(results, settings))
    contrasts = [_difference(results, measure, variant, settings.reference) for _, variant, measure in asked]
    p_values = statistics.holm([contrast.p_value() for contrast in contrasts])
    return [
        Ablation(component, variant, measure, measured(results, measure, variant), contrast, p_value)
        for (component, variant, measure), contrast, p_value in zip(asked, contrasts, p_values, strict=True)
    ]


def _asked(results: Results, settings: AblationSettings) -> Iterator[tuple[str, str, Measure]]:
    for component, variants in settings.components.items():
        for variant in variants:
            for measure in shown(results):
                yield component, variant, measure


def _difference(results: Results, measure: Measure, variant: str, reference: str) -> Contrast:
    less = [term._replace(weight=-term.weight) for term in measure.terms(results, reference)]
    # As many resamples as tests of differences take: a p below 0.05 must be left after so many comparisons.
    return results.contrast([*measure.terms(results, variant), *less], results.settings.resamples)


def _estimate(contrast: Contrast, constant: float = 0.0) -> Estimate:
    value, low, high = (number + constant for number in contrast.interval)
    sd = float(contrast.per_seed.std(ddof=1)) if len(contrast.per_seed) > 1 else None
    return Estimate(value, sd, low, high)
