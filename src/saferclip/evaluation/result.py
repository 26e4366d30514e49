"""What every evaluator takes and gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from saferclip import io, statistics
from saferclip.config import EvaluationSettings
from saferclip.evaluation.encoder import Encoders


@dataclass(frozen=True)
class Result:
    """The numbers of one benchmark, and how every single query fared.

    ``ranks`` are rows with direction, query_id, rank (1 = a correct item came first), top_id,
    top_unsafe and similarity (of the top item).  ``left_out`` names metrics that this model cannot have, and why.
    """

    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, io.Metric] = field(default_factory=dict)
    ranks: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


class Evaluator(Protocol):
    """Evaluates one benchmark, whose table is at ``path``."""

    def __call__(self, path: Path, encoders: Encoders, settings: EvaluationSettings) -> Result: ...


def mean(values: Tensor, settings: EvaluationSettings) -> io.Metric:
    """Mean of per-query values, shape (queries,), with its interval."""
    interval = statistics.bootstrap_interval(values.double().numpy(), settings.bootstrap, settings.bootstrap_seed)
    return io.Metric(**interval._asdict(), count=len(values))


def share(outcomes: Tensor, settings: EvaluationSettings) -> io.Metric:
    """Percentage of queries with a true outcome, shape (queries,), with its interval."""
    return mean(100 * outcomes.double(), settings)


def prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Put ``prefix/`` before every name."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


def rank_rows(
    direction: str,
    query_ids: Sequence[str],
    ranks: Tensor,
    top_ids: Sequence[str],
    top_unsafe: Tensor,
    similarity: Tensor,
) -> list[dict[str, Any]]:
    """Rows of the table of ranks; all columns have one entry per query."""
    columns = (query_ids, ranks.tolist(), top_ids, top_unsafe.tolist(), similarity.tolist())
    names = ("query_id", "rank", "top_id", "top_unsafe", "similarity")
    return [{"direction": direction, **dict(zip(names, values, strict=True))} for values in zip(*columns, strict=True)]
