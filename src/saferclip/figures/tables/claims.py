"""The paper's claims, tested on this run: the claims are data, this code only evaluates them."""

from __future__ import annotations

from collections import Counter
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
import yaml
from pydantic import model_validator

from saferclip import io, statistics
from saferclip.config import Settings, parse
from saferclip.figures import paper
from saferclip.figures.layout import Cell, Column
from saferclip.figures.results import Array, Contrast, Estimate, Results, Term

SUPPORTED = "supported"
NOT_SUPPORTED = "not supported"
INCONCLUSIVE = "inconclusive"
UNTESTABLE = "cannot be tested at this scale"
NOT_TESTED = "not tested in this run"

DIGITS = {"points": 1, "cosine": 3}


class RankTerm(Settings):
    """``weight`` times a method's metric, from the ranks of its evaluations."""

    weight: float
    method: str
    benchmark: str
    metric: str


class FileTerm(Settings):
    """``weight`` times the mean of a column of numbers in a Parquet table of the run."""

    weight: float
    file: str
    column: str


class Claim(Settings):
    """One claim: the weighted sum of its terms should lie above or below the threshold."""

    id: str
    statement: str
    source: str
    quantity: str = ""
    paper: str = ""  # the same quantity as published
    unit: Literal["points", "cosine"] = "points"
    terms: tuple[RankTerm | FileTerm, ...] = ()
    expect: Literal["above", "below", "at most"] | None = None
    threshold: float = 0
    untestable: str = ""  # why not, where there are no terms or a run cannot measure them
    note: str = ""
    stand_in: str = ""  # what the embedded world has in place of real images

    @model_validator(mode="after")
    def _testable_or_not(self) -> Claim:
        if not (self.terms or self.untestable) or bool(self.terms) != bool(self.expect):
            raise ValueError(f"claim '{self.id}': give either 'terms' with 'expect', or 'untestable'")
        return self

    def prediction(self) -> str:
        """What the claim says of its quantity: ``> 0``."""
        signs = {"above": ">", "below": "<", "at most": "≤"}
        return f"{signs[self.expect]} {self.threshold:g}".replace("-", "−") if self.expect else ""

    def holds(self, value: float) -> bool:
        """Whether a value is as predicted."""
        if self.expect == "above":
            return value > self.threshold
        return value < self.threshold or (self.expect == "at most" and value == self.threshold)


class Claims(Settings):
    """All claims, with different ids."""

    claims: tuple[Claim, ...]

    @model_validator(mode="after")
    def _different(self) -> Claims:
        twice = [name for name, count in Counter(claim.id for claim in self.claims).items() if count > 1]
        if twice:
            raise ValueError(f"claim ids must differ, but occur twice: {', '.join(twice)}")
        return self


@cache
def read() -> tuple[Claim, ...]:
    """The paper's claims; raises ConfigError if their file is not in order."""
    text = files("saferclip.figures").joinpath("claims.yaml").read_text(encoding="utf-8")
    return parse(Claims, yaml.safe_load(text), "claims.yaml").claims


def verdict(claim: Claim, low: float, high: float) -> str:
    """What the ends of a 95% interval say: as predicted, neither, or both sides of the threshold."""
    ends = {claim.holds(low), claim.holds(high)}
    if ends == {True}:
        return SUPPORTED
    # An end on the threshold itself decides nothing against the claim.
    contradicted = low > claim.threshold or high < claim.threshold
    return NOT_SUPPORTED if contradicted else INCONCLUSIVE


def claims(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """One row for each claim."""
    columns = [
        Column("claim", "Claim", width=0.36),
        Column("quantity", "Quantity", detail=True),
        Column("prediction", "Prediction"),
        Column("paper", "Paper, ViT-L/14"),
        Column("measured", "This run"),
        Column("seeds", "Seeds"),
        Column("verdict", "Verdict", width=0.13),
        Column("remark", "Remark", detail=True),
        Column("source", "Source", detail=True),
    ]
    rows = [_row(claim, results) for claim in read()]
    notes = [
        f"Paper: {paper.read().source}. This run: difference of means over seeds ± standard deviation over seeds "
        f"[95% interval, bootstrap over queries paired across methods, {results.resamples:,} resamples], in "
        "percentage points or cosine. The interval is about other queries, not about other seeds; the column of seeds "
        "counts those in which the difference alone is as predicted. A claim is supported if the whole interval is as "
        "predicted, not supported if all of it is on the other side, and inconclusive otherwise.",
    ]
    return columns, rows, notes


def _row(claim: Claim, results: Results) -> list[Cell]:
    titles = results.titles()
    missing = _missing(claim, results)
    untestable = bool(missing and claim.untestable)
    measured, seeds, outcome = None, "", UNTESTABLE if untestable else NOT_TESTED
    if not missing:
        found = measure(claim, results)
        sd = float(found.per_seed.std(ddof=1)) if len(found.per_seed) > 1 else None
        low, high = found.interval.low, found.interval.high
        measured = Estimate(found.interval.value, sd, low, high, digits=DIGITS[claim.unit])
        count = len(found.per_seed)
        seeds = f"{sum(map(claim.holds, found.per_seed))} of {count}" if count else ""
        outcome = verdict(claim, low, high)
    return [
        claim.statement.format(**titles),
        "" if untestable else f"{claim.quantity.format(**titles)} ({claim.unit})",
        "" if untestable else claim.prediction(),
        claim.paper or None,
        measured,
        seeds,
        outcome,
        missing or "; ".join(filter(None, (claim.note.format(**titles), "" if results.galleries else claim.stand_in))),
        claim.source,
    ]


def measure(claim: Claim, results: Results) -> Contrast:
    """The claim's weighted sum, with a paired bootstrap interval and its value for each seed."""
    ranks = [Term(**term.model_dump()) for term in claim.terms if isinstance(term, RankTerm)]
    columns = [term for term in claim.terms if isinstance(term, FileTerm)]
    if ranks and columns:
        raise ValueError(f"claim '{claim.id}': terms of ranks and of files cannot be mixed")
    return results.contrast(ranks) if ranks else _contrast_of_files(columns, results)


def _contrast_of_files(terms: list[FileTerm], results: Results) -> Contrast:
    """As ``Results.contrast``: columns of one file are paired row by row, files are independent.

    No seed of a method has a part in these files, so there is no value for a seed.
    """
    sums: dict[str, Array] = {}
    for term in terms:
        table = io.read_table(results.folder / term.file, [term.column])
        values = term.weight * table[term.column].to_numpy().astype(np.float64)
        sums[term.file] = sums.get(term.file, np.zeros(1)) + values
    value = sum(float(values.mean()) for values in sums.values())
    means = np.zeros(1)
    for place, values in enumerate(sums.values()):
        means = means + statistics.bootstrap_means(values, results.resamples, results.seed + place)
    differences = next(iter(sums.values())) if len(sums) == 1 else None
    return Contrast(statistics.percentile_interval(value, means), np.empty(0), means, differences, None)


def _missing(claim: Claim, results: Results) -> str:
    """What this run lacks to test a claim, or nothing."""
    lacking = _lacking(claim, results) if claim.terms else claim.untestable
    return lacking and (claim.untestable or lacking)


def _lacking(claim: Claim, results: Results) -> str:
    """The first thing that the claim's terms need and this run does not have, or nothing."""
    for term in claim.terms:
        if isinstance(term, FileTerm):
            if not (results.folder / term.file).is_file():
                return f"this run has no {term.file}"
        elif term.method not in results.methods:
            return f"this run has no method '{term.method}'"
        elif not results.has(term.benchmark):
            return f"this run has no benchmark '{term.benchmark}'"
        elif not results.has_metric(term.benchmark, term.metric):
            return f"this run could not measure {term.metric} on '{term.benchmark}'"
    return ""
