"""What a run of the embedded world can tell, and what it cannot."""

from __future__ import annotations

from itertools import combinations

from saferclip import statistics
from saferclip.figures import differences, paper
from saferclip.figures.differences import Measure
from saferclip.figures.layout import Cell, Column
from saferclip.figures.results import Results


def scope(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """The smallest difference that the run would find, for each measure and pair of the paper's methods."""
    columns = [
        Column("measure", "Measure", merge=True),
        Column("difference", "Difference", merge=True),
        Column("measured", "Measured", unit="points"),
        Column("paper", "Paper", unit="points"),
        Column("queries", "these models", "smallest difference found in 4 of 5 runs", "points"),
        Column("seeds", "other seeds", "smallest difference found in 4 of 5 runs", "points"),
    ]
    rows: list[list[Cell]] = []
    for measure in differences.shown(results):
        for earlier, later in combinations(results.published, 2):
            contrast = differences.contrast(results, measure, later, earlier)
            several = len(contrast.per_seed) > 1
            rows.append(
                [
                    measure.title,
                    f"{paper.method_title(later)} − {paper.method_title(earlier)}",
                    differences.estimate(contrast),
                    _published(measure, later, earlier),
                    statistics.detectable(contrast.means),
                    statistics.detectable(contrast.means, contrast.per_seed) if several else None,
                ]
            )
    notes = [
        "The run can tell whether a mechanism works, on data where every fact is known, and which method is ahead, "
        "with the same data, base model and protocol for all. A smaller difference than those of the last columns may "
        "exist and not be found: 80% power, two-sided test at 5%, no correction. These models: for other queries from "
        "the same world; other seeds: for other trainings as well, where few seeds know little of their own spread.",
        "It cannot tell how large any number would be at paper scale. One kind of picture, a grammar of some hundred "
        "words and a few dozen unsafe objects are not photographs and people's language; the base model is small, and "
        "was trained on this world alone.",
        "Unsafe images have a drawing style of their own in training and test, as generated ones may have at paper "
        "scale. The table robustness says how much of the redirection goes by that style; how much does so with real "
        "images, the run cannot tell.",
        "The weights of SaFeR-CLIP's loss are not stated in the paper; those of this run were chosen on validation "
        "data of the world. Where a claim fails, weights, scale or world may be why, and the run cannot tell which.",
        results.interval_note(results.settings.resamples),
        f"Paper: {paper.read().source}; mean of its two sets, and of 11 zero-shot sets, not the same data.",
    ]
    return columns, rows, notes


def _published(measure: Measure, later: str, earlier: str) -> float | None:
    """The paper's difference in a measure that it has: redirection and zero-shot accuracy."""
    published = paper.read().comparison
    reported = measure.title in (differences.REDIRECTED, differences.ACCURACY)
    if not reported or later not in published or earlier not in published:
        return None
    found = [published[later][name] - published[earlier][name] for name in measure.benchmarks]
    return sum(found) / len(found)
