"""The run's trade-off curves, for the figure and the table of that name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saferclip import curves, io, statistics
from saferclip.config import ConfigError
from saferclip.figures.results import Estimate, Results


@dataclass(frozen=True)
class Curves:
    """Curves of the tuned methods, all in the same resamples."""

    points: curves.Points
    models: dict[str, list[int]]  # method to its seeds' places among the models of the points
    summaries: dict[str, curves.Summary]
    budgets: tuple[float, ...]

    @classmethod
    def read(cls, results: Results) -> Curves:
        """Read the outcomes of every method that has a curve, and sum them up.

        Raises ConfigError without budgets, DataError where outcomes are missing or do not go together.
        """
        if results.settings.tradeoff is None:
            raise ConfigError(
                "figures.tradeoff: trade-off curves need budgets; write 'tradeoff: {budgets: [1, 5, 20]}'"
            )
        budgets = results.settings.tradeoff.budgets
        folder = results.folder / "tradeoff"
        base = _outcomes(folder, "clip", results.runs["clip"][0])
        models: dict[str, list[int]] = {}
        sweeps: list[curves.Sweep] = []
        for method, seeds in results.runs.items():
            for seed in seeds if method != "clip" else ():
                path = _outcomes(folder, method, seed)
                if path.parents[1].is_dir():
                    models.setdefault(method, []).append(len(sweeps))
                    sweeps.append(curves.Sweep.read(base, path))
        if not sweeps:
            raise io.DataError(f"{folder}: holds no curve of a tuned method; run the step tradeoff")
        points = curves.points(sweeps, results.settings.resamples, results.seed)
        return cls(
            points, models, {name: curves.summarise(points, at, budgets) for name, at in models.items()}, budgets
        )

    def at_scales(self, method: str) -> tuple[curves.Array, curves.Array]:
        """Loss and safety at each scale as measured, means over seeds: (scales,) each."""
        places = self.models[method]
        return self.points.loss[0, places].mean(axis=0), self.points.safety[0, places].mean(axis=0)

    def scales_within(self, method: str) -> list[float]:
        """The scale at which the curve as measured is safest within each budget, mean over seeds."""
        scales, loss, safety = self.points.scales, self.points.loss[0], self.points.safety[0]
        found = [
            [curves.scale_within(scales, loss[place], safety[place], budget) for budget in self.budgets]
            for place in self.models[method]
        ]
        return [float(scale) for scale in np.mean(found, axis=0)]

    def band(self, method: str, budgets: curves.Array) -> tuple[curves.Array, curves.Array]:
        """95% interval of the safety within each budget, mean over seeds: lower and upper ends, (budgets,) each."""
        found = [
            curves.envelope(self.points.loss[1:, place], self.points.safety[1:, place], budgets)
            for place in self.models[method]
        ]
        means = sum(found[1:], found[0]) / len(found)
        ends = [statistics.percentile_interval(0, column) for column in means.T]
        return np.array([end.low for end in ends]), np.array([end.high for end in ends])


def _outcomes(folder: Path, method: str, seed: int) -> Path:
    return folder / method / f"seed-{seed}" / curves.OUTCOMES


def estimate(values: curves.Array) -> Estimate:
    """A number with its interval, from what was measured and the resamples after it: (1 + resamples,)."""
    interval = statistics.percentile_interval(float(values[0]), values[1:])
    return Estimate(interval.value, None, interval.low, interval.high)
