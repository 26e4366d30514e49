"""Models in the formats that others publish, with random weights."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor

from saferclip import conversion, models

SERVER = Path(__file__).parents[1] / "rehearsal/server.py"
PREPROCESSING = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
MODEL_CFG: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def state() -> dict[str, Tensor]:
    """Random weights, with open_clip's names."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return {name: tensor.clone() for name, tensor in CLIP(**MODEL_CFG).state_dict().items()}


@pytest.fixture
def open_clip_folder(state: dict[str, Tensor], tmp_path: Path) -> Path:
    """The model in open_clip's format."""
    folder = tmp_path / "open-clip"
    models.save(folder, state, {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESSING})
    return folder


@pytest.fixture
def transformers_folder(state: dict[str, Tensor], tmp_path: Path) -> Path:
    """The model in transformers' format, as transformers itself writes it."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path / "transformers"
    model = CLIPModel(CLIPConfig(**conversion.transformers_config(MODEL_CFG)))
    model.load_state_dict(conversion.to_transformers(state, MODEL_CFG))
    model.save_pretrained(folder)
    processor = conversion.image_processor_config(PREPROCESSING, 32)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture
def weights_file(state: dict[str, Tensor], tmp_path: Path) -> Callable[[str], Path]:
    """A function (name) -> path: a file of weights alone, in the format that the name's ending says."""

    def write(name: str) -> Path:
        path = tmp_path / name
        if path.suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save(state, path)
        return path

    return write


@pytest.fixture(scope="session")
def server() -> Any:
    """The module of the loopback hub."""
    spec = importlib.util.spec_from_file_location("rehearsal_server_of_models", SERVER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["rehearsal_server_of_models"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub with nothing on it, which the environment names."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with server.Hub(tmp_path / "served") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running
