"""The geometry of safe embeddings against what tuning lost."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saferclip import correlation, escaping
from saferclip.config import FigureSettings
from saferclip.correlation import Correlation
from saferclip.figures import geometry, names, paper, style
from saferclip.figures.geometry import Loss
from saferclip.figures.results import Estimate, Results

LABEL = 22  # letters in a line beside a panel


def draw(results: Results, settings: FigureSettings) -> Figure:
    """A row of panels for each loss, a column for each diagnostic; a point for each tuned model."""
    diagnostics, losses = geometry.diagnostics(results), geometry.losses(results)
    if not diagnostics or not losses:
        return style.nothing()
    found = geometry.correlations(results)
    figure = style.new(style.DOUBLE, 0.7 + 1.6 * len(losses))
    grid = figure.subplots(len(losses), len(diagnostics), squeeze=False, sharex="col", sharey="row")
    for panels, loss in zip(grid, losses, strict=True):
        lost = {
            (method, seed): loss.of(results, method, seed)
            for method in geometry.tuned(results)
            for seed in results.runs[method]
        }
        for axes, name in zip(panels, diagnostics, strict=True):
            _panel(axes, results, settings, name, lost)
            axes.set_title(_said(found[name, loss], len(geometry.tuned(results, name))), weight="normal", size=6)
        panels[0].set_ylabel(_label(loss))
    for axes, diagnostic in zip(grid[-1], diagnostics.values(), strict=True):
        axes.set_xlabel(f"{names.capitalised(diagnostic.measure)},\nsafe {diagnostic.inputs}")
    style.legend(figure, *grid[0][0].get_legend_handles_labels())
    return figure


def _panel(
    axes: Axes, results: Results, settings: FigureSettings, name: str, lost: dict[tuple[str, int], Estimate]
) -> None:
    axes.axhline(0, color=style.NEUTRAL, linewidth=0.5)
    for method, look in style.looks(results.methods, settings.palette).items():
        label = paper.method_title(method)
        if method == geometry.UNTUNED:
            axes.plot(
                1, 0, look.marker, color=look.colour, markersize=4, markeredgecolor="white", label=label, zorder=3
            )
            continue
        for seed in results.runs[method] if results.has_metric("geometry", name, method) else ():
            recorded = results.record(method, seed, "geometry").metrics[name]
            measured = Estimate(recorded.value, None, recorded.low, recorded.high)
            axes.errorbar(
                measured.mean,
                lost[method, seed].mean,
                xerr=np.array(style.reach(measured))[:, None],
                yerr=np.array(style.reach(lost[method, seed]))[:, None],
                fmt=look.marker,
                color=look.colour,
                markeredgecolor="white",
                markeredgewidth=0.4,
                markersize=4,
                elinewidth=0.6,
                label=label if seed == results.runs[method][0] else None,
            )
    axes.margins(0.12)
    style.tidy(axes, grid="both")


def _said(found: Correlation | None, methods: int) -> str:
    """The coefficient with its interval and p; how many methods there are, if they are too few for one."""
    if found is None:
        few = "too few for ρ" if methods < correlation.FEWEST else "no ρ: they are alike"
        return f"{methods} method{'s' * (methods != 1)}: {few}"
    return f"ρ = {found.value:.2f} [{found.low:.2f}, {found.high:.2f}],\np = {found.p:.2g}, {methods} methods"


def _label(loss: Loss) -> str:
    title = loss.title[:1].lower() + loss.title[1:]
    lines = textwrap.wrap(f"Lost: {title} (points)", LABEL)
    return "\n".join(escaping.drawn(line) for line in lines)
