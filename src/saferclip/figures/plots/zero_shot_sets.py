"""Zero-shot accuracy on every set, methods side by side."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from saferclip import escaping
from saferclip.config import FigureSettings
from saferclip.figures import paper, style
from saferclip.figures.results import MEAN_ACCURACY, Results

SPREAD = 0.56  # of the methods' points around a set's line, whose distance is 1


def draw(results: Results, settings: FigureSettings) -> Figure:
    """Points with intervals; sets in the order of CLIP's accuracy, their mean at the bottom."""
    sets = results.zero_shot_sets
    order = sorted(sets, key=lambda name: -results.values("clip", "zero_shot", f"{name}/accuracy").mean())
    metrics = [*(f"{name}/accuracy" for name in order), MEAN_ACCURACY]
    figure = style.new(style.SINGLE, 0.9 + (0.12 + 0.07 * len(results.methods)) * len(metrics))
    axes = figure.subplots()
    offsets = np.linspace(-SPREAD / 2, SPREAD / 2, len(results.methods)) if len(results.methods) > 1 else np.zeros(1)
    lines = np.arange(len(metrics), dtype=float)
    lines[-1] += 0.3  # the mean stands apart
    for offset, (method, look) in zip(offsets, style.looks(results.methods, settings.palette).items(), strict=True):
        found = [results.estimate(method, "zero_shot", metric) for metric in metrics]
        means = np.array([estimate.mean for estimate in found])
        axes.errorbar(
            means,
            lines + offset,
            xerr=np.array([style.reach(estimate) for estimate in found]).T,
            fmt=look.marker,
            color=look.colour,
            markersize=4,
            markeredgecolor="white",
            markeredgewidth=0.5,
            elinewidth=0.9,
            label=paper.method_title(method),
        )
    chance = [100 / len(sets[name]["classes"]) for name in order]
    axes.plot(chance, lines[:-1], linestyle="", marker="|", color="black", markersize=7, label="chance")
    axes.axhline(lines[-1] - 0.65, color="black", linewidth=0.6)
    labels = [
        *(f"{escaping.drawn(sets[name]['title'])} ({len(sets[name]['classes'])})" for name in order),
        "Mean of sets",
    ]
    axes.set_yticks(lines, labels)
    axes.set_ylim(lines[-1] + 0.6, -0.6)
    axes.set_xlim(0, 100)
    alike = all(map(results.per_class, sets))
    axes.set_xlabel("Accuracy, mean per class (%)" if alike else "Accuracy (%)")
    axes.set_title("Zero-shot sets (classes)")
    style.tidy(axes, grid="x")
    handles, keys = axes.get_legend_handles_labels()
    order_of_keys = [*range(1, len(keys)), 0]  # matplotlib puts lines, and so chance, first
    style.legend(figure, [handles[place] for place in order_of_keys], [keys[place] for place in order_of_keys])
    return figure
