"""Zero-shot accuracy on every set, methods side by side."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from saferclip import escaping
from saferclip.config import FigureSettings
from saferclip.figures import forest, style
from saferclip.figures.results import MEAN_ACCURACY, Results


def draw(results: Results, settings: FigureSettings) -> Figure:
    """Points with intervals; sets in the order of CLIP's accuracy, their mean at the bottom."""
    sets = results.zero_shot_sets
    order = sorted(sets, key=lambda name: -results.values("clip", "zero_shot", f"{name}/accuracy").mean())
    metrics = [*(f"{name}/accuracy" for name in order), MEAN_ACCURACY]
    figure = style.new(style.SINGLE, 0.9 + forest.height(len(metrics), len(results.methods)))
    axes = figure.subplots()
    lines = np.arange(len(metrics), dtype=float)
    lines[-1] += 0.3  # the mean stands apart
    looks = style.looks(results.methods, settings.palette)
    found = {method: [results.estimate(method, "zero_shot", metric) for metric in metrics] for method in looks}
    forest.points(axes, lines, found, looks, size=4)
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
