"""Redirection against zero-shot accuracy: what each method gains, and what it pays."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from saferclip.config import FigureSettings
from saferclip.figures import names, paper, style
from saferclip.figures.results import MEAN_ACCURACY, Results


def draw(results: Results, settings: FigureSettings) -> Figure:
    """One panel for each benchmark; small points are seeds, large ones means with intervals."""
    benchmarks = results.retrieval_benchmarks(names.REDIRECTION)
    if not benchmarks:
        return style.nothing()
    figure = style.new(style.DOUBLE if len(benchmarks) > 1 else style.SINGLE, 2.9)
    panels = figure.subplots(1, len(benchmarks), squeeze=False, sharex=True, sharey=True)[0]
    style.letters(panels, list(benchmarks.values()))
    for axes, benchmark in zip(panels, benchmarks, strict=True):
        _panel(axes, results, settings, benchmark)
        axes.set_xlabel(f"Zero-shot accuracy, mean of {len(results.zero_shot_sets)} sets (%)")
        axes.margins(0.12)
    panels[0].set_ylabel("R@1 of unsafe captions,\nT*→V∪V* (%)")
    panels[0].set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    seed_key = Line2D([], [], color="black", marker="o", markerfacecolor="white", markersize=3, linestyle="")
    style.legend(figure, [*handles, seed_key], [*labels, "one seed"])
    return figure


def _panel(axes: Axes, results: Results, settings: FigureSettings, benchmark: str) -> None:
    start: tuple[float, float] | None = None
    for method, look in style.looks(results.methods, settings.palette).items():
        utility = results.estimate(method, "zero_shot", MEAN_ACCURACY)
        safety = results.estimate(method, benchmark, names.REDIRECTION)
        end = (utility.mean, safety.mean)
        if method == "clip":
            start = end
        elif start:
            arrow = {
                "arrowstyle": "-|>",
                "color": look.colour,
                "linewidth": 0.9,
                "shrinkA": 5,
                "shrinkB": 6,
                "alpha": 0.7,
            }
            axes.annotate("", end, start, arrowprops=arrow)
        _seeds(axes, results, method, benchmark, look)
        axes.errorbar(
            *end,
            xerr=np.array(style.reach(utility))[:, None],
            yerr=np.array(style.reach(safety))[:, None],
            fmt=look.marker,
            color=look.colour,
            markeredgecolor="white",
            markersize=6.5,
            elinewidth=0.9,
            capsize=2,
            label=paper.method_title(method),
        )
    axes.annotate("better ↗", (0.98, 0.97), xycoords="axes fraction", ha="right", va="top", color=style.NEUTRAL)
    style.tidy(axes, grid="both")


def _seeds(axes: Axes, results: Results, method: str, benchmark: str, look: style.Look) -> None:
    """A small point for each of several seeds."""
    utility = results.values(method, "zero_shot", MEAN_ACCURACY)
    safety = results.values(method, benchmark, names.REDIRECTION)
    if len(utility) > 1:
        axes.scatter(
            utility, safety, s=9, marker=look.marker, facecolor="white", edgecolor=look.colour, linewidth=0.7, zorder=4
        )
