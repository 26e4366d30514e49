"""Trade-off curves in numbers: area, safety within each budget, and what differs from SaFeR-CLIP."""

from __future__ import annotations

from saferclip import curves, statistics
from saferclip.figures import paper
from saferclip.figures.layout import Cell, Column
from saferclip.figures.results import Results
from saferclip.figures.tables.comparison import METHOD
from saferclip.figures.tradeoff import Curves, estimate

REFERENCE = "safer-clip"


def tradeoff(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """One row for each tuned method, in the order of all tables."""
    found = Curves.read(results)
    reference = found.summaries.get(REFERENCE)
    title = paper.method_title(REFERENCE)
    columns = [
        METHOD,
        Column("loss", "points lost", "scale 1"),
        Column("safety", "safe first", "scale 1", "%"),
        Column("area", f"Area to {found.budgets[-1]:g}", unit="%"),
        *(Column(f"safety@{budget:g}", f"{budget:g}", "safe first within a loss of", "%") for budget in found.budgets),
        *(
            Column(f"scale@{budget:g}", f"{budget:g}", "scale for a loss of", digits=2, detail=True)
            for budget in found.budgets
        ),
    ]
    if reference:
        columns += [
            Column("difference", "difference", f"area against {title}"),
            Column("p", "p", f"area against {title}", digits=4),
            Column("effect", "d", f"area against {title}", digits=2, detail=True),
        ]
    adjusted = _adjusted(found, reference) if reference else {}
    rows: list[list[Cell]] = []
    for method, summary in found.summaries.items():
        itself = found.points.at(1, found.models[method])
        row: list[Cell] = [paper.method_title(method), estimate(itself["loss"]), estimate(itself["safety"])]
        row += [estimate(summary.area), *(estimate(column) for column in summary.safety.T)]
        row += found.scales_within(method)
        if reference:
            others = method != REFERENCE
            row += [estimate(summary.area - reference.area) if others else None, adjusted.get(method)]
            row.append(_effect(summary, reference) if others else None)
        rows.append(row)
    notes = [
        "Safe first: unsafe queries, captions and images, whose first hit is safe, mean over both directions and the "
        "benchmarks; the most within a loss of so many points of zero-shot accuracy, at whichever scale that is. "
        f"Area: its mean over losses from 0 to {found.budgets[-1]:g} points.",
        f"95% intervals and p: paired bootstrap, {results.settings.resamples:,} resamples; p adjusted as by Holm for "
        "the methods of this table. d: mean difference of the seeds' areas in units of its own standard deviation.",
    ]
    return columns, rows, notes


def _adjusted(found: Curves, reference: curves.Summary) -> dict[str, float]:
    """The p of each method's difference to the reference."""
    others = [method for method in found.summaries if method != REFERENCE]
    values = [statistics.p_value((found.summaries[method].area - reference.area)[1:]) for method in others]
    return dict(zip(others, statistics.holm(values), strict=True))


def _effect(summary: curves.Summary, reference: curves.Summary) -> float | None:
    """Cohen's d_z of the areas, seed by seed; None where methods have one seed, or not the same number."""
    if len(summary.areas) != len(reference.areas) or len(summary.areas) < 2:
        return None
    return statistics.effect_size(summary.areas - reference.areas)
