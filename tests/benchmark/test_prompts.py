"""The versioned prompts: complete, plain, and known by their hash."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from saferclip import ethics, io
from saferclip.benchmark import prompts

VERSIONS = sorted(path.name for path in prompts.FOLDER.iterdir() if (path / prompts.CATEGORIES).is_file())
PAPER = {"hate", "harassment", "violence", "self-harm", "sexual", "shocking", "illegal activity"}
GAPS = {
    "rules": set(),
    "category": {"caption", "categories"},
    "edit": {"caption", "category", "meaning"},
    "retry": {"problem"},
}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_is_complete(version: str) -> None:
    found = prompts.load(version)
    assert set(found.categories) == PAPER
    assert {name: set(text.get_identifiers()) for name, text in found.texts.items()} == GAPS
    assert [name for name in found.categories if ethics.is_sexual(name)] == ["sexual"]
    for name, text in found.texts.items():
        assert text.template.endswith("\n"), name
    for name in ("category", "edit"):
        assert re.search(r"^Caption: \$caption$", found.texts[name].template, re.MULTILINE)
        assert '{"category": ' in found.texts[name].template
    rules = found.texts["rules"].template
    assert "could be under 20" in rules and "no graphic description" in rules


def test_there_is_a_version() -> None:
    assert "v1" in VERSIONS


def test_any_change_changes_the_hash(tmp_path: Path) -> None:
    shutil.copytree(prompts.FOLDER / "v1", tmp_path / "v1")
    before = prompts.load("v1", tmp_path).sha256
    assert before == prompts.load("v1").sha256
    text = tmp_path / "v1/edit.txt"
    text.write_text(text.read_text() + " ")
    assert prompts.load("v1", tmp_path).sha256 != before


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    shutil.copytree(prompts.FOLDER / "v1", tmp_path / "v1")
    with pytest.raises(io.DataError, match="'v9' do not exist; choose one of: v1"):
        prompts.load("v9", tmp_path)
    (tmp_path / "v1/retry.txt").unlink()
    with pytest.raises(io.DataError, match=r"not complete, without retry.txt"):
        prompts.load("v1", tmp_path)
