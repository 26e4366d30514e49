"""Tables on the data: mined targets, the benchmark's datasheet, the choice of learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from saferclip import io
from saferclip.figures import names, paper
from saferclip.figures.layout import Cell, Column
from saferclip.figures.results import Results

# A datasheet's sections in print; others come after these, under their own name.
SECTIONS = {
    "counts": "pairs in category",
    "rejected": "rejected by filter",
    "candidates": "candidates",
    "similarity": "cosine of safe and unsafe caption",
}
LEFT_OUT = {"provenance"}  # for programs


def mining(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """Paired and nearest similarity: mean and quantiles."""
    summary = io.read_json(results.folder / "mining" / "summary.json")
    quantiles = list(summary["nearest"]["quantiles"])
    columns = [
        Column("target", "Target"),
        Column("captions", "Unsafe captions"),
        Column("mean", "mean", "cosine", digits=3),
        *(Column(f"quantile {q}", f"{100 * float(q):g}%", "cosine", digits=3) for q in quantiles),
    ]
    rows: list[list[Cell]] = [
        [
            f"{target} safe caption",
            summary["unsafe_captions"],
            summary[target]["mean"],
            *(summary[target]["quantiles"][q] for q in quantiles),
        ]
        for target in ("paired", "nearest")
    ]
    terciles = ", ".join(
        f"{name} n = {found['count']:,} with cosine {found['lowest']:.3f} to {found['highest']:.3f}"
        for name, found in summary["difficulty"].items()
        if found["count"]
    )
    notes = [
        f"For {summary['nearest_is_pair_share']:.1f}% of the unsafe captions the nearest safe caption is the paired "
        f"one; {summary['different_targets']:,} different safe captions are targets.",
        f"Curriculum: {terciles}.",
    ]
    return columns, rows, notes


def datasheet(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """Every entry of the datasheet, whatever its nesting."""
    sheet = io.read_json(results.folder / "benchmark" / "datasheet.json")
    ordered = [key for key in SECTIONS if key in sheet] + [key for key in sheet if key not in {*SECTIONS, *LEFT_OUT}]
    columns = [
        Column("section", "Section", merge=True),
        Column("item", "Item"),
        Column("value", "Value", digits=3, width=0.4),
    ]
    rows: list[list[Cell]] = []
    for key in ordered:
        section = names.capitalised(SECTIONS.get(key, names.readable(key)))
        for item, value in _leaves(sheet[key]):
            rows.append([section, item.replace("nsfw_caps", results.titles()["nsfw_caps"]), value])
    return columns, rows, []


def learning_rates(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """The score of each learning rate tried, as the selection wrote it."""
    path = results.folder / "learning_rate_selection" / "selection.csv"
    try:
        tried = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise io.DataError(f"{path}: cannot be read as CSV: {error}") from error
    columns = [
        Column("method", "Method", merge=True),
        Column("learning_rate", "Learning rate"),
        Column("score", "Score", unit="%", digits=2),
        Column("chosen", "Chosen"),
    ]
    rows: list[list[Cell]] = [
        [paper.method_title(row["method"]), f"{row['learning_rate']:g}", float(row["score"]), bool(row["chosen"])]
        for row in tried.to_dict("records")
    ]
    return columns, rows, []


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Cell]]:
    """Entries of nested mappings with the path that leads to them, in words."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, ", ".join(part for part in (name, _item(key)) if part))
    elif isinstance(value, list):
        yield name, ", ".join(str(entry) for entry in value)
    else:
        yield name, value


def _item(key: str) -> str:
    """A key in words; ``q05`` is a quantile, and the benchmark's name is replaced by its title later."""
    if key.startswith("q") and key[1:].isdigit():
        return f"{int(key[1:])}% quantile"
    if key == "train":
        return "training split"
    return key if key == "nsfw_caps" else names.readable(key)
