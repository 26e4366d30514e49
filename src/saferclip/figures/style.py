"""How figures look: sizes for print, and one colour, marker and hatch for each method."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from numpy.typing import ArrayLike

from saferclip.config import ConfigError
from saferclip.figures.results import Estimate

SINGLE, DOUBLE = 3.3, 7.0  # inches: one and two columns of a conference paper
NEUTRAL = "#6b6b6b"  # CLIP, before anything was done to it
MARKERS = ("s", "o", "D", "^", "v", "P", "X", "<", ">")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++", "oooo", "----", "****")

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "figure.titlesize": 8,
    "figure.titleweight": "bold",
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "grid.linewidth": 0.4,
    "grid.color": "#d9d9d9",
    "hatch.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,  # text stays text
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class Look:
    """How one method is drawn everywhere; colour is never the only difference."""

    colour: str
    marker: str
    hatch: str


def context() -> AbstractContextManager[None]:
    """Everything is drawn and saved inside this, and nothing outside changes."""
    settings: Any = {**sns.axes_style("ticks"), **_RC}
    return mpl.rc_context(settings)


def colours(palette: str, count: int) -> list[str]:
    """So many colours of a seaborn palette, as hexadecimal text; raises ConfigError if there is no such palette."""
    try:
        return list(sns.color_palette(palette, count).as_hex())
    except ValueError as error:
        raise ConfigError(f"figures.palette: {palette!r} is no palette of seaborn; try 'colorblind'") from error


def looks(methods: Sequence[str], palette: str) -> dict[str, Look]:
    """A look for each method, in their order; CLIP's is neutral."""
    shades = iter(colours(palette, max(len(methods), 3)))
    return {
        method: Look(
            NEUTRAL if method == "clip" else next(shades),
            MARKERS[place % len(MARKERS)],
            HATCHES[place % len(HATCHES)],
        )
        for place, method in enumerate(methods)
    }


def safe_and_unsafe(palette: str) -> tuple[str, str]:
    """Colours of safe and unsafe items: bluish green and vermilion in the default palette."""
    _, _, safe, unsafe = colours(palette, 4)
    return safe, unsafe


def new(width: float, height: float) -> Figure:
    """A figure of that size in inches whose parts make room for each other."""
    return Figure(figsize=(width, height), layout="constrained")


def gap(axes: Axes) -> None:
    """Say in a panel that what belongs there could not be measured."""
    axes.axis("off")
    text = "cannot be measured:\nimages are withheld"
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=NEUTRAL)


def nothing() -> Figure:
    """A figure that says so, where no part of it could be measured."""
    figure = new(SINGLE, 1.2)
    gap(figure.subplots())
    return figure


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> Legend:
    """A legend above everything, in as many columns as fit side by side."""
    columns = len(labels)
    while columns > 1 and _legend_width(labels, columns) > figure.get_figwidth():
        columns -= 1
    spacing = {"columnspacing": 1.2, "handletextpad": 0.5, "handlelength": 1.8}
    return figure.legend(handles, labels, loc="outside upper center", ncols=columns, **spacing)


def _legend_width(labels: Sequence[str], columns: int) -> float:
    """Width in inches, about; as matplotlib fills columns, the first ones are longer by one if need be."""
    rows, longer = divmod(len(labels), columns)
    lengths = [rows + (place < longer) for place in range(columns)]
    rest = iter(labels)
    widest = [max(len(label) for label in islice(rest, length)) for length in lengths]
    return sum(0.058 * characters + 0.34 for characters in widest)


def tidy(axes: Axes, grid: str = "y") -> None:
    """Only the spines and grid lines that help reading."""
    sns.despine(ax=axes)
    axes.grid(visible=True, axis=grid)  # type: ignore[arg-type]


def band(axes: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, colour: str) -> None:
    """An interval around a line: its ends (points,) over ``x`` (points,)."""
    axes.fill_between(np.asarray(x), np.asarray(low), np.asarray(high), color=colour, alpha=0.2, linewidth=0)


def letters(panels: Sequence[Axes], titles: Sequence[str]) -> None:
    """Give panels their titles, with a letter each if there are several: ``a  Redirection``."""
    for letter, axes, title in zip("abcdefghij", panels, titles, strict=False):
        axes.set_title(f"{letter}  {title}" if len(panels) > 1 else title)


def reach(estimate: Estimate) -> tuple[float, float]:
    """How far the interval reaches below and above the mean; nowhere where there is none."""
    if estimate.low is None or estimate.high is None:
        return 0.0, 0.0
    # A percentile interval of a skewed statistic may end just short of the mean; a bar cannot be negative.
    return max(0.0, estimate.mean - estimate.low), max(0.0, estimate.high - estimate.mean)
