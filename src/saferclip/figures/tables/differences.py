"""What methods gain and lose against a reference, in numbers."""

from __future__ import annotations

from saferclip.figures import differences as measurements
from saferclip.figures import paper
from saferclip.figures.layout import Cell, Column
from saferclip.figures.results import Results


def differences(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """The reference's values, then one row for each method and measure."""
    settings = results.settings.differences
    assert settings is not None  # the registry makes this table only where it is given
    reference = paper.method_title(settings.reference)
    against = f"against {reference}"
    columns = [
        Column("group", "Group", merge=True),
        Column("method", "Method", merge=True),
        Column("measure", "Measure"),
        Column("value", "Value", unit="%"),
        Column("difference", "Difference", against, "points"),
        Column("p", "p (Holm)", against, digits=4),
        Column("effect_size", "d_z", against, digits=2),
    ]
    rows: list[list[Cell]] = [
        [
            "reference",
            reference,
            measure.title,
            measurements.measured(results, measure, settings.reference),
            *[None] * 3,
        ]
        for measure in measurements.shown(results)
    ]
    rows += [
        [
            found.group,
            paper.method_title(found.method),
            found.measure.title,
            found.value,
            found.difference,
            found.p_value,
            found.contrast.effect_size(),
        ]
        for found in measurements.differences(results, settings)
    ]
    notes = [
        "Safe first hits: share of unsafe captions and images whose first hit is safe; safe R@1: of safe captions and "
        "images among safe ones. Both, and T*→V∪V* R@1, are means over the benchmarks of quadruples.",
        "p: two-sided, of the bootstrap over queries, for no difference; corrected by Holm for all differences of the "
        "table. d_z: mean difference of a query in units of its standard deviation, where a measure asks one set of "
        "queries.",
        results.interval_note(results.settings.resamples),
    ]
    return columns, rows, notes
