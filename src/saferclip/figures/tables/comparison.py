"""Tables that compare methods in retrieval, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Sequence

from saferclip.figures import names, paper
from saferclip.figures.layout import Cell, Column
from saferclip.figures.results import GALLERY_DIRECTIONS, MEAN_ACCURACY, Estimate, Results

METHOD = Column("method", "Method")


def main(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """Redirection beside its ceiling on each benchmark, zero-shot accuracy, and the paper's numbers."""
    measured = [
        (benchmark, metric, Column(f"{benchmark}/{metric}", f"{names.DIRECTIONS[direction]} R@1", title, "%"))
        for benchmark, title in results.retrieval_benchmarks().items()
        for metric in (names.CEILING, names.REDIRECTION)
        for direction in (metric.partition("/")[0],)
    ]
    if results.has("zero_shot"):
        column = Column(
            f"zero_shot/{MEAN_ACCURACY}", "mean accuracy", f"{len(results.zero_shot_sets)} zero-shot sets", "%"
        )
        measured.append(("zero_shot", MEAN_ACCURACY, column))
    evaluated = list(dict.fromkeys(benchmark for benchmark, _, _ in measured))
    rows: list[list[Cell]] = [
        [
            paper.method_title(method),
            *(_measured(results, method, benchmark, metric) for benchmark, metric, _ in measured),
            *(paper.read().comparison.get(method, {}).get(benchmark) for benchmark in evaluated),
        ]
        for method in results.published
    ]
    columns = [METHOD, *(column for _, _, column in measured), *_paper_columns(evaluated)]
    public = results.has("zero_shot") and results.public_sets
    others = "11 zero-shot sets, which it does not name" if public else "11 other zero-shot sets"
    notes = [
        "T→V: safe captions among safe images; T*→V∪V*: unsafe captions among safe and unsafe images, where only the "
        "paired safe image is correct. Perfect redirection would make T*→V∪V* as high as T→V of CLIP at best.",
        results.interval_note(),
        f"Paper: {paper.read().source}; T*→V∪V* R@1 and the mean of {others}, not the same data.",
    ]
    return columns, rows, notes


def retrieval(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """Every direction of every benchmark, one row for each method."""
    columns = [
        Column("benchmark", "Benchmark", merge=True),
        Column("direction", "Direction", merge=True),
        METHOD,
        *(Column(measure, title, unit="%") for measure, title in names.MEASURES.items()),
    ]
    rows: list[list[Cell]] = []
    for benchmark, title in results.retrieval_benchmarks().items():
        for direction, label in names.DIRECTIONS.items():
            for method in results.methods:
                metrics = [f"{direction}/{measure}" for measure in names.MEASURES]
                cells = [_measured(results, method, benchmark, metric) for metric in metrics]
                rows.append([title, label, paper.method_title(method), *cells])
    notes = [
        "R@k: share of queries with the correct item among the first k (higher is better); ties count against the "
        "model. Unsafe first: share of queries whose first hit is unsafe (lower is better).",
        results.interval_note(),
    ]
    return columns, rows, notes


def unsafe_gallery(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """Share of unsafe first hits in both directions, beside the paper's real-image sets."""
    if results.galleries:
        return _real_galleries(results)
    directions = {"text_to_image": "T*→V∪V*", "image_to_text": "V*→T∪T*"}
    metrics = [f"{direction}/unsafe_share" for direction in directions]
    published = paper.read().unsafe_image_to_text
    sets = list(next(iter(published.values())))
    columns = [
        METHOD,
        *(
            Column(f"gallery/{metric}", label, "this run, unsafe first", "%")
            for metric, label in zip(metrics, directions.values(), strict=True)
        ),
        *_paper_columns(sets, what=", V*→T∪T*"),
    ]
    rows: list[list[Cell]] = [
        [
            paper.method_title(method),
            *(results.estimate(method, "gallery", metric) for metric in metrics),
            *(published.get(method, {}).get(name) for name in sets),
        ]
        for method in results.published
    ]
    notes = [
        f"n = {results.queries('gallery', metrics[0]):,} unsafe queries in each direction; lower is better.",
        results.interval_note(),
        f"Paper: {paper.read().source}; unsafe photographs against safe and unsafe captions, not the same data.",
    ]
    return columns, rows, notes


def _real_galleries(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """One row for each set of real images and each method; their mean below."""
    published = paper.read()
    columns = [
        Column("set", "Unsafe images", merge=True),
        METHOD,
        Column("unsafe", "Unsafe images, captions", detail=True),
        Column("gallery/text_to_image/unsafe_share", "T*→V∪V*", "this run, unsafe first", "%"),
        Column("gallery/image_to_text/unsafe_share", "V*→T∪T*", "this run, unsafe first", "%"),
        Column("paper", "V*→T∪T*", published.label, "%"),
    ]
    rows: list[list[Cell]] = []
    for name in [*results.galleries, ""]:
        metrics = [f"{name}/{direction}/unsafe_share".removeprefix("/") for direction in GALLERY_DIRECTIONS]
        texts, images = (results.queries("gallery", metric) for metric in metrics)
        for method in results.published:
            rows.append(
                [
                    published.columns.get(name, name) or f"Mean of {len(results.galleries)} sets",
                    paper.method_title(method),
                    f"{images:,}, {texts:,}" if name else "",
                    *(results.estimate(method, "gallery", metric) for metric in metrics),
                    published.unsafe_image_to_text.get(method, {}).get(name),
                ]
            )
    notes = [
        "Unsafe captions among safe and unsafe images, unsafe images among safe and unsafe captions; lower is better.",
        results.interval_note(),
        f"Paper: {published.source}; its choice of images and captions is not known to us.",
    ]
    return columns, rows, notes


def _measured(results: Results, method: str, benchmark: str, metric: str) -> Estimate | None:
    return results.estimate(method, benchmark, metric) if results.has_metric(benchmark, metric) else None


def _paper_columns(keys: Sequence[str], what: str = "") -> list[Column]:
    published = paper.read()
    return [Column(f"paper/{key}", published.columns[key], published.label + what, "%") for key in keys]
