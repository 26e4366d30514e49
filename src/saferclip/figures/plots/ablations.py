"""What each component earns: differences of variants to the whole method, a panel for each measure."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saferclip import escaping
from saferclip.config import FigureSettings
from saferclip.figures import ablations, paper, style
from saferclip.figures.ablations import Ablation
from saferclip.figures.results import Results

CERTAIN = 0.05  # p below which a difference is drawn full


def draw(results: Results, settings: FigureSettings) -> Figure:
    """Variants from top to bottom, grouped by component, with intervals; hollow ones may be chance."""
    assert settings.ablations is not None  # the registry makes this figure only where it is given
    found = ablations.ablations(results, settings.ablations)
    measures = list(dict.fromkeys(entry.measure.title for entry in found))
    variants = list(dict.fromkeys((entry.component, entry.variant) for entry in found))
    lines = _lines(variants)
    figure = style.new(style.DOUBLE, 0.9 + 0.15 * (lines[-1] + 1))
    panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for axes, measure in zip(panels, measures, strict=True):
        _panel(axes, [entry for entry in found if entry.measure.title == measure], lines, settings)
        axes.set_xlabel("difference (points)")
    panels[0].set_yticks(lines, [escaping.drawn(variant) for _, variant in variants])
    panels[0].set_ylim(lines[-1] + 0.7, -0.7)
    style.letters(panels, measures)
    whole = escaping.drawn(paper.method_title(settings.ablations.reference))
    figure.supxlabel(f"against {whole}; hollow: p ≥ {CERTAIN} after Holm's correction", fontsize=6.5)
    return figure


def _lines(variants: list[tuple[str, str]]) -> np.ndarray:
    """Where each variant is drawn: components stand apart."""
    starts = [place > 0 and component != variants[place - 1][0] for place, (component, _) in enumerate(variants)]
    return np.arange(len(variants)) + 0.6 * np.cumsum(starts)


def _panel(axes: Axes, found: list[Ablation], lines: np.ndarray, settings: FigureSettings) -> None:
    colours = style.colours(settings.palette, len(dict.fromkeys(entry.component for entry in found)))
    shades = dict(zip(dict.fromkeys(entry.component for entry in found), colours, strict=True))
    axes.axvline(0, color=style.NEUTRAL, linewidth=0.8)
    for line, entry in zip(lines, found, strict=True):
        estimate, colour = entry.difference, shades[entry.component]
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
