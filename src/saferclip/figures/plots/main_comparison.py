"""Redirection on both benchmarks below its ceiling, beside zero-shot accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from saferclip.config import FigureSettings
from saferclip.figures import names, paper, style
from saferclip.figures.results import MEAN_ACCURACY, Estimate, Results

WIDTH = 0.8  # of a group of bars, whose centres are 1 apart


def draw(results: Results, settings: FigureSettings) -> Figure:
    """Bars are means over seeds, with intervals over queries; dots are seeds."""
    looks = style.looks(results.published, settings.palette)
    benchmarks = results.retrieval_benchmarks(names.REDIRECTION)
    zero_shot = results.has("zero_shot")
    if not benchmarks and not zero_shot:
        return style.nothing()
    figure = style.new(style.DOUBLE if zero_shot else style.SINGLE, 2.7)
    panels = figure.subplots(
        1, 2 if zero_shot else 1, squeeze=False, width_ratios=[max(len(benchmarks), 1), 1][: 1 + zero_shot]
    )[0]
    redirection = panels[0]
    shown = [(benchmark, names.REDIRECTION) for benchmark in benchmarks]
    bars = _bars(redirection, results, looks, shown) if shown else []
    for place, benchmark in enumerate(benchmarks):
        _ceiling(redirection, results.estimate("clip", benchmark, names.CEILING), place)
    redirection.set_xticks(range(len(benchmarks)), list(benchmarks.values()))
    redirection.set_ylabel("R@1 of unsafe captions,\nT*→V∪V* (%)")
    if zero_shot:
        bars = _bars(panels[1], results, looks, [("zero_shot", MEAN_ACCURACY)])
        panels[1].set_xticks([0], [f"mean of {len(results.zero_shot_sets)} sets"])
        panels[1].set_ylabel("Zero-shot accuracy (%)")
    style.letters(panels, ["Redirection to the paired safe image", "Utility"])
    for axes in panels:
        axes.set_ylim(0, 100)
        style.tidy(axes)
        axes.tick_params(axis="x", length=0)
    if not benchmarks:
        style.gap(redirection)
    ceiling_key = Line2D([], [], color="black", linestyle=(0, (4, 2)), linewidth=1)
    seed_key = Line2D([], [], color="black", marker="o", markerfacecolor="white", markersize=3, linestyle="")
    handles: list[Any] = [*bars, ceiling_key, seed_key]
    style.legend(figure, handles, [*map(paper.method_title, results.published), "ceiling: T→V of CLIP", "one seed"])
    return figure


def _ceiling(axes: Axes, estimate: Estimate, place: int) -> None:
    """A dashed line in a light band over one group of bars."""
    ends = (place - WIDTH / 2, place + WIDTH / 2)
    below, above = style.reach(estimate)
    style.band(axes, ends, [estimate.mean - below] * 2, [estimate.mean + above] * 2, style.NEUTRAL)
    axes.hlines(estimate.mean, *ends, colors="black", linestyles=(0, (4, 2)), linewidth=1)
    # On the left, where CLIP's bar is low.
    _note(axes, f"ceiling {estimate.mean:.1f}", ends[0], estimate.mean + above, "left")


def _bars(
    axes: Axes, results: Results, looks: dict[str, style.Look], metrics: Sequence[tuple[str, str]]
) -> list[BarContainer]:
    """One group of bars for each metric, one bar in it for each method."""
    width = WIDTH / len(looks)
    bars = []
    for number, (method, look) in enumerate(looks.items()):
        centres = np.arange(len(metrics)) - WIDTH / 2 + (number + 0.5) * width
        found = [results.estimate(method, benchmark, metric) for benchmark, metric in metrics]
        means = np.array([estimate.mean for estimate in found])
        reaches = np.array([style.reach(estimate) for estimate in found]).T
        bars.append(
            axes.bar(centres, means, 0.92 * width, color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0)
        )
        axes.errorbar(centres, means, reaches, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
        for centre, mean, high, (benchmark, metric) in zip(centres, means, reaches[1], metrics, strict=True):
            values = results.values(method, benchmark, metric)
            if len(values) > 1:
                places = centre + np.linspace(-0.22, 0.22, len(values)) * width
                axes.scatter(places, values, s=7, facecolor="white", edgecolor="black", linewidth=0.5, zorder=3)
            _note(axes, f"{mean:.1f}", centre, mean + high, "center")
    return bars


def _note(axes: Axes, text: str, x: float, y: float, side: Literal["left", "center"]) -> None:
    """A number just above a point."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    axes.annotate(text, (x, y), (0, 2.5), textcoords="offset points", ha=side, fontsize=6.5, bbox=box)
