"""Loss per step and validation retrieval per epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from saferclip import io, statistics
from saferclip.config import FigureSettings
from saferclip.figures import names, paper, style
from saferclip.figures.results import Results

WINDOW = 0.03  # of a run's steps, over which the loss is averaged


def draw(results: Results, settings: FigureSettings) -> Figure:
    """Thick lines are means over seeds with bands about other seeds, thin ones are seeds."""
    looks = style.looks(results.methods, settings.palette)
    trained = [method for method in results.methods if _folder(results, method, results.runs[method][0]).is_dir()]
    figure = style.new(style.DOUBLE, 2.3)
    loss, *validation = figure.subplots(1, 3)
    shown = (("safe retrieval", names.CEILING, "T→V"), ("redirection", names.REDIRECTION, "T*→V∪V*"))
    drawn: list[tuple[Axes, list[pd.Series], style.Look]] = []
    for method in trained:
        look, title = looks[method], paper.method_title(method)
        runs = [_folder(results, method, seed) for seed in results.runs[method]]
        steps = [_read(folder / "steps.csv", "step", "loss") for folder in runs]
        drawn.append((loss, [_smooth(frame) for frame in steps], look))
        _lines(*drawn[-1], title, every=0.15)
        for axes, (_, metric, _) in zip(validation, shown, strict=True):
            if all(_measured(folder / "epochs.csv", metric) for folder in runs):
                drawn.append((axes, [_read(folder / "epochs.csv", "epoch", metric) for folder in runs], look))
                _lines(*drawn[-1], title, every=1)
    loss.set_yscale("log")
    limits = loss.get_ylim()
    for axes, curves, look in drawn:
        _band(axes, curves, look)
    loss.set_ylim(limits)  # a band of two seeds may end next to 0, which is far away on this scale
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_locator(NullLocator())
    loss.set(xlabel="Optimiser step", ylabel="Training loss (moving average)")
    style.letters([loss, *validation], ["Loss", *(f"Validation: {what}" for what, _, _ in shown)])
    for axes, (_, _, direction) in zip(validation, shown, strict=True):
        axes.set(xlabel="Epoch", ylabel=f"{direction} R@1 (%)")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (loss, *validation):
        style.tidy(axes)
        if not axes.lines:
            style.gap(axes)
    style.legend(figure, *loss.get_legend_handles_labels())
    return figure


def _folder(results: Results, method: str, seed: int) -> Path:
    return results.folder / "training" / method / f"seed-{seed}"


def _measured(path: Path, metric: str) -> bool:
    """Whether a run's epochs have a metric: without images in the validation split, some cannot be measured."""
    try:
        columns = set(pd.read_csv(path, nrows=0).columns)
    except (OSError, ValueError) as error:
        raise io.DataError(f"{path}: cannot be read as CSV: {error}") from error
    return metric in columns or "epoch" not in columns  # which is no such file; reading it says so


def _read(path: Path, x: str, y: str) -> pd.Series:
    """Column ``y`` over column ``x``."""
    try:
        return pd.read_csv(path, usecols=[x, y]).set_index(x)[y]
    except (OSError, ValueError) as error:
        raise io.DataError(f"{path}: columns '{x}' and '{y}' cannot be read: {error}") from error


def _smooth(values: pd.Series) -> pd.Series:
    window = max(1, round(WINDOW * len(values)))
    return values.rolling(window, min_periods=window).mean().dropna()


def _lines(axes: Axes, runs: list[pd.Series], look: style.Look, label: str, every: float) -> None:
    """One thin line for each seed, and their mean where all of them have a value."""
    for run in runs:
        axes.plot(run.index, run, color=look.colour, linewidth=0.5, alpha=0.5)
    mean = pd.concat(runs, axis=1, join="inner").mean(axis=1)
    axes.plot(
        np.asarray(mean.index),
        mean,
        color=look.colour,
        marker=look.marker,
        markevery=every,
        markersize=3.5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        label=label,
    )


def _band(axes: Axes, runs: list[pd.Series], look: style.Look) -> None:
    """The 95% interval of the mean over seeds, if they are several."""
    if len(runs) > 1:
        together = pd.concat(runs, axis=1, join="inner")
        mean, reach = together.mean(axis=1), statistics.student_reach(together.to_numpy().T)
        style.band(axes, mean.index, mean - reach, mean + reach, look.colour)
