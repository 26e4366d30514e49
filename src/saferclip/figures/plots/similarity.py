"""How close paired and nearest safe captions are to the unsafe ones."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from saferclip import escaping, io, statistics
from saferclip.config import FigureSettings
from saferclip.figures import layout, style
from saferclip.figures.results import Estimate, Results

BIN = 0.02
DIGITS = 3  # of a mean over thousands of captions


def draw(results: Results, settings: FigureSettings) -> Figure:
    """Two outlined histograms over the same bins, with their means in bands, the intervals over captions."""
    table = io.read_table(results.folder / "mining" / "neighbours.parquet", ("paired_similarity", "similarity"))
    kinds = {"paired": table["paired_similarity"].to_numpy(), "nearest": table["similarity"].to_numpy()}
    lowest = min(values.min() for values in kinds.values())
    # Down from exactly 1, to which rounding errors are counted too.
    bins = 1 - BIN * np.arange(np.ceil((1 - lowest) / BIN) + 1)[::-1]
    figure = style.new(style.SINGLE, 2.4)
    axes = figure.subplots()
    colours = style.colours(settings.palette, 2)
    for (kind, values), colour, line in zip(kinds.items(), colours, ("--", "-"), strict=True):
        share = 100 * np.histogram(np.minimum(values, 1), bins)[0] / len(values)
        mean, low, high = statistics.bootstrap_interval(values, results.resamples, results.seed)
        label = f"{kind} (mean {layout.words(Estimate(mean, None, low, high), DIGITS)})"
        axes.stairs(share, bins, fill=True, color=colour, alpha=0.25)
        axes.stairs(share, bins, color=colour, linestyle=line, linewidth=1.2, label=label)
        axes.axvspan(low, high, color=colour, alpha=0.35, linewidth=0)
        axes.axvline(mean, color=colour, linestyle=line, linewidth=0.8)
    axes.set_title(f"Targets of unsafe captions, {escaping.drawn(results.title)}")
    axes.set_xlabel("Cosine similarity of unsafe caption and target")
    axes.set_ylabel(f"Captions (%), n = {len(table):,}")
    axes.set_ylim(bottom=0)
    style.legend(figure, *axes.get_legend_handles_labels())
    style.tidy(axes)
    return figure
