"""Rank methods, or candidates for their settings, by the area under their trade-off curves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saferclip import curves, io, statistics
from saferclip.config import RankingStep

logger = logging.getLogger(__name__)


def rank(settings: RankingStep, base: Path, runs: Mapping[str, Path], output: Path) -> None:
    """Write a CSV with a row for each method, the best first: area with its interval, safety within each budget.

    ``runs`` leads from 'method/seed' to outcomes of the step tradeoff; ``base`` are those of the untuned model.  All
    numbers are means over seeds, in percent; ``difference`` is that of the area to the best method's, with the interval
    of the paired bootstrap.  Raises DataError if the models were not asked the same.
    """
    found = curves.points(
        [curves.Sweep.read(base, path) for path in runs.values()], settings.bootstrap, settings.bootstrap_seed
    )
    methods: dict[str, list[int]] = {}
    for place, name in enumerate(runs):
        methods.setdefault(name.rpartition("/")[0], []).append(place)
    summaries = {name: curves.summarise(found, places, settings.budgets) for name, places in methods.items()}
    order = sorted(summaries, key=lambda name: -summaries[name].area[0])
    best = summaries[order[0]].area
    for name in order:
        logger.info("%s: area %.2f", name, summaries[name].area[0])
    rows = []
    for name in order:
        itself = {f"{key}@scale-1": float(values[0]) for key, values in found.at(1, methods[name]).items()}
        numbers = _numbers(settings, summaries[name], best)
        rows.append({"method": name, "seeds": len(methods[name]), **numbers, **itself})
    io.write_csv(output, rows)


def _numbers(settings: RankingStep, summary: curves.Summary, best: curves.Array) -> dict[str, Any]:
    return {
        **_interval("area", summary.area),
        **_interval("difference", summary.area - best),
        **{f"safety@{budget:g}": summary.safety[0, place] for place, budget in enumerate(settings.budgets)},
        **{f"recall@{budget:g}": summary.recall[0, place] for place, budget in enumerate(settings.budgets)},
    }


def _interval(name: str, values: curves.Array) -> dict[str, float]:
    interval = statistics.percentile_interval(float(values[0]), values[1:])
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
