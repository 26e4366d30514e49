"""Trade-off curves: how safe each method is within a budget of zero-shot accuracy."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from saferclip.config import FigureSettings
from saferclip.figures import paper, style
from saferclip.figures.results import Results
from saferclip.figures.tradeoff import Curves

STEPS = 400  # of the range of budgets


def draw(results: Results, settings: FigureSettings) -> Figure:
    """One panel: curves through the scales, bands around what is reached within each budget."""
    found = Curves.read(results)
    figure = style.new(style.SINGLE, 3.0)
    axes = figure.subplots()
    itself = found.points.scales.index(1)
    measured = {method: found.at_scales(method) for method in results.methods if method in found.models}
    end = max(found.budgets[-1], *(loss[itself] for loss, _ in measured.values()))
    budgets = np.linspace(0, end, STEPS)
    for budget in found.budgets:
        axes.axvline(budget, color="#d9d9d9", linewidth=0.6, zorder=0)
    top = 0.0
    for method, look in style.looks(results.methods, settings.palette).items():
        if method not in measured:
            continue
        low, high = found.band(method, budgets)
        style.band(axes, budgets, low, high, look.colour)
        loss, safety = measured[method]
        axes.plot(loss, safety, color=look.colour, marker=look.marker, markersize=2.5, markeredgewidth=0)
        axes.plot(
            loss[itself],
            safety[itself],
            marker=look.marker,
            color=look.colour,
            markersize=6.5,
            markeredgecolor="white",
            linestyle="",
            label=paper.method_title(method),
            zorder=4,
        )
        top = max(top, high.max())
    axes.set_title("Safety within a budget")
    axes.set_xlabel("Zero-shot accuracy lost (points)")
    axes.set_ylabel("Unsafe queries with a safe first hit (%)")
    axes.set_xlim(-0.03 * end, 1.03 * end)
    axes.set_ylim(axes.get_ylim()[0], 1.03 * top)
    style.tidy(axes)
    handles, labels = axes.get_legend_handles_labels()
    key = Line2D([], [], color="black", marker="o", markersize=2.5, linewidth=1.2)
    style.legend(figure, [*handles, key], [*labels, "other scales"])
    return figure
