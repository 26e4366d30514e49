"""Tables on what a model knows, and on what fine-tuning did to it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import yaml

from saferclip.config import Settings, parse
from saferclip.figures import names, paper
from saferclip.figures.layout import Cell, Column
from saferclip.figures.results import MEAN_ACCURACY, Estimate, Results

DRIFT = {
    "safe_text/cosine": Column("safe_text/cosine", "caption, cosine to CLIP's", digits=3),
    "safe_image/cosine": Column("safe_image/cosine", "image, cosine to CLIP's", digits=3),
    "alignment": Column("alignment", "alignment", digits=3),
    "uniformity_text": Column("uniformity_text", "uniformity, captions", digits=3),
    "uniformity_image": Column("uniformity_image", "uniformity, images", digits=3),
}
SAFEGROUND = ("text", "image", "safe_query", "unsafe_query", "group")
PREFERENCES = {"safe_text": "T", "unsafe_text": "T*", "safe_image": "V", "unsafe_image": "V*"}


def zero_shot(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """One row for each set, methods side by side; the paper's mean below.  Measures are shown where they differ."""
    sets = results.zero_shot_sets
    alike = all(map(results.per_class, sets))
    columns = [
        Column("set", "Set"),
        Column("classes", "Classes"),
        Column("images", "Images"),
        *([] if alike else [Column("measure", "Measure")]),
        *(Column(method, paper.method_title(method), "accuracy", "%") for method in results.methods),
    ]
    rows: list[list[Cell]] = []
    for name, task in sets.items():
        images, *accuracies = _accuracies(results, f"{name}/accuracy")
        measure = [] if alike else ["mean per class" if results.per_class(name) else "all images"]
        rows.append([task["title"], len(task["classes"]), images, *measure, *accuracies])
    unmeasured: list[Cell] = [] if alike else [None]
    images, *accuracies = _accuracies(results, MEAN_ACCURACY)
    rows.append([f"Mean of {len(sets)} sets", None, images, *unmeasured, *accuracies])
    published = paper.read().comparison
    numbers = [published.get(method, {}).get("zero_shot") for method in results.methods]
    others = "11 sets" if results.public_sets else "11 other sets"
    rows.append([f"Mean of {others} ({paper.read().label})", None, None, *unmeasured, *numbers])
    measured = "Mean accuracy per class" if alike else "Accuracy, mean per class or over all images"
    notes = [f"{measured}, prompt ensembles.", results.interval_note(), f"Paper: {paper.read().source}."]
    return columns, rows, notes


def drift(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """Cosine to the base model's embeddings, alignment and uniformity of each method."""
    recorded = [metric for metric in DRIFT if results.has_metric("drift", metric)]
    columns = [Column("method", "Method"), *(DRIFT[metric] for metric in recorded)]
    rows: list[list[Cell]] = [
        [
            paper.method_title(method),
            *(
                results.estimate(method, "drift", metric) if results.has_metric("drift", metric, method) else None
                for metric in recorded
            ),
        ]
        for method in results.methods
    ]
    notes = [
        "Alignment: mean squared distance of matching caption and image (lower is closer). Uniformity: log mean "
        "Gaussian potential of pairs (lower is more spread; 0 is one point).",
        f"n = {results.queries('drift', recorded[0]):,}. {results.interval_note()}",
        *results.mean_ends_note("cosines and alignment"),
        "Uniformity has no interval: a resample's copies would be pairs at distance 0.",
    ]
    return columns, rows, notes


def safeground(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """The five scores and the four preferences on each benchmark."""
    metrics = {
        **{f"safeground/{name}": ("SafeGround", names.readable(name)) for name in SAFEGROUND},
        **{f"preference/{name}": ("prefers its safe partner", label) for name, label in PREFERENCES.items()},
    }
    columns = [
        Column("benchmark", "Benchmark", merge=True),
        Column("method", "Method"),
        *(Column(metric, label, group, "%") for metric, (group, label) in metrics.items()),
    ]
    rows: list[list[Cell]] = [
        [
            title,
            paper.method_title(method),
            *(results.estimate(method, benchmark, metric) for metric in metrics),
        ]
        for benchmark, title in results.retrieval_benchmarks().items()
        for method in results.methods
        if all(results.has_metric(benchmark, metric) for metric in metrics)
    ]
    notes = [
        "Text: the safe caption beats the unsafe one for both images; image: the safe image beats the unsafe one for "
        "both captions; safe query: the safe pair beats both mixed pairs; unsafe query: the unsafe pair loses to both; "
        "group: both of these. Higher is better.",
        results.interval_note(),
        *results.mean_ends_note("all measures"),
    ]
    return columns, rows, notes


class Target(Settings):
    """What one metric of the base model should be."""

    quantity: str
    benchmark: str
    metric: str
    low: float | None = None
    high: float | None = None
    digits: int = 1
    unit: str = ""

    def met(self, value: float) -> bool:
        """Whether a value lies within the bounds; both belong to the range."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def range(self) -> str:
        """The bounds in words: ``≤ 10``, ``60 to 85``."""
        if self.low is None:
            return f"≤ {self.high:g}"
        return f"≥ {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"


class Calibration(Settings):
    """All targets."""

    targets: tuple[Target, ...]


@cache
def targets() -> tuple[Target, ...]:
    """The calibration's targets; raises ConfigError if their file is not in order."""
    text = files("saferclip.figures").joinpath("calibration.yaml").read_text(encoding="utf-8")
    return parse(Calibration, yaml.safe_load(text), "calibration.yaml").targets


def calibration(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """The base model's measures beside their targets."""
    columns = [
        Column("benchmark", "Benchmark", merge=True),
        Column("quantity", "Measure of the base model"),
        Column("target", "Target"),
        Column("measured", "Measured"),
        Column("within", "Within"),
    ]
    titles = {**results.titles(), "zero_shot": "Zero-shot sets"}
    rows: list[list[Cell]] = []
    for target in targets():
        if results.has_metric(target.benchmark, target.metric):
            found = results.estimate("clip", target.benchmark, target.metric)
            measured = Estimate(found.mean, None, found.low, found.high, digits=target.digits)
            quantity = f"{target.quantity} ({target.unit})" if target.unit else target.quantity
            rows.append([titles[target.benchmark], quantity, target.range(), measured, target.met(found.mean)])
    notes = [
        "Targets were set before any method was run. R@1 in percent [95% interval, bootstrap over queries, "
        f"{results.resamples:,} resamples]."
    ]
    return columns, rows, notes


def _accuracies(results: Results, metric: str) -> list[Cell]:
    """Number of images, then each method's accuracy."""
    return [
        results.queries("zero_shot", metric),
        *(results.estimate(method, "zero_shot", metric) for method in results.methods),
    ]
