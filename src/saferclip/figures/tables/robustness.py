"""Tables on unsafe inputs unlike those of training, and on safe inputs near to unsafe ones."""

from __future__ import annotations

from collections.abc import Sequence

from saferclip import statistics
from saferclip.figures import names, paper, variants
from saferclip.figures.layout import Cell, Column
from saferclip.figures.results import Estimate, Results
from saferclip.figures.variants import BENCHMARK, IMAGE, OWN_UNSAFE, PHOTO, SAFE_IMAGE, SAFE_TEXT, TEXT, Change, Variant

DIRECTIONS = {
    TEXT: names.DIRECTIONS[TEXT],
    PHOTO: f"{names.DIRECTIONS[TEXT]}, photos",
    IMAGE: names.DIRECTIONS[IMAGE],
}
P_VALUE = Column("p", "p (Holm)", digits=4)
P_NOTE = "p: two-sided, of the bootstrap, for no difference; corrected by Holm for all differences of the table."
LEADING = (Column("variant", "Variant", merge=True), Column("method", "Method"))


def robustness(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """One row for each direction, variant and method."""
    columns = [
        Column("direction", "Direction", merge=True),
        *LEADING,
        Column("queries", "Queries", detail=True),
        Column("own_unsafe", "own V* first", unit="%"),
        Column("recall@1", "R@1", unit="%"),
        Column("unsafe_share", "unsafe first", unit="%"),
        Column("unsafe_share_change", "change of it", "against the control", "points"),
        P_VALUE,
    ]
    asked = [
        (variant, direction, method)
        for direction in (TEXT, PHOTO, IMAGE)
        for variant in variants.variants(results, direction)
        for method in results.methods
    ]
    changes = [
        variants.change(results, method, variant, f"{direction}/unsafe_share") for variant, direction, method in asked
    ]
    rows: list[list[Cell]] = [
        [DIRECTIONS[query[1]], *_unsafe(results, *query), *cells]
        for query, cells in zip(asked, _changes(changes), strict=True)
    ]
    notes = [
        "T*→V∪V*: unsafe captions among safe and unsafe images, where only the paired safe image is correct; in the "
        "styles, the unsafe images of the gallery are drawn in them, and in 'photos' all images are in the style of "
        "safe ones, so that it does not tell what is unsafe. V*→T∪T*: unsafe images among captions. Own V* first: "
        "share of unsafe captions that find their own unsafe image first among unsafe images alone, so whether a "
        "variant is still understood.",
        "Change: variant minus control over the same queries, paired. Styles are compared with images drawn anew in "
        "the data's style, which show what another draw of images does by itself.",
        *_objects_note(asked),
        P_NOTE,
        results.interval_note(),
    ]
    return columns, rows, notes


def _objects_note(asked: Sequence[tuple[Variant, str, str]]) -> list[str]:
    if all(variant.kind != "unsafe_pair" for variant, _, _ in asked):
        return []
    return [
        "Seen and unseen object: unsafe captions and images of the same scenes with another unsafe object, which "
        "training rows show or do not; as many of each, in galleries of their own. Objects are not equally hard to "
        "find, so a change is to be compared with CLIP's, to which all are known.",
    ]


def _unsafe(results: Results, variant: Variant, direction: str, method: str) -> list[Cell]:
    prefix = f"{variant.name}/{direction}"
    own = f"{variant.name}/{OWN_UNSAFE}/recall@1" if direction == TEXT else ""
    return [
        variant.label,
        paper.method_title(method),
        results.queries(BENCHMARK, f"{prefix}/recall@1"),
        _measured(results, method, own),
        results.estimate(method, BENCHMARK, f"{prefix}/recall@1"),
        results.estimate(method, BENCHMARK, f"{prefix}/unsafe_share"),
    ]


def _changes(changes: Sequence[Change | None]) -> list[list[Cell]]:
    """Each change beside its p value, which is corrected for all of them."""
    corrected = iter(statistics.holm([change.p_value for change in changes if change]))
    return [[change.estimate, next(corrected)] if change else [None, None] for change in changes]


def over_refusal(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """One row for each kind of safe caption and each method."""
    columns = [
        *LEADING,
        Column("queries", "Queries", detail=True),
        Column(f"{SAFE_IMAGE}/recall@1", "R@1", "T→V∪V*", "%"),
        Column(f"{SAFE_IMAGE}/unsafe_share", "unsafe first", "T→V∪V*", "%"),
        Column("lost", "lost", "T→V∪V*", "%"),
        Column("change", "R@1 − ordinary", "T→V∪V*", "points"),
        P_VALUE,
        Column(f"{SAFE_TEXT}/recall@1", "R@1", "among CLIP's captions", "%"),
        Column("cosine", "cosine to CLIP's", digits=3),
    ]
    asked = [(variant, method) for variant in variants.variants(results, SAFE_TEXT) for method in results.methods]
    metric = f"{SAFE_IMAGE}/recall@1"
    changes = _changes([variants.change(results, method, variant, metric) for variant, method in asked])
    rows = [_safe(results, *query, changed) for query, changed in zip(asked, changes, strict=True)]
    notes = [
        "T→V∪V*: safe captions among the images of their kind and the unsafe images of the test quadruples, where only "
        "their own image is correct. Lost: CLIP ranks it first, the method does not. Among CLIP's captions: whether "
        "the caption's embedding is nearer to CLIP's embedding of the very caption than to that of any other one, safe "
        "or unsafe.",
        "Captions of all kinds say the same, but for one object. Near ones have fewer objects to tell images apart, so "
        "R@1 − ordinary is below 0 for CLIP too, and is to be compared with CLIP's.",
        P_NOTE,
        results.interval_note(),
    ]
    return columns, rows, notes


def _safe(results: Results, variant: Variant, method: str, changed: list[Cell]) -> list[Cell]:
    pictured = results.has_metric(BENCHMARK, f"{variant.name}/{SAFE_IMAGE}/recall@1")
    # A method in hyperbolic space has no cosine to CLIP's captions.
    within = results.has_metric(BENCHMARK, f"{variant.name}/safe_text/cosine", method)
    cosines = results.values(method, BENCHMARK, f"{variant.name}/safe_text/cosine") if within else None
    return [
        variant.label,
        paper.method_title(method),
        results.queries(BENCHMARK, f"{variant.name}/{SAFE_TEXT}/recall@1"),
        _measured(results, method, f"{variant.name}/{SAFE_IMAGE}/recall@1"),
        _measured(results, method, f"{variant.name}/{SAFE_IMAGE}/unsafe_share"),
        variants.lost(results, method, variant, SAFE_IMAGE) if pictured else None,
        *changed,
        results.estimate(method, BENCHMARK, f"{variant.name}/{SAFE_TEXT}/recall@1") if within else None,
        None
        if cosines is None
        else Estimate(float(cosines.mean()), float(cosines.std(ddof=1)) if len(cosines) > 1 else None),
    ]


def _measured(results: Results, method: str, metric: str) -> Estimate | None:
    return results.estimate(method, BENCHMARK, metric) if results.has_metric(BENCHMARK, metric) else None
