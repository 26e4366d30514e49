"""What methods gain and lose against a reference, a panel for each measure."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saferclip import escaping
from saferclip.config import FigureSettings
from saferclip.figures import differences, paper, style
from saferclip.figures.differences import Difference
from saferclip.figures.results import Results

CERTAIN = 0.05  # p below which a difference is drawn full


def draw(results: Results, settings: FigureSettings) -> Figure:
    """Methods from top to bottom, by groups, with intervals; hollow ones may be chance."""
    assert settings.differences is not None  # the registry makes this figure only where it is given
    found = differences.differences(results, settings.differences)
    measures = list(dict.fromkeys(entry.measure.title for entry in found))
    methods = list(dict.fromkeys((entry.group, entry.method) for entry in found))
    lines = _lines(methods)
    figure = style.new(style.DOUBLE, 0.9 + 0.15 * (lines[-1] + 1))
    panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for axes, measure in zip(panels, measures, strict=True):
        _panel(axes, [entry for entry in found if entry.measure.title == measure], lines, settings)
        axes.set_xlabel("difference (points)")
    panels[0].set_yticks(lines, [escaping.drawn(paper.method_title(method)) for _, method in methods])
    panels[0].set_ylim(lines[-1] + 0.7, -0.7)
    style.letters(panels, measures)
    reference = escaping.drawn(paper.method_title(settings.differences.reference))
    figure.supxlabel(f"against {reference}; hollow: p ≥ {CERTAIN} after Holm's correction", fontsize=6.5)
    return figure


def _lines(methods: list[tuple[str, str]]) -> np.ndarray:
    """Where each method is drawn: groups stand apart."""
    starts = [place > 0 and group != methods[place - 1][0] for place, (group, _) in enumerate(methods)]
    return np.arange(len(methods)) + 0.6 * np.cumsum(starts)


def _panel(axes: Axes, found: list[Difference], lines: np.ndarray, settings: FigureSettings) -> None:
    colours = style.colours(settings.palette, len(dict.fromkeys(entry.group for entry in found)))
    shades = dict(zip(dict.fromkeys(entry.group for entry in found), colours, strict=True))
    axes.axvline(0, color=style.NEUTRAL, linewidth=0.8)
    for line, entry in zip(lines, found, strict=True):
        estimate, colour = entry.difference, shades[entry.group]
        axes.errorbar(
            estimate.mean,
            line,
            xerr=np.array(style.reach(estimate))[:, None],
            fmt="o",
            color=colour,
            markerfacecolor=colour if entry.p_value < CERTAIN else "white",
            markersize=4,
            elinewidth=0.9,
            capsize=1.5,
        )
    style.tidy(axes, grid="x")
