"""Trade-off curves in plain numpy: safety against loss of zero-shot accuracy, what they enclose, and how sure that is.

docs/tradeoff.md defines all of it.  A curve has a point for each scale, from 0 (the base model) on, and straight lines
between them; what it promises for a budget is the highest safety that it reaches at a loss of at most that budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saferclip import io, statistics

Array = NDArray[np.float64]

OUTCOMES = "outcomes.parquet"
NO_GROUP = -1
NO_OUTCOME: dict[str, Any] = {"benchmark": "", "direction": "", "query_id": "", "group": NO_GROUP}
ZERO_SHOT = "zero_shot"
_CELLS = 400  # of the range of budgets, in whose middles the envelope is read for the area


def column(scale: float, what: str) -> str:
    """Column of a table of outcomes: 'rank' or 'top_unsafe' at a scale."""
    return f"{scale:g}/{what}"


class Queries(NamedTuple):
    """What became of the queries of one direction, or images of one set, at every scale, in percent."""

    ids: tuple[str, ...]
    groups: Array | None  # (queries,), the class where the measure is a mean over classes
    first: Array  # (queries, scales), the right item came first
    safe: Array  # (queries, scales), the first item was not unsafe

    def with_more(self, other: Queries) -> Queries:
        """The same queries with the scales of both."""
        return self._replace(first=np.hstack([self.first, other.first]), safe=np.hstack([self.safe, other.safe]))


@dataclass(frozen=True)
class Sweep:
    """One model at every scale: benchmark and direction, or set, to queries."""

    scales: tuple[float, ...]
    queries: Mapping[tuple[str, str], Queries]

    @classmethod
    def read(cls, base: Path, tuned: Path) -> Sweep:
        """Join the outcomes of the base model, at scale 0, and of a tuned one, in the two files.

        Raises DataError if they were not asked the same.
        """
        start, end = _read(base), _read(tuned)
        if start.asked != end.asked:
            raise io.DataError(f"{tuned}: other queries than in {base}; make both anew")
        joined = {key: part.with_more(end.queries[key]) for key, part in start.queries.items()}
        return cls(start.scales + end.scales, joined)

    @property
    def asked(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """The queries of each direction or set."""
        return {key: part.ids for key, part in self.queries.items()}


def _read(path: Path) -> Sweep:
    names = [name for name in io.column_names(path) if name.endswith("/rank")]
    scales = tuple(float(name.removesuffix("/rank")) for name in names)
    columns = [column(scale, what) for what in ("rank", "top_unsafe") for scale in scales]
    frame = io.read_table(path, [*NO_OUTCOME, *columns]).to_pandas()
    queries = {}
    for (benchmark, direction), rows in frame.groupby(["benchmark", "direction"], sort=False):
        groups = rows["group"].to_numpy()
        queries[benchmark, direction] = Queries(
            ids=tuple(rows["query_id"]),
            groups=None if (groups == NO_GROUP).all() else groups,
            first=100.0 * (rows[[column(scale, "rank") for scale in scales]].to_numpy() == 1),
            safe=100.0 * ~rows[[column(scale, "top_unsafe") for scale in scales]].to_numpy(dtype=bool),
        )
    return Sweep(scales, queries)


class Points(NamedTuple):
    """Curves of several models: shape (1 + resamples, models, scales), in percent; first what was measured."""

    scales: tuple[float, ...]
    safety: Array  # unsafe queries whose first hit is safe: mean over benchmarks of the mean over directions
    recall: Array  # unsafe queries whose first hit is their own safe partner, likewise
    utility: Array  # zero-shot accuracy, mean over sets

    @property
    def loss(self) -> Array:
        """Points of zero-shot accuracy lost since scale 0."""
        return self.utility[..., :1] - self.utility

    def at(self, scale: float, models: Sequence[int]) -> dict[str, Array]:
        """Safety, recall and loss at one scale, means over some of the models: (1 + resamples,) each."""
        place = self.scales.index(scale)
        measures = {"safety": self.safety, "recall": self.recall, "loss": self.loss}
        return {name: values[:, list(models), place].mean(axis=1) for name, values in measures.items()}


def points(sweeps: Sequence[Sweep], resamples: int, seed: int) -> Points:
    """The curves of several models, in the sample and in resamples that are the same for all models and scales.

    Quadruples are resampled with both their queries where both directions have the same; images within their set and,
    where it is measured so, within their class.  Raises DataError if the models were not asked the same.
    """
    first = sweeps[0]
    for other in sweeps:
        if other.scales != first.scales or other.asked != first.asked:
            raise io.DataError("curves of other scales or queries cannot be compared; make all of them anew")
    means: dict[tuple[str, str], Array] = {}  # (1 + resamples, safe and first, models, scales)
    for place, keys in enumerate(_together(first)):
        parts = [[sweep.queries[key] for sweep in sweeps] for key in keys]
        values = np.stack([[[part.safe, part.first] for part in models] for models in parts])
        # (directions, models, measures, queries, scales) to columns for each query
        columns = np.moveaxis(values, 3, 0)
        flat = columns.reshape(len(columns), -1)
        groups = parts[0][0].groups
        resampled = statistics.bootstrap_means(flat, resamples, seed + place, groups)
        measured = statistics.column_means(flat, groups)
        found = np.concatenate([measured[None], resampled]).reshape(-1, *columns.shape[1:])
        means.update({key: found[:, number].swapaxes(1, 2) for number, key in enumerate(keys)})
    accuracies = [part[:, 1] for (benchmark, _), part in means.items() if benchmark == ZERO_SHOT]
    benchmarks = list(dict.fromkeys(benchmark for benchmark, _ in means if benchmark != ZERO_SHOT))
    if not accuracies or not benchmarks:
        raise io.DataError("a curve needs zero-shot sets and unsafe queries; images may be withheld")
    redirection = np.mean(
        [np.mean([part for (name, _), part in means.items() if name == benchmark], axis=0) for benchmark in benchmarks],
        axis=0,
    )
    return Points(first.scales, redirection[:, 0], redirection[:, 1], np.asarray(np.mean(accuracies, axis=0)))


def _together(sweep: Sweep) -> list[list[tuple[str, str]]]:
    """Directions whose queries are parts of the same quadruples; each zero-shot set is on its own."""
    found: dict[Any, list[tuple[str, str]]] = {}
    for (benchmark, direction), part in sweep.queries.items():
        key = (benchmark, direction) if benchmark == ZERO_SHOT else (benchmark, part.ids)
        found.setdefault(key, []).append((benchmark, direction))
    return list(found.values())


def envelope(loss: Array, height: Array, budgets: Array) -> Array:
    """Greatest height of curves at a loss of at most each budget: two (..., scales) and (budgets,) to (..., budgets).

    Heights between neighbouring scales lie on straight lines.  Minus infinity where a curve never loses so little,
    which it cannot where it starts at a loss of 0.
    """
    best = np.full((*loss.shape[:-1], len(budgets)), -np.inf)
    for place in range(loss.shape[-1] - 1):
        ends = [(part[..., place, None], part[..., place + 1, None]) for part in (loss, height)]
        (start, end), (start_height, end_height) = ends
        swapped = start > end
        low, high = np.where(swapped, end, start), np.where(swapped, start, end)
        low_height = np.where(swapped, end_height, start_height)
        high_height = np.where(swapped, start_height, end_height)
        width = high - low
        share = np.clip((budgets - low) / np.where(width > 0, width, 1), 0, 1)
        share = np.where(budgets >= high, 1, share)
        reached = np.maximum(low_height, low_height + share * (high_height - low_height))
        np.maximum(best, np.where(budgets >= low, reached, -np.inf), out=best)
    return best


def scale_within(scales: Sequence[float], loss: Array, height: Array, budget: float) -> float:
    """The smallest scale at which one curve is highest at a loss of at most a budget: two (scales,) to a scale.

    On straight lines it lies at a scale that was measured, or where a line crosses the budget.  Raises ValueError where
    the curve never loses so little.
    """
    knots = np.asarray(scales, dtype=np.float64)
    crossed = np.flatnonzero((loss[:-1] - budget) * (loss[1:] - budget) < 0)
    shares = (budget - loss[crossed]) / (loss[crossed + 1] - loss[crossed])
    crossings = knots[crossed] + shares * np.diff(knots)[crossed]
    possible = np.sort(np.concatenate([knots[loss <= budget], crossings]))
    if not len(possible):
        raise ValueError(f"the curve loses more than {budget:g} everywhere")
    return float(possible[np.argmax(np.interp(possible, knots, height))])


def area(loss: Array, height: Array, largest: float) -> Array:
    """Mean of the envelope over budgets from 0 to ``largest``: two arrays (..., scales) to (...)."""
    middles = (np.arange(_CELLS) + 0.5) * largest / _CELLS
    return np.asarray(envelope(loss, height, middles).mean(axis=-1))


class Summary(NamedTuple):
    """A method's curve in a few numbers, means over its seeds: first what was measured, then each resample."""

    area: Array  # (1 + resamples,)
    safety: Array  # (1 + resamples, budgets), within each budget
    recall: Array  # likewise
    areas: Array  # (seeds,), as measured


def summarise(found: Points, models: Sequence[int], budgets: Sequence[float]) -> Summary:
    """Sum up the curves of these models, which are one method's seeds; the area ends at the last budget."""
    per_seed = np.stack([area(found.loss[:, place], found.safety[:, place], budgets[-1]) for place in models])
    safety, recall = (
        np.mean([envelope(found.loss[:, place], height[:, place], np.asarray(budgets)) for place in models], axis=0)
        for height in (found.safety, found.recall)
    )
    return Summary(per_seed.mean(axis=0), safety, recall, per_seed[:, 0])
