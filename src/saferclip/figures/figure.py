"""Draw a figure of the registry in every format that the settings name."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from saferclip import io
from saferclip.config import FigureSettings
from saferclip.figures import registry, style
from saferclip.figures.results import Results

# Without dates and versions, the same numbers give the same bytes.
METADATA = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}


def draw(name: str, settings: FigureSettings, run: Path, output_stem: Path) -> None:
    """Write ``<output_stem>.<format>`` for each format, from the files of the run.

    Raises DataError where a file is missing or not as expected, ValueError for an unknown name.
    """
    with style.context():
        figure = build(name, settings, run)
        for suffix in settings.formats:
            with io.atomic_path(output_stem.with_name(f"{output_stem.name}.{suffix}")) as path:
                figure.savefig(path, dpi=settings.dpi, metadata=METADATA[suffix])


def build(name: str, settings: FigureSettings, run: Path) -> Figure:
    """The figure before it is saved; to be called, and saved, inside ``style.context()``."""
    product = registry.find(registry.FIGURES, name)
    settings = registry.shown(product, settings)
    return registry.function(product)(Results(run, settings), settings)
