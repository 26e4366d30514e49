"""What a language model is asked, in versioned files: a folder for each version, and plain neutral words in all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

import yaml

from saferclip.io import DataError

FOLDER = Path(__file__).parent
TEXTS = ("rules", "category", "edit", "retry")
CATEGORIES = "categories.yaml"


@dataclass(frozen=True)
class Prompts:
    """One version: templates by name, and what each category means."""

    version: str
    texts: Mapping[str, Template]
    categories: Mapping[str, str]
    sha256: str  # of all its files

    def fill(self, name: str, **values: str) -> str:
        """A text with its gaps filled; a caption stays on one line, so that it cannot pass for instructions."""
        return self.texts[name].substitute({key: value.replace("\r", " ") for key, value in values.items()})

    def listed(self, names: tuple[str, ...]) -> str:
        """Categories as a list, one a line."""
        return "\n".join(f"- {name}: {self.categories[name]}" for name in names)


def load(version: str, folder: Path = FOLDER) -> Prompts:
    """Read one version; raises DataError if there is no such version, or if it is not complete."""
    versions = sorted(path.name for path in folder.iterdir() if (path / CATEGORIES).is_file())
    if version not in versions:
        raise DataError(f"benchmark prompts '{version}' do not exist; choose one of: {', '.join(versions)}")
    files = [folder / version / CATEGORIES, *(folder / version / f"{name}.txt" for name in TEXTS)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{folder / version}: not complete, without {', '.join(missing)}")
    digest = hashlib.sha256(b"".join(file.name.encode() + b"\0" + file.read_bytes() for file in files)).hexdigest()
    texts = {name: Template((folder / version / f"{name}.txt").read_text(encoding="utf-8")) for name in TEXTS}
    return Prompts(version, texts, yaml.safe_load(files[0].read_text(encoding="utf-8")), digest)
