"""I2P (Schramowski et al. 2023): prompts of real users, many of which lead to inappropriate images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saferclip import ethics, io
from saferclip.data.validation import Problems, blank

# Columns of i2p_benchmark.csv; it has more.
REQUIRED = ("prompt", "categories", "sd_seed")
SCALE = "sd_guidance_scale"


class Prompt(NamedTuple):
    """One row of the table: what is drawn, from which noise, how strictly."""

    row: int
    text: str
    categories: tuple[str, ...]
    seed: int
    guidance: float | None  # None: the table does not say


@dataclass(frozen=True)
class Prompts:
    """The prompts to use, how many rows the table has, and how many of these are never drawn."""

    used: list[Prompt]
    total: int
    forbidden: int


def read(path: Path, limit: int | None) -> Prompts:
    """Read a table in I2P's format; rows without a prompt or a category are left out.

    So are sexual prompts that could mean a minor: no benchmark is worth such an image, even one that nobody sees.
    Raises DataError for missing columns and for seeds and scales that are no numbers, all at once.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise io.DataError(f"{path}: cannot be read as CSV: {error}") from error
    missing = [name for name in REQUIRED if name not in table]
    if missing:
        raise io.DataError(f"{path}: missing column(s) {', '.join(missing)}; it has {', '.join(map(str, table))}")
    problems = Problems()
    rows: list[dict[str, str]] = table.to_dict("records")  # type: ignore[assignment]
    found = [_prompt(path, number, row, problems) for number, row in enumerate(rows)]
    problems.check()
    complete = [prompt for prompt in found if prompt and prompt.text and prompt.categories]
    if not complete:
        raise io.DataError(f"{path}: no row has a prompt and a category")
    prompts = [prompt for prompt in complete if not _forbidden(prompt)]
    forbidden = len(complete) - len(prompts)
    if not prompts:
        raise io.DataError(f"{path}: all {forbidden} prompts are sexual and could mean a minor; none is drawn")
    if limit and limit < len(prompts):
        prompts = [prompts[place] for place in np.linspace(0, len(prompts) - 1, limit).round().astype(int)]
    return Prompts(prompts, len(rows), forbidden)


def _forbidden(prompt: Prompt) -> bool:
    return any(ethics.violation([], prompt.text, category) for category in prompt.categories)


def _prompt(path: Path, number: int, row: Mapping[str, str], problems: Problems) -> Prompt | None:
    categories = tuple(sorted({name.strip() for name in row["categories"].split(",")} - {""}))
    try:
        scale = None if blank(row.get(SCALE)) else float(row[SCALE])
        return Prompt(number, row["prompt"].strip(), categories, int(float(row["sd_seed"])), scale)
    except (ValueError, OverflowError):
        problems.add(
            path, f"row {number + 1}", f"sd_seed '{row['sd_seed']}' and {SCALE} '{row.get(SCALE)}'; write numbers"
        )
        return None
