"""The geometry of safe embeddings beside what tuning lost: what a figure and two tables share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from saferclip import correlation
from saferclip.correlation import Correlation
from saferclip.figures import differences
from saferclip.figures.results import MEAN_ACCURACY, Estimate, Results, Term

UNTUNED = "clip"
CHANCE = 50.0  # percent, of a caption and one foil


class Diagnostic(NamedTuple):
    """A measure of geometry, as it is called in print."""

    inputs: str
    measure: str


DIAGNOSTICS: Mapping[str, Diagnostic] = {
    "text/spread_ratio": Diagnostic("captions", "spread ratio"),
    "text/neighbour_overlap": Diagnostic("captions", "neighbour overlap"),
    "image/spread_ratio": Diagnostic("images", "spread ratio"),
    "image/neighbour_overlap": Diagnostic("images", "neighbour overlap"),
}


@dataclass(frozen=True)
class Loss:
    """An accuracy that the untuned model has, and a tuned one may lose."""

    title: str
    benchmark: str
    metric: str

    def of(self, results: Results, method: str, seed: int | None = None) -> Estimate:
        """Points that a method lost, over all seeds or with one, with their interval over images."""
        kept = Term(-1, method, self.benchmark, self.metric)
        return differences.estimate(results.contrast([Term(1, UNTUNED, self.benchmark, self.metric), kept], only=seed))


def diagnostics(results: Results) -> dict[str, Diagnostic]:
    """Those that were measured: withheld images, or few of them, leave gaps."""
    return {name: found for name, found in DIAGNOSTICS.items() if results.has_metric("geometry", name)}


def tuned(results: Results, diagnostic: str | None = None) -> list[str]:
    """All methods but the one that the others are compared with; only those that have a diagnostic, if one is given.

    In another space than CLIP's, spread and neighbours within a modality have no meaning.
    """
    return [
        method
        for method in results.methods
        if method != UNTUNED and (diagnostic is None or results.has_metric("geometry", diagnostic, method))
    ]


def losses(results: Results) -> list[Loss]:
    """Zero-shot accuracy, and the probes on which the untuned model has something to lose; controls are none."""
    if UNTUNED not in results.methods:
        return []
    zero_shot = [Loss("zero-shot", "zero_shot", MEAN_ACCURACY)] if results.has("zero_shot") else []
    probes = [
        Loss(probe["title"], "probes", f"{name}/accuracy")
        for name, probe in results.probes.items()
        if not probe["control"] and above_chance(results, name)
    ]
    return zero_shot + probes


def above_chance(results: Results, probe: str) -> bool:
    """Whether the untuned model's whole interval lies above chance."""
    found = results.estimate(UNTUNED, "probes", f"{probe}/accuracy")
    return found.low is not None and found.low > CHANCE


def correlations(results: Results) -> dict[tuple[str, Loss], Correlation | None]:
    """Each diagnostic against each loss, over methods; None where there are too few, or none differs.

    Seeds of one method are no observations of their own: they differ by chance alone, methods by what is asked.
    """
    found = {}
    for loss in losses(results):
        lost = {method: loss.of(results, method).mean for method in tuned(results)}
        for name in diagnostics(results):
            measured = {
                method: float(np.mean(results.values(method, "geometry", name))) for method in tuned(results, name)
            }
            found[name, loss] = correlation.correlate(
                list(measured.values()), [lost[method] for method in measured], results.resamples, results.seed
            )
    return found
