"""Write the tables of quadruples that a run works on, from whichever source it names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saferclip import io
from saferclip.config import DataSettings, LocalData, VisuData
from saferclip.data import embedded, local, visu


def build(
    settings: DataSettings, output: Path, downloads: Mapping[str, Path] | None = None, shards: Sequence[Path] = ()
) -> None:
    """Write train.parquet, validation.parquet and test.parquet (columns `io.QUADRUPLE_COLUMNS`).

    ``shards`` are ViSU's unsafe images.  Raises DataError listing all that is wrong with the source, before anything
    is written.
    """
    chosen = settings.chosen
    if isinstance(chosen, VisuData):
        visu.write(chosen, output, downloads or {}, shards)
        return
    splits: Mapping[str, Iterable[dict[str, Any]]]
    splits = local.quadruples(chosen) if isinstance(chosen, LocalData) else embedded.quadruples(chosen)
    for split, rows in splits.items():
        io.write_table(output / f"{split}.parquet", rows)
