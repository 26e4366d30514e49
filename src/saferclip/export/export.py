"""The step `export`: a trained model as people use it, with a card that says what it is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from saferclip import io, models
from saferclip.config import ExportSettings
from saferclip.conversion import ConversionError
from saferclip.export import card, formats, verification
from saferclip.provenance import provenance

logger = logging.getLogger(__name__)

RECORD = "export.json"


def export(settings: ExportSettings, model: Path, evaluation: Path | None, baseline: Path | None, output: Path) -> None:
    """Write the model folder ``model`` to ``output`` in every format that can express it, or in those asked for.

    ``evaluation`` holds the records of its evaluation, ``baseline`` those of the untuned model's, for the card.
    Nothing is written unless each format, loaded through its own library, gives the trained model's embeddings.

    Raises ConversionError for a format that was asked for and cannot express the model, ExportError for one whose
    embeddings differ, DataError for files that are not what they should be.
    """
    architecture = io.read_json(model / models.ARCHITECTURE)
    left_out = {name: formats.obstacles(name, architecture) for name in formats.FORMATS}
    for asked in settings.formats or ():
        if left_out[asked]:
            raise ConversionError(f"format '{asked}' cannot express this model: {'; '.join(left_out[asked])}")
    chosen: tuple[str, ...] = settings.formats or tuple(name for name in formats.FORMATS if not left_out[name])
    with io.atomic_path(output) as folder:
        folder.mkdir()
        for name in chosen:
            formats.write(name, model, folder / formats.FOLDERS[name])
        differences = _verified(model, folder, chosen)
        record = _record(settings, model, differences, {name: left_out[name] for name in left_out if left_out[name]})
        io.write_json(folder / RECORD, record)
        facts = card.facts(record, model, evaluation, baseline, architecture)
        card.write(folder / "README.md", facts, chosen[0])
        for name in chosen:  # each is a repository of its own on the hub
            card.write(folder / formats.FOLDERS[name] / "README.md", facts, name)


def _verified(model: Path, folder: Path, chosen: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """How far each format is from the trained model; one model is in memory at a time."""
    tokenizer = folder / formats.FOLDERS["diffusers"] / formats.TOKENIZER if "diffusers" in chosen else None
    expected = verification.reference(model, tokenizer)
    differences = {}
    for name in chosen:
        differences[name] = verification.verify(name, folder / formats.FOLDERS[name], expected)
        logger.info("%s: largest differences %s", name, differences[name])
    return differences


def _record(
    settings: ExportSettings, model: Path, differences: dict[str, dict[str, float]], left_out: dict[str, list[str]]
) -> dict[str, Any]:
    """What was exported and how exactly, and the settings."""
    return {
        "model": str(model),
        "differences": differences,
        "tolerance": verification.TOLERANCE,
        "left_out": left_out,
        "provenance": provenance(settings.model_dump(mode="json")),
    }
