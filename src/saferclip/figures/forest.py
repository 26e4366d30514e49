"""Points with intervals on horizontal lines, methods side by side: a forest plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from saferclip.figures import paper, style
from saferclip.figures.results import Array, Estimate

SPREAD = 0.56  # of the methods' points around a line, where lines are 1 apart


def height(lines: int, methods: int) -> float:
    """Inches that so many lines need, with so many points on each."""
    return (0.12 + 0.07 * methods) * lines


def points(
    axes: Axes, lines: Array, found: Mapping[str, Sequence[Estimate]], looks: Mapping[str, style.Look], size: float
) -> None:
    """Each method's estimates, one for each line, whose heights are ``lines`` (lines,); markers are ``size`` points."""
    offsets = np.linspace(-SPREAD / 2, SPREAD / 2, len(found)) if len(found) > 1 else np.zeros(1)
    for offset, (method, estimates) in zip(offsets, found.items(), strict=True):
        axes.errorbar(
            np.array([estimate.mean for estimate in estimates]),
            lines + offset,
            xerr=np.array([style.reach(estimate) for estimate in estimates]).T,
            fmt=looks[method].marker,
            color=looks[method].colour,
            markersize=size,
            markeredgecolor="white",
            markeredgewidth=0.5,
            elinewidth=0.9,
            label=paper.method_title(method),
        )
