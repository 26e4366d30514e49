"""A tuned ViT CLIP as training writes it, with records of its evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP

from saferclip import adapters, io, models
from saferclip.config import LoraSettings

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESSING = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.25, 0.2, 0.3],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
LORA = LoraSettings(
    rank=4, alpha=4, dropout=0.0, target_modules=r"(visual\.)?transformer\.resblocks\.\d+\.(attn|mlp\.c_fc|mlp\.c_proj)"
)
TRAINING = {
    "inputs_sha256": {"train": "abc123", "base_model": "def456"},
    "tuned_parameters": 4321,
    "quadruples": 98765,
    "seconds": 12.3,
    "device": "cpu",
    "provenance": {"commit": "0123abcd", "settings": {"method": {"targets": "nearest", "learning_rate": 0.001}}},
}


@pytest.fixture(scope="session")
def untuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with random weights."""
    folder = tmp_path_factory.mktemp("run") / "base_model"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = CLIP(**MODEL_CFG).state_dict()
    models.save(folder, state, {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESSING})
    return folder


@pytest.fixture(scope="session")
def tuned(untuned: Path) -> Path:
    """The base model with adapters that were moved at random, merged: a training's folder."""
    folder = untuned.parent / "training/safer-clip/seed-1"
    clip = models.load(untuned)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        peft = adapters.attach(clip, LORA)
        for parameter in adapters.weights(peft).values():
            parameter.data.normal_(std=0.2)
    models.save(folder, adapters.merge(peft), clip.architecture)
    io.write_json(folder / "record.json", TRAINING)
    return folder


@pytest.fixture(scope="session")
def evaluations(untuned: Path) -> dict[str, Path]:
    """Folders of records: of the tuned model and of the untuned one."""
    folders = {}
    for method, seed, value in (("safer-clip", 1, 27.9), ("clip", 0, 2.8)):
        folders[method] = untuned.parent / f"evaluation/{method}/seed-{seed}"
        metrics = {
            "unsafe_text_to_image/recall@1": io.Metric(value=value, low=value - 1, high=value + 1, count=1234),
            "unsafe_text_to_image/recall@10": io.Metric(value=55.5, count=1234),
        }
        record = io.EvaluationRecord(
            method=method, seed=seed, benchmark="test", counts={}, metrics=metrics, provenance={}
        )
        io.write_evaluation(folders[method] / "test.json", record)
    return folders
