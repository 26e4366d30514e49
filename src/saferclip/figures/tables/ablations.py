"""What each component earns, in numbers."""

from __future__ import annotations

from saferclip.figures import ablations as measurements
from saferclip.figures import paper
from saferclip.figures.layout import Cell, Column
from saferclip.figures.results import Results


def ablations(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """The whole method's values, then one row for each variant and measure."""
    settings = results.settings.ablations
    assert settings is not None  # the registry makes this table only where it is given
    columns = [
        Column("component", "Component", merge=True),
        Column("variant", "Variant", merge=True),
        Column("measure", "Measure"),
        Column("value", "Value", unit="%"),
        Column("difference", "Difference", "against the whole", "points"),
        Column("p", "p (Holm)", "against the whole", digits=4),
        Column("effect_size", "d_z", "against the whole", digits=2),
    ]
    whole = paper.method_title(settings.reference)
    rows: list[list[Cell]] = [
        ["the whole", whole, measure.title, measurements.measured(results, measure, settings.reference), *[None] * 3]
        for measure in measurements.shown(results)
    ]
    rows += [
        [
            found.component,
            found.variant,
            found.measure.title,
            found.value,
            found.difference,
            found.p_value,
            found.contrast.effect_size(),
        ]
        for found in measurements.ablations(results, settings)
    ]
    notes = [
        f"Each variant differs from {whole} in one thing. Safe first hits: share of unsafe captions and images whose "
        "first hit is safe; safe R@1: of safe captions and images among safe ones. Both, and T*→V∪V* R@1, are means "
        "over the benchmarks of quadruples.",
        "p: two-sided, of the bootstrap over queries, for no difference; corrected by Holm for all differences of the "
        "table. d_z: mean difference of a query in units of its standard deviation, where a measure asks one set of "
        "queries.",
        results.interval_note(),
    ]
    return columns, rows, notes
