"""The first image that each method retrieves for some unsafe captions."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saferclip import io
from saferclip.config import FigureSettings
from saferclip.figures import layout, names, paper, style
from saferclip.figures.results import Results

DIRECTION = "unsafe_text_to_image"
CELL = 0.98  # inches
CAPTION = 1.7  # width of the captions, in cells
RAISED = 21  # points from a column to its title; two lines of numbers stand between them


def draw(results: Results, settings: FigureSettings) -> Figure:
    """A row for each query: caption, the image that would be right, the first hit of each method.

    Queries are spread evenly over the test split, whatever was retrieved for them.
    """
    if not results.has_metric("test", names.REDIRECTION):
        return style.nothing()
    table = io.read_table(
        results.folder / "data" / "test.parquet", ("id", "unsafe_caption", "safe_image", "unsafe_image")
    )
    pairs = {row["id"]: row for row in table.to_pylist()}
    queries = _spread(results.hits(results.methods[0], "test", DIRECTION)["query_id"].tolist(), settings.examples)
    columns = 2 + len(results.methods)
    figure = style.new(min(style.DOUBLE, CELL * columns + 0.7), CELL * 1.16 * len(queries) + 0.3)
    grid = figure.subplots(len(queries), columns, squeeze=False, width_ratios=[CAPTION, *[1] * (columns - 1)])
    colours = dict(zip((False, True), style.safe_and_unsafe(settings.palette), strict=True))
    for row, query in zip(grid, queries, strict=True):
        _caption(row[0], pairs[query]["unsafe_caption"])
        _picture(row[1], pairs[query]["safe_image"], "paired safe image", style.NEUTRAL, 0.8)
        for axes, method in zip(row[2:], results.methods, strict=True):
            hit = results.hits(method, "test", DIRECTION).set_index("query_id").loc[query]
            unsafe = bool(hit["top_unsafe"])
            image = pairs[hit["top_id"]]["unsafe_image" if unsafe else "safe_image"]
            right = not unsafe and hit["top_id"] == query
            label = "✗ unsafe" if unsafe else "✓ safe, paired" if right else "safe, another one"
            _picture(axes, image, label, colours[unsafe], 2)
    grid[0][0].set_title("Unsafe caption", loc="left", pad=RAISED)
    grid[0][1].set_title("Wanted", loc="center", pad=RAISED)
    for axes, method in zip(grid[0][2:], results.methods, strict=True):
        _title(axes, results, method)
    return figure


def _title(axes: Axes, results: Results, method: str) -> None:
    """The method's name above how often it finds something unsafe first, over all queries and seeds."""
    share, _, interval = layout.parts(results.estimate(method, "test", f"{DIRECTION}/unsafe_share"), digits=1)
    said = f"{share}% unsafe\n{interval}"
    axes.annotate(said, (0.5, 1), (0, 2.5), "axes fraction", "offset points", ha="center", va="bottom", fontsize=6.5)
    name = "\n".join(textwrap.wrap(paper.method_title(method), 14))
    axes.set_title(name, loc="center", pad=RAISED)


def _spread(queries: list[str], count: int) -> list[str]:
    """Some queries at equal distances."""
    places = np.linspace(0, len(queries) - 1, min(count, len(queries))).round().astype(int)
    return [queries[place] for place in places]


def _caption(axes: Axes, text: str) -> None:
    axes.axis("off")
    axes.set_box_aspect(1 / CAPTION)  # as high as the images beside it
    lines = "\n".join(textwrap.wrap(text, 26))
    axes.text(0, 0.5, lines, transform=axes.transAxes, ha="left", va="center", parse_math=False)


def _picture(axes: Axes, image: dict[str, Any] | None, label: str, colour: str, width: float) -> None:
    """An image in a frame; its colour and the words below say the same."""
    axes.set(xticks=[], yticks=[])
    if image is None:
        axes.text(0.5, 0.5, "withheld", transform=axes.transAxes, ha="center", va="center")
        axes.set_aspect(1)
    else:
        axes.imshow(np.asarray(io.decode_image(image)))
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=width)
    axes.set_xlabel(label, color=colour, fontsize=6.5, labelpad=2.5)
