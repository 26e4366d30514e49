"""Tables of what other models make of the tuned encoders: images from text, text from images."""

from __future__ import annotations

from pathlib import Path

from saferclip import io
from saferclip.figures import names, paper
from saferclip.figures.layout import Cell, Column
from saferclip.figures.results import Estimate, Results

METHOD = Column("method", "Method", merge=True)
UNSAFE = "unsafe"


def text_to_image(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """Share of unsafe images, one row for each method and safe guidance."""
    records = {
        (method, guidance): _record(results, "text_to_image", method, guidance)
        for method in results.methods
        for guidance in _guidances(results, method)
    }
    first = next(iter(records.values()))
    groups = [name.rpartition("/")[0] for name in first.metrics if name.endswith(f"/{UNSAFE}")]
    groups = ["mean", "all", *(name for name in groups if name not in ("mean", "all"))]
    columns = [
        METHOD,
        Column("guidance", "Safe guidance"),
        *(
            Column(f"{name}/{UNSAFE}", names.readable(name), "unsafe images", "%", detail=name not in ("mean", "all"))
            for name in groups
        ),
        Column("paper/mean", "mean", paper.read().label, "%"),
    ]
    rows: list[list[Cell]] = [
        [
            paper.method_title(method),
            guidance,
            *(_estimate(record, f"{name}/{UNSAFE}") for name in groups),
            paper.read().text_to_image.get(method, {}).get(guidance),
        ]
        for (method, guidance), record in records.items()
    ]
    counts = first.counts
    notes = [
        f"{counts['images']:,} images of {counts['prompts']:,} prompts ({counts['prompts_left_out']:,} left out). "
        "Unsafe: flagged by NudeNet or Q16, as far as the run uses them; lower is better. Mean: over I2P's categories; "
        "a prompt in two counts in both.",
        _interval_note(first, "prompts"),
        f"Paper: {paper.read().source}; Stable Diffusion 1.4.",
    ]
    return columns, rows, notes


def image_to_text(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """Share of toxic answers and mean toxicity about the images of each source, one row for each method."""
    records = {method: _record(results, "image_to_text", method, "record") for method in results.methods}
    first = next(iter(records.values()))
    sources = [name.rpartition("/")[0] for name in first.metrics if name.endswith("/toxic")]
    if len(sources) == 2:  # one source, which is all
        sources = sources[:1]
    titles = {"test": f"images of {results.title}", "all": "all images"}
    columns = [METHOD]
    for name in sources:
        group = titles.get(name, names.readable(name))
        columns.append(Column(f"{name}/toxic", "toxic answers", group, "%"))
        columns.append(Column(f"{name}/toxicity", "mean toxicity", group, digits=3))
    rows: list[list[Cell]] = [
        [paper.method_title(method), *(_estimate(record, column.key) for column in columns[1:])]
        for method, record in records.items()
    ]
    counts = first.counts
    left_out = sum(count for name, count in counts.items() if name.endswith("_left_out"))
    notes = [
        f"{counts['answers']:,} answers about {first.metrics['all/toxic'].count:,} images ({left_out:,} left out); "
        "lower is better.",
        _interval_note(first, "images"),
    ]
    return columns, rows, notes


def _record(results: Results, step: str, method: str, name: str) -> io.EvaluationRecord:
    return io.read_evaluation(_folder(results, step, method) / f"{name}.json")


def _guidances(results: Results, method: str) -> list[str]:
    """Safe guidances that images were made with; the one called 'none' comes first."""
    found = sorted(path.stem for path in _folder(results, "text_to_image", method).glob("*.json"))
    if not found:
        raise io.DataError(f"{_folder(results, 'text_to_image', method)}: holds no record; run the workflow first")
    return sorted(found, key=lambda name: name != "none")


def _folder(results: Results, step: str, method: str) -> Path:
    return results.folder / step / method / f"seed-{results.runs[method][0]}"


def _estimate(record: io.EvaluationRecord, metric: str) -> Estimate | None:
    found = record.metrics.get(metric)
    return Estimate(found.value, None, found.low, found.high) if found else None


def _interval_note(record: io.EvaluationRecord, over: str) -> str:
    resamples = int(record.provenance["settings"]["bootstrap"])
    return f"Values: first seed [95% interval, bootstrap over {over}, {resamples:,} resamples]."
