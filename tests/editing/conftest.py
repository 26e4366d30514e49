"""What an edit reads, for both kinds of tiny models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from saferclip.config import EditSettings, MiningSettings
from saferclip.mining import embedding

TRAIN, VALIDATION = 11, 6
MODULES = {
    "tiny_clip_folder": {
        "text_modules": r"transformer\.resblocks\.\d+\.attn\.out_proj",
        "image_modules": r"visual\.transformer\.resblocks\.\d+\.mlp\.c_proj",
    },
    "tiny_resnet_clip_folder": {
        "text_modules": r"transformer\.resblocks\.\d+\.attn\.out_proj",
        "image_modules": r"visual\.layer[123]\.\d\.conv3",
    },
}


@dataclass(frozen=True)
class Inputs:
    """Files that an edit reads, and settings that fit them."""

    modules: dict[str, str]
    base_model: Path
    train: Path
    validation: Path
    embeddings: Path

    def files(self) -> dict[str, Path]:
        return {name: getattr(self, name) for name in ("base_model", "train", "validation", "embeddings")}

    def uwm(self, **changes: Any) -> EditSettings:
        sizes = {"calibration": 7, "text_sparsity": 0.6, "image_sparsity": 0.7, "factor": -1.0}
        return _settings({"kind": "uwm", **self.modules, **sizes, **changes})

    def projection(self, **changes: Any) -> EditSettings:
        return _settings({"kind": "projection", "rank": 3, "subspace": "own", **changes})


def _settings(edit: dict[str, Any]) -> EditSettings:
    return EditSettings.model_validate({"edit": edit, "batch_size": 4})


@pytest.fixture(params=list(MODULES))
def inputs(request: pytest.FixtureRequest, tiny_quadruples: Callable[..., Path], tmp_path: Path) -> Inputs:
    """Once for each kind of model."""
    base_model = request.getfixturevalue(request.param)
    train, validation = tiny_quadruples(TRAIN, "train", 1), tiny_quadruples(VALIDATION, "validation", 2)
    embedding.embed(MiningSettings(block_size=8, batch_size=8), base_model, train, validation, tmp_path / "embedding")
    return Inputs(MODULES[request.param], base_model, train, validation, tmp_path / "embedding" / embedding.FILE)
