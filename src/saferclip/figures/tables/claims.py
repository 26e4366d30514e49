"""The paper's claims, tested on this run: the claims are data, this code only evaluates them."""

from __future__ import annotations

from collections import Counter
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

import numpy as np
import yaml
from pydantic import model_validator

from saferclip import io, statistics
from saferclip.config import Settings, parse
from saferclip.figures import paper
from saferclip.figures.layout import Cell, Column
from saferclip.figures.results import Array, Contrast, Estimate, Results, Term

SUPPORTED = "supported"
BY_DESIGN = "by design"
NOT_SUPPORTED = "not supported"
INCONCLUSIVE = "inconclusive"
UNTESTABLE = "cannot be tested at this scale"
NOT_TESTED = "not tested in this run"

DIGITS = {"points": 1, "cosine": 3}
LEVEL = 0.05  # the chance of any wrong verdict among all that are not "inconclusive"


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
    by_design: str = ""  # why it holds by how data are made, so that testing it would find nothing out
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

    def boundary(self) -> float:
        """What a test compares with: the threshold, or just above it where the threshold itself is as predicted."""
        return float(np.nextafter(self.threshold, np.inf)) if self.expect == "at most" else self.threshold


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


class Judged(NamedTuple):
    """A claim with what this run says of it; ``p`` is adjusted for the number of claims that were tested."""

    claim: Claim
    missing: str  # what the run lacks to test it; empty where it was tested
    found: Contrast | None
    p: float | None
    verdict: str


def judge(results: Results) -> list[Judged]:
    """Every claim with its verdict.

    The family whose number of tests is corrected for are the claims that this run can test and that do not hold by
    design.
    """
    lacking = {claim.id: _missing(claim, results) for claim in read()}
    measured = {claim.id: measure(claim, results) for claim in read() if not lacking[claim.id]}
    single = {claim.id: measured[claim.id].p_value(claim.boundary()) for claim in read() if claim.id in measured}
    family = [claim.id for claim in read() if claim.id in measured and not claim.by_design]
    adjusted = dict(zip(family, statistics.holm([single[name] for name in family]), strict=True))
    judged = []
    for claim in read():
        found, p = measured.get(claim.id), adjusted.get(claim.id)
        if found is None:
            outcome = UNTESTABLE if claim.untestable else NOT_TESTED
        else:
            outcome = verdict(claim, found.interval.value, single[claim.id] if p is None else p)
        if claim.by_design and outcome == SUPPORTED:
            outcome = BY_DESIGN
        judged.append(Judged(claim, lacking[claim.id], found, p, outcome))
    return judged


def verdict(claim: Claim, value: float, p: float) -> str:
    """What a value and its adjusted p say: as predicted, on the other side of the threshold, or neither."""
    if p >= LEVEL:
        return INCONCLUSIVE
    return SUPPORTED if claim.holds(value) else NOT_SUPPORTED


def claims(results: Results) -> tuple[list[Column], list[list[Cell]], list[str]]:
    """One row for each claim."""
    columns = [
        Column("claim", "Claim", width=0.3),
        Column("quantity", "Quantity", detail=True),
        Column("prediction", "Prediction"),
        Column("paper", "Paper, ViT-L/14"),
        Column("measured", "This run"),
        Column("with_seeds", "Other seeds too", detail=True),
        Column("seeds", "Seeds"),
        Column("effect", "Effect size d", digits=2),
        Column("p", "p, adjusted", digits=4),
        Column("verdict", "Verdict", width=0.13),
        Column("remark", "Remark", detail=True),
        Column("source", "Source", detail=True),
    ]
    judged = judge(results)
    tested = sum(one.p is not None for one in judged)
    notes = [
        f"Paper: {paper.read().source}. This run: difference of means over seeds ± standard deviation over seeds "
        f"[95% interval, bootstrap over queries paired across methods, {results.settings.resamples:,} resamples], in "
        "percentage points or cosine. Other seeds too: the interval (Student's t) with the variance of seeds added. "
        "Seeds: in how many the difference alone is as predicted. Effect size: Cohen's d of the queries' differences "
        "from the threshold (none across different queries). p: of the bootstrap over queries, two-sided, adjusted by "
        f"Holm for all {tested} claims that this run tests; intervals are not adjusted. A claim is supported if the "
        f"difference is as predicted and p is below {LEVEL:g}, not supported if it is on the other side and p is "
        f"below {LEVEL:g}, and inconclusive otherwise. What holds by design is no test and not among the "
        f"{tested}.",
    ]
    return columns, [_row(one, results) for one in judged], notes


def _row(judged: Judged, results: Results) -> list[Cell]:
    claim, found, titles = judged.claim, judged.found, results.titles()
    untestable = judged.verdict == UNTESTABLE
    return [
        claim.statement.format(**titles),
        "" if untestable else f"{claim.quantity.format(**titles)} ({claim.unit})",
        "" if untestable else claim.prediction(),
        claim.paper or None,
        *([None, None, "", None] if found is None else _measured(claim, found)),
        judged.p,
        judged.verdict,
        "; ".join(_remarks(judged, results)),
        claim.source,
    ]


def _measured(claim: Claim, found: Contrast) -> list[Cell]:
    """Value, value with the interval over seeds too, seeds that agree, and effect size."""
    digits, count = DIGITS[claim.unit], len(found.per_seed)
    sd = float(found.per_seed.std(ddof=1)) if count > 1 else None
    value, low, high = found.interval
    wider = found.with_seeds()
    return [
        Estimate(value, sd, low, high, digits=digits),
        Estimate(value, None, wider.low, wider.high, digits=digits) if wider else None,
        f"{sum(map(claim.holds, found.per_seed))} of {count}" if count else "",
        found.effect_size(claim.threshold),
    ]


def _remarks(judged: Judged, results: Results) -> list[str]:
    """What a reader of the verdict has to know."""
    if judged.missing or judged.found is None:
        return [judged.missing]
    claim, wider = judged.claim, judged.found.with_seeds()
    remarks = [claim.note.format(**results.titles()), claim.by_design, "" if results.galleries else claim.stand_in]
    if wider and judged.verdict in (SUPPORTED, NOT_SUPPORTED) and wider.low <= claim.threshold <= wider.high:
        remarks.append("other seeds might decide otherwise")
    return [remark for remark in remarks if remark]


def measure(claim: Claim, results: Results) -> Contrast:
    """The claim's weighted sum, with a paired bootstrap interval and its value for each seed."""
    ranks = [Term(**term.model_dump()) for term in claim.terms if isinstance(term, RankTerm)]
    columns = [term for term in claim.terms if isinstance(term, FileTerm)]
    if ranks and columns:
        raise ValueError(f"claim '{claim.id}': terms of ranks and of files cannot be mixed")
    return results.contrast(ranks, results.settings.resamples) if ranks else _contrast_of_files(columns, results)


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
        means = means + statistics.bootstrap_means(values, results.settings.resamples, results.seed + place)
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
