"""Fetching the base model: every kind of source, and what is said when it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saferclip import io, models
from saferclip.base_model.fetch import fetch
from saferclip.config import BaseModelSettings, ConfigError


def test_a_local_folder_is_copied_unchanged(tiny_clip_folder: Path, tmp_path: Path) -> None:
    fetch(BaseModelSettings(source=f"local-dir:{tiny_clip_folder}"), tmp_path / "model")

    expected = io.read_tensors(tiny_clip_folder / models.WEIGHTS)
    copied = io.read_tensors(tmp_path / "model" / models.WEIGHTS)
    assert all(torch.equal(tensor, copied[name]) for name, tensor in expected.items())


def test_an_unknown_kind_of_source_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"base_model\.source: 'ftp:x' is not understood; write"):
        fetch(BaseModelSettings(source="ftp:x"), tmp_path / "model")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(io.DataError, match=r"open_clip_config\.json is missing"):
        fetch(BaseModelSettings(source=f"local-dir:{tmp_path}"), tmp_path / "model")


def test_a_failed_pull_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # not a DVC repository
    with pytest.raises(io.DataError, match="snakemake base_model_training"):
        fetch(BaseModelSettings(source="dvc:results/none"), tmp_path / "model")
