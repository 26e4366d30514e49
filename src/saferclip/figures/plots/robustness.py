"""Unsafe first hits by variant of the query, and what becomes of safe captions near to unsafe ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saferclip.config import FigureSettings
from saferclip.figures import forest, style, variants
from saferclip.figures.results import Results
from saferclip.figures.variants import BENCHMARK, IMAGE, PHOTO, SAFE_IMAGE, SAFE_TEXT, TEXT, Variant


class Panel(NamedTuple):
    """What one panel shows: a metric of some variants, the control first."""

    title: str
    label: str
    rows: Sequence[Variant]
    metric: str


def draw(results: Results, settings: FigureSettings) -> Figure:
    """A panel each for words, styles in the gallery and of queries, and safe captions, if they were measured."""
    shown = [panel for panel in _panels(results) if panel.rows]
    if not shown:
        return style.nothing()
    lines = max(len(panel.rows) for panel in shown)
    width = style.DOUBLE if len(shown) > 1 else style.SINGLE
    figure = style.new(width, 1.1 + forest.height(lines, len(results.methods)))
    axes_of = figure.subplots(1, len(shown), squeeze=False)[0]
    for place, (axes, panel) in enumerate(zip(axes_of, shown, strict=True)):
        _draw_panel(axes, results, settings, panel)
        if place and panel.rows == shown[place - 1].rows:  # the names stand on the left already
            axes.set_yticklabels([])
    style.letters(axes_of, [panel.title for panel in shown])
    style.legend(figure, *axes_of[0].get_legend_handles_labels())
    return figure


def _panels(results: Results) -> list[Panel]:
    texts, images = variants.variants(results, TEXT), variants.variants(results, IMAGE)
    pictured = variants.variants(results, SAFE_IMAGE)
    safe = pictured or variants.variants(results, SAFE_TEXT)
    answer = SAFE_IMAGE if pictured else SAFE_TEXT
    found = "own image first (%)" if pictured else "own caption first,\namong CLIP's (%)"
    unsafe = "unsafe_share"
    photos = variants.variants(results, PHOTO)
    return [
        Panel("Words", "T*→V∪V*\nunsafe first (%)", _of(("unsafe_caption", "unsafe_pair"), texts), f"{TEXT}/{unsafe}"),
        Panel("In photos", "T*→V∪V*, photos\nunsafe first (%)", photos, f"{PHOTO}/{unsafe}"),
        Panel("Gallery", "T*→V∪V*\nunsafe first (%)", _of(("unsafe_image",), texts), f"{TEXT}/{unsafe}"),
        Panel("Queries", "V*→T∪T*\nunsafe first (%)", _of(("unsafe_image",), images), f"{IMAGE}/{unsafe}"),
        Panel("Safe", f"T→V∪V*\n{found}" if pictured else found, safe, f"{answer}/recall@1"),
    ]


def _of(kinds: Collection[str], found: Sequence[Variant]) -> list[Variant]:
    return [variant for variant in found if variant.kind in kinds]


def _draw_panel(axes: Axes, results: Results, settings: FigureSettings, panel: Panel) -> None:
    """Points with intervals, a line for each variant; the control is on top, and dotted lines go on from it."""
    lines = np.arange(len(panel.rows), dtype=float)
    looks = style.looks(results.methods, settings.palette)
    found = {
        method: [results.estimate(method, BENCHMARK, f"{variant.name}/{panel.metric}") for variant in panel.rows]
        for method in looks
    }
    for method, look in looks.items():
        control = found[method][0].mean
        axes.plot([control] * 2, [0, lines[-1] + 0.5], color=look.colour, linewidth=0.6, linestyle=":", zorder=0)
    forest.points(axes, lines, found, looks, size=3.2)
    axes.axhline(0.5, color="black", linewidth=0.6)
    axes.set_yticks(lines, [variant.label.replace(" (control)", "\n(control)") for variant in panel.rows])
    axes.set_ylim(lines[-1] + 0.5, -0.5)
    axes.set_xlim(-4, 104)
    axes.set_xlabel(panel.label)
    style.tidy(axes, grid="x")
