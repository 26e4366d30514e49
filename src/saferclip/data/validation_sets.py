"""Zero-shot sets beside the validation split: the test sets' classes and prompts, with images of their own."""

from __future__ import annotations

from pathlib import Path

from saferclip.config import ValidationSets
from saferclip.data import embedded, test_sets


def build(settings: ValidationSets, output: Path) -> None:
    """Write zero_shot.parquet and zero_shot.json, from a stream of the seed that no test set draws from."""
    test_sets.write_zero_shot(settings, settings.zero_shot_images, embedded.VALIDATION_STREAMS["zero_shot"], output)
