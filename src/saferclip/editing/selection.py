"""Choose the settings of edits on the validation split, by the rule for learning rates.

Of the candidates that ``selection.edits`` names, the one with the highest ``selection_score``; of equal ones the first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saferclip import io
from saferclip.training.validation import SELECTION_SCORE

logger = logging.getLogger(__name__)


def select(records: Mapping[str, Sequence[Path]], output: Path) -> None:
    """Write a CSV with columns method, settings, the validation scores and chosen.

    ``records`` leads from a method to its candidates' records.  Settings are those in which the candidates differ.
    Raises DataError for a record without a selection score.
    """
    rows = []
    for method, paths in records.items():
        found = [io.read_json(path) for path in paths]
        edits = [record["provenance"]["settings"]["edit"] for record in found]
        scores = [_scores(record, path) for record, path in zip(found, paths, strict=True)]
        # max keeps the first of equals.
        best = max(range(len(paths)), key=lambda place: scores[place][SELECTION_SCORE])
        logger.info("%s: %s, selection score %.2f", method, _described(edits, best), scores[best][SELECTION_SCORE])
        rows += [
            {"method": method, "settings": _described(edits, place), **scores[place], "chosen": place == best}
            for place in range(len(paths))
        ]
    io.write_csv(output, rows)


def _scores(record: Mapping[str, Any], path: Path) -> dict[str, float]:
    if SELECTION_SCORE not in record["validation"]:
        raise io.DataError(f"{path}: no selection score: the validation split has no images; choose by hand")
    return dict(record["validation"])


def _described(edits: Sequence[Mapping[str, Any]], place: int) -> str:
    """One candidate's values of the settings in which they differ."""
    names = [name for name in edits[0] if len({str(edit[name]) for edit in edits}) > 1]
    return " ".join(f"{name}={edits[place][name]}" for name in names) or "as configured"
