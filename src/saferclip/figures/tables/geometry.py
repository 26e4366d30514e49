"""Tables on the geometry of safe embeddings, on compositional probes, and on how the one goes with the other."""

from __future__ import annotations

from saferclip import correlation as coefficients
from saferclip import statistics
from saferclip.figures import geometry as shared
from saferclip.figures import names, paper
from saferclip.figures.layout import Cell, Column
from saferclip.figures.results import Estimate, Results

DEFINITIONS = (
    "Spread ratio: mean squared distance of embeddings to their mean, tuned over CLIP's (below 1 is contraction). "
    "Neighbour overlap: Jaccard overlap of each input's nearest safe inputs before and after, in the mean (1: all "
    "are kept). Both as in SAGE (arXiv 2607.00402)."
)


def geometry(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """Diagnostics and losses of each method; those of the untuned one are 1 and nothing."""
    measured, losses = shared.diagnostics(results), shared.losses(results)
    columns = [
        Column("method", "Method"),
        *(Column(name, found.measure, found.inputs, digits=3) for name, found in measured.items()),
        *(Column(f"{loss.benchmark}/{loss.metric}", loss.title, "lost", "points") for loss in losses),
    ]
    rows: list[list[Cell]] = [
        [
            paper.method_title(method),
            *(
                results.estimate(method, "geometry", name) if results.has_metric("geometry", name, method) else None
                for name in measured
            ),
            *(loss.of(results, method) if method != shared.UNTUNED else None for loss in losses),
        ]
        for method in results.methods
    ]
    inputs = ", ".join(
        f"{results.queries('geometry', name):,} {found.inputs}" for name, found in measured.items() if "ratio" in name
    )
    notes = [DEFINITIONS, *([f"Over {inputs}."] if inputs else []), *_unused(results)]
    notes += [results.interval_note(), *results.mean_ends_note("spread ratio and neighbour overlap")]
    return columns, rows, notes


def correlation(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """Spearman's coefficient for each diagnostic and each loss."""
    found = shared.correlations(results)
    columns = [
        Column("lost", "Lost", merge=True),
        Column("inputs", "Safe inputs", merge=True),
        Column("measure", "Geometry"),
        Column("spearman", "Spearman's ρ", digits=2),
        Column("p", "p", digits=3),
        Column("p_corrected", "p, corrected", digits=3),
        Column("methods", "Methods"),
    ]
    counts = {name: len(shared.tuned(results, name)) for name in shared.diagnostics(results)}
    corrected = iter(statistics.holm([each.p for each in found.values() if each]))
    rows: list[list[Cell]] = []
    for (name, loss), each in found.items():
        diagnostic = shared.DIAGNOSTICS[name]
        measured: list[Cell] = (
            [Estimate(each.value, None, each.low, each.high), each.p, next(corrected)] if each else [None, None, None]
        )
        rows.append([loss.title, diagnostic.inputs, diagnostic.measure, *measured, counts[name]])
    notes = [
        "A negative ρ: the more is contracted or torn apart, the more is lost. p: share of all orders of the methods "
        "with as strong a correlation, two-sided; corrected for the number of rows as by Holm.",
        *_too_few(min(counts.values(), default=0)),
        *_unused(results),
    ]
    return columns, rows, notes


def probes(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """One row for each probe, methods side by side; whether the untuned model can do it at all."""
    compared = shared.UNTUNED in results.methods
    columns = [
        Column("probe", "Probe"),
        Column("images", "Images"),
        *([Column("above_chance", "CLIP above chance")] if compared else []),
        *(Column(method, paper.method_title(method), "accuracy", "%") for method in results.methods),
    ]
    rows: list[list[Cell]] = []
    for name, probe in results.probes.items():
        metric = f"{name}/accuracy"
        able: list[Cell] = [shared.above_chance(results, name)] if compared else []
        accuracies = [results.estimate(method, "probes", metric) for method in results.methods]
        rows.append([names.capitalised(probe["title"]), results.queries("probes", metric), *able, *accuracies])
    notes = [
        f"Chance is {shared.CHANCE:g}%; a tie is an error. Above chance: the whole interval of CLIP's accuracy is.",
        results.interval_note(),
    ]
    return columns, rows, notes


def _unused(results: Results) -> list[str]:
    """Which probes say nothing of a loss."""
    if shared.UNTUNED not in results.methods:
        return []
    at_chance = [
        probe["title"]
        for name, probe in results.probes.items()
        if not probe["control"] and not shared.above_chance(results, name)
    ]
    return [f"Left out, since CLIP is not above chance: {', '.join(at_chance)}."] if at_chance else []


def _too_few(count: int) -> list[str]:
    if count >= coefficients.FEWEST:
        return []
    return [
        f"Left out with {count} tuned method{'s' * (count != 1)}: below {coefficients.FEWEST}, no order is rare enough "
        "for p < 0.05."
    ]
