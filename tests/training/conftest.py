"""Everything that a training run reads, for both kinds of tiny models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from saferclip.config import LossWeights, MiningSettings, TrainingSettings
from saferclip.mining import embedding, nearest
from saferclip.training.losses import TERMS

TRAIN, VALIDATION = 13, 6
TARGETS = {
    "tiny_clip_folder": r"(visual\.)?transformer\.resblocks\.\d+\.(attn|mlp\.c_fc)",
    "tiny_resnet_clip_folder": r"visual\.layer\d\.\d\.conv\d|transformer\.resblocks\.\d+\.(attn|mlp\.c_fc)",
}


@dataclass(frozen=True)
class Material:
    """Input files of training runs, and settings that fit them."""

    target_modules: str
    base_model: Path
    train: Path
    validation: Path
    embeddings: Path
    neighbours: Path

    def files(self) -> dict[str, Path]:
        names = ("base_model", "train", "validation", "embeddings", "neighbours")
        return {name: getattr(self, name) for name in names}

    def settings(self, dropout: float = 0.0, **changes: Any) -> TrainingSettings:
        """Settings of a short SaFeR-CLIP run; ``changes`` replace some of them, by name."""
        lora = {"rank": 2, "alpha": 4.0, "dropout": dropout, "target_modules": self.target_modules}
        optimisation = {
            "epochs": 3,
            "batch_size": 4,
            "accumulation": 1,
            "max_gradient_norm": 1.0,
            "precision": "bf16",
            "logit_scale": "base-model",
            "lora": lora,
        }
        method = {
            "targets": "nearest",
            "cross_modal": "relative",
            "curriculum": "progressive",
            "learning_rate": 1e-2,
            "weights": LossWeights(**dict.fromkeys(TERMS, 1.0)),
        }
        for name, value in changes.items():
            section = optimisation if name in optimisation else method
            assert name in section, name
            section[name] = value
        return TrainingSettings.model_validate({"optimisation": optimisation, "method": method})


def make_material(kind: str, base_model: Path, tables: Callable[..., Path], folder: Path) -> Material:
    settings = MiningSettings(block_size=8, batch_size=8)
    train, validation = tables(TRAIN, "train", 1), tables(VALIDATION, "validation", 2)
    embedding.embed(settings, base_model, train, validation, folder)
    nearest.mine(settings, train, folder / embedding.FILE, folder)
    return Material(
        TARGETS[kind], base_model, train, validation, folder / embedding.FILE, folder / "neighbours.parquet"
    )


@pytest.fixture(params=list(TARGETS))
def material(request: pytest.FixtureRequest, tiny_quadruples: Callable[..., Path], tmp_path: Path) -> Material:
    """Once for each kind of model."""
    kind = request.param
    return make_material(kind, request.getfixturevalue(kind), tiny_quadruples, tmp_path / "material")


@pytest.fixture
def vit_material(tiny_clip_folder: Path, tiny_quadruples: Callable[..., Path], tmp_path: Path) -> Material:
    """For what does not depend on the kind of model: the faster one alone."""
    return make_material("tiny_clip_folder", tiny_clip_folder, tiny_quadruples, tmp_path / "material")
