"""The README shows the delivered results, not others."""

from __future__ import annotations

import io
from pathlib import Path

import dvc.api
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
# As the README's columns, and the paper's below them; no published T→V is known.
MEASURES = {
    "test/unsafe_text_to_image/recall@1": "paper/test",
    "nsfw_caps/unsafe_text_to_image/recall@1": "paper/nsfw_caps",
    "nsfw_caps/text_to_image/recall@1": None,
    "zero_shot/mean/accuracy": "paper/zero_shot",
}


@pytest.fixture(scope="module")
def delivered() -> pd.DataFrame:
    """The main table of the version in dvc.lock, from the remote inside the repository, whatever run is here."""
    commit = "HEAD" if (ROOT / ".git").exists() else None
    text = dvc.api.read("results/mini/tables/main.csv", repo=str(ROOT), rev=commit)
    return pd.read_csv(io.StringIO(text), index_col="method")


def test_results_are_the_delivered_ones(delivered: pd.DataFrame) -> None:
    shown = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for method, row in delivered.iterrows():
        ours = [
            f"{row[f'{name} [%]']:.1f} [{row[f'{name} low [%]']:.1f}, {row[f'{name} high [%]']:.1f}]"
            for name in MEASURES
        ]
        published = [f"{row[f'{name} [%]']:.1f}" if name else "–" for name in MEASURES.values()]
        for cells in (ours, published):
            assert f"| {method} | {' | '.join(cells)} |" in shown
