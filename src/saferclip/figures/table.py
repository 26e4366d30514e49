"""Write a table of the registry as CSV, Markdown, LaTeX and HTML."""

from __future__ import annotations

from pathlib import Path

from saferclip import io
from saferclip.config import FigureSettings
from saferclip.figures import layout, paper, registry, writers
from saferclip.figures.results import Results


def write(name: str, settings: FigureSettings, run: Path, output_stem: Path) -> None:
    """Write ``<output_stem>.csv``, ``.md``, ``.tex`` and ``.html`` from the files of the run.

    Raises DataError where a file is missing or not as expected, ConfigError for an unknown name.
    """
    table = build(name, settings, run)
    for suffix, lay_out in writers.WRITERS.items():
        with io.atomic_path(output_stem.with_name(f"{output_stem.name}.{suffix}")) as path:
            path.write_text(lay_out(table, name), encoding="utf-8", newline="")


def build(name: str, settings: FigureSettings, run: Path) -> layout.Table:
    """The table before it is laid out."""
    product = registry.find(registry.TABLES, name)
    results = Results(run, registry.shown(product, settings))
    columns, rows, notes = registry.function(product)(results)
    caption = product.caption.format(**results.titles(), reference=paper.reference_title(settings))
    return layout.Table(product.title, caption, columns, rows, notes)
