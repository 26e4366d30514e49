"""Weights in an architecture with the other activation: what is refused, and what is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP, QuickGELU
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import nn

from saferclip import models
from saferclip.base_model import activation
from saferclip.base_model.activation import ActivationError
from saferclip.base_model.formats import Declared

ROOT = Path(__file__).parents[2]
TRAINED = ROOT / "results/iconworld-clip"


@pytest.fixture(scope="module")
def trained() -> Path:
    """The delivered model, whose text encoder was trained with GELU."""
    if not (TRAINED / models.WEIGHTS).is_file():
        command = [sys.executable, "-m", "dvc", "pull", str(TRAINED)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"the delivered model cannot be pulled: {done.stderr}")
    return TRAINED


def test_trained_weights_pass_with_their_own_activation(trained: Path) -> None:
    activation.check_behaviour(models.load(trained), False, "")


def test_trained_weights_are_refused_with_the_other_one(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(trained, folder)
    architecture = json.loads((folder / models.ARCHITECTURE).read_text())
    architecture["model_cfg"]["quick_gelu"] = True
    (folder / models.ARCHITECTURE).write_text(json.dumps(architecture))
    message = r"trained with GELU, but the architecture computes QuickGELU.*256 drawn pairs.*; write something else"
    with pytest.raises(ActivationError, match=message):
        activation.check_behaviour(models.load(folder), True, "write something else")


@pytest.mark.parametrize("scale", [1 / 0.07, 100], ids=["as initialised", "as trained"])
@pytest.mark.parametrize("seed", [0, 2, 3])
def test_a_random_model_passes_both_ways(seed: int, scale: float) -> None:
    """Though its losses differ: the other activation's is no better than guessing, so it says nothing."""
    tower = {"width": 64, "layers": 3}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(
            embed_dim=32,
            vision_cfg={"image_size": 32, "patch_size": 8, "head_width": 16, **tower},
            text_cfg={"context_length": 32, "vocab_size": 49408, "heads": 4, **tower},
        ).eval()
    model.logit_scale.data.fill_(scale).log_()
    preprocess = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    clip = models.Clip(model, preprocess, open_clip.SimpleTokenizer(context_length=32), {})
    activation.check_behaviour(clip, False, "")
    with activation.other_activation(model):
        activation.check_behaviour(clip, True, "")


def test_exchanging_changes_every_layer_and_is_undone(tiny_clip_folder: Path) -> None:
    model = models.load(tiny_clip_folder).model
    kinds = lambda: [type(block.mlp.gelu) for tower in (model.visual, model) for block in tower.transformer.resblocks]  # noqa: E731
    before = kinds()
    with activation.other_activation(model):
        assert before == [nn.GELU] * 2
        assert kinds() == [QuickGELU] * 2
    assert kinds() == before


def test_an_image_encoder_of_another_kind_is_left_alone(tiny_resnet_clip_folder: Path) -> None:
    model = models.load(tiny_resnet_clip_folder).model
    with activation.other_activation(model):
        assert not any(isinstance(module, QuickGELU) for module in model.visual.modules())
        assert isinstance(model.transformer.resblocks[0].mlp.gelu, QuickGELU)


def test_the_probe_is_the_same_every_time_and_of_the_models_size() -> None:
    images, captions = activation.pairs((40, 40))
    again, _ = activation.pairs(40)
    assert len(images) == len(captions) == activation.PAIRS
    assert len(set(captions)) > 0.99 * activation.PAIRS
    assert images[7].size == (40, 40)
    assert [image.tobytes() for image in images] == [image.tobytes() for image in again]


def test_what_is_said_of_the_weights_is_compared_with_the_architecture() -> None:
    said = [Declared("a list", True), Declared("a file", False)]
    with pytest.raises(ActivationError, match=r"trained with QuickGELU, says a list, but .* computes GELU.*; do this"):
        activation.check_declared({}, said, "do this")
    with pytest.raises(ActivationError, match=r"trained with GELU, says a file, but .* computes QuickGELU"):
        activation.check_declared({"quick_gelu": True}, said, "do this")
    activation.check_declared({"quick_gelu": True}, said[:1], "do this")


@pytest.mark.parametrize(
    ("architecture", "other"),
    [("ViT-L-14", "ViT-L-14-quickgelu"), ("ViT-L-14-quickgelu", "ViT-L-14"), ("ViT-H-14-CLIPA", None), ("none", None)],
)
def test_the_other_architecture_is_one_that_open_clip_has(architecture: str, other: str | None) -> None:
    assert activation.other_name(architecture) == other
