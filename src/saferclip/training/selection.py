"""Choose each method's learning rate on the validation split, by one rule for all.

The rate with the highest ``selection_score`` after the last epoch, the harmonic mean of validation
R@1 of safe and of unsafe queries; of equal ones the lowest rate.  Without images in the validation split there is no
such score, and nothing can be chosen.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from saferclip import io

SCORE = "selection_score"

logger = logging.getLogger(__name__)


def select(runs: Mapping[str, Mapping[float, Path]], output: Path) -> None:
    """Write a CSV with columns method, learning_rate, score and chosen.

    ``runs`` leads from a method and a learning rate to the run's ``epochs.csv``.
    """
    rows = []
    for method, rates in runs.items():
        scores = {rate: final_score(path) for rate, path in sorted(rates.items())}
        # max keeps the first of equals, and the rates ascend.
        chosen = max(scores, key=scores.__getitem__)
        logger.info("%s: learning rate %g, selection score %.2f", method, chosen, scores[chosen])
        rows += [
            {"method": method, "learning_rate": rate, "score": score, "chosen": rate == chosen}
            for rate, score in scores.items()
        ]
    io.write_csv(output, rows)


def final_score(epochs: Path) -> float:
    """``selection_score`` of the last epoch, in percent."""
    try:
        frame = pd.read_csv(epochs)
        if "loss" in frame and SCORE not in frame:
            raise io.DataError(
                f"{epochs}: no selection score: the validation split has no images; choose a rate by hand"
            )
        return float(frame[SCORE].iloc[-1])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise io.DataError(f"{epochs}: no selection score can be read: {error}") from error
