"""Fixtures shared by every stage: tiny untrained CLIP models and tables of random quadruples."""

from __future__ import annotations

import importlib.util
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from projects import Project
from torch import nn

from saferclip import io, models

CATEGORIES = ("weapons", "drugs")
COLOURS = ("red", "green", "blue", "black", "white")
SAFE_THINGS = ("cat", "bus", "tree", "clock", "violin", "cup", "house")
UNSAFE_THINGS = ("pistol", "syringe", "bomb")

torch.set_num_threads(1)
# A shell that starts the tests in the background lets them ignore Ctrl-C, and with them all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take minutes: first, so that all processes of pytest-xdist end together.
LONGEST = ("workflow/test_rehearsal.py", "slurm/", "faults/", "workflow/", "artifacts/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""

    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((number for number, start in enumerate(LONGEST) if file.startswith(start)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def logging_stays_on() -> Iterator[None]:
    """Let no test switch logging off for those that follow in the same process, which look for warnings."""
    yield
    left, logging.root.manager.disable = logging.root.manager.disable, logging.NOTSET
    assert left == logging.NOTSET, f"logging up to level {left} was left switched off"


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ViT CLIP (attention by nn.MultiheadAttention) in open_clip's local-dir format."""
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
    return _save_untrained(tmp_path_factory.mktemp("tiny-clip"), vision)


@pytest.fixture(scope="session")
def tiny_resnet_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ModifiedResNet CLIP, the mini scale's architecture, in local-dir format."""
    vision = {"image_size": 64, "patch_size": None, "width": 8, "layers": [1, 1, 1, 1], "head_width": 64}
    return _save_untrained(tmp_path_factory.mktemp("tiny-resnet-clip"), vision)


@pytest.fixture
def tiny_quadruples(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function (count, split, seed=0) -> Parquet table of that many quadruples with noise as images."""

    def write(count: int, split: str, seed: int = 0) -> Path:
        path = tmp_path_factory.mktemp("quadruples") / f"{split}.parquet"
        io.write_table(path, random_quadruples(count, split, seed))
        return path

    return write


@pytest.fixture(scope="session")
def project_copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Project]:
    """A function (name, empty=False) -> a new project folder, with or without the project's files."""

    def make(name: str, empty: bool = False) -> Project:
        folder = tmp_path_factory.mktemp(name)
        return Project(folder) if empty else Project.copy(folder)

    return make


@pytest.fixture(scope="session")
def small_models() -> ModuleType:
    """What makes small models of other kinds: ``tests/rehearsal/models.py``."""
    path = Path(__file__).parent / "rehearsal/models.py"
    spec = importlib.util.spec_from_file_location("rehearsal_models", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_quadruples(count: int, split: str, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a quadruple table; ids and captions are distinct, also from those of other splits."""
    random = np.random.default_rng(seed)

    def caption(things: tuple[str, ...], row: int) -> str:
        return f"a {random.choice(COLOURS)} {random.choice(things)} by the {random.choice(SAFE_THINGS)}, {split} {row}"

    def image() -> bytes:
        # 4 x 4 coloured tiles: far enough apart for even an untrained model to tell them apart.
        return io.encode_png(random.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1))

    return [
        {
            "id": f"{split}-{row:05d}",
            "split": split,
            "category": CATEGORIES[row % len(CATEGORIES)],
            "safe_caption": caption(SAFE_THINGS, row),
            "unsafe_caption": caption(UNSAFE_THINGS, row),
            "safe_image": image(),
            "unsafe_image": image(),
        }
        for row in range(count)
    ]


def _save_untrained(folder: Path, vision: dict[str, Any]) -> Path:
    """Write a CLIP with random weights, the same ones in every session."""
    architecture = {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": vision,
            "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(**architecture["model_cfg"])
        _settle_batch_norm(model, vision["image_size"])
    models.save(folder, model.state_dict(), architecture)
    return folder


def _settle_batch_norm(model: CLIP, image_size: int) -> None:
    """Let a new ModifiedResNet tell images apart: start its closed blocks, give its norms statistics."""
    for name, parameter in model.named_parameters():
        if name.endswith("bn3.weight"):  # zero in a new network
            nn.init.ones_(parameter)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        tiles = torch.randn(64, 3, 4, 4)
        model.train().encode_image(nn.functional.interpolate(tiles, (image_size, image_size)))
