"""Binary masks: the model computes with kept weights alone, scores alone learn, and what is saved is the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from saferclip import adapters, io, masks, models
from saferclip.config import ConfigError, LoraSettings, MaskSettings
from saferclip.io import DataError

EXPRESSIONS = {
    "tiny_clip_folder": r"(visual\.)?transformer\.resblocks\.\d+\.(attn|mlp\.c_fc|mlp\.c_proj)",
    "tiny_resnet_clip_folder": r"visual\.layer\d\.\d\.(conv\d|downsample\.0)|visual\.attnpool\.c_proj"
    r"|transformer\.resblocks\.\d+\.(attn|mlp\.c_fc|mlp\.c_proj)",
}


def settings(expression: str, **changes: Any) -> MaskSettings:
    values = {"initial": 1e-2, "threshold": 5e-3, "penalty": 0.0, "gradient_dropout": 0.0} | changes
    return MaskSettings.model_validate({"kind": "mask", "target_modules": expression, **values})


class Case:
    """A model with masks of which a third is switched off, beside the untuned one."""

    def __init__(self, folder: Path, expression: str) -> None:
        self.folder = folder
        self.untuned = models.load(folder)
        self.clip = models.load(folder)
        torch.manual_seed(0)
        self.images = torch.randn(3, *self.clip.preprocess(Image.new("RGB", (8, 8))).shape)
        self.tokens = self.clip.tokenize(["a cat", "a red pistol by the house", "two blue buses and a clock"])
        self.tuned = masks.attach(self.clip, settings(expression))
        masks.set_training_mode(self.tuned)

    def switch_off(self) -> dict[str, Tensor]:
        """Switch some weights off; the scores by weight."""
        found = {}
        with torch.no_grad():
            for name, scores in masks.weights(self.tuned).items():
                scores.copy_(torch.where(torch.rand(scores.shape) < 1 / 3, 0.0, 0.02))
                found[name.replace(".parametrizations", "").removesuffix(".0.scores")] = scores
        return found

    def outputs(self, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        model = model or self.clip.model
        return models.image_features(model, self.images), models.text_features(model, self.tokens)


@pytest.fixture(params=list(EXPRESSIONS))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.getfixturevalue(request.param), EXPRESSIONS[request.param])


def by_hand(case: Case, scores: dict[str, Tensor]) -> nn.Module:
    """The untuned model with zeros written where scores are not above the threshold."""
    model = models.load(case.folder).model
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, score in scores.items():
            parameters[name][score <= 5e-3] = 0
    return model


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@torch.no_grad()
def test_fresh_masks_change_nothing(case: Case) -> None:
    assert_same(case.outputs(), case.outputs(case.untuned.model))


@pytest.mark.parametrize("gradients", [True, False])
def test_the_model_computes_with_what_is_kept(case: Case, gradients: bool) -> None:
    """Also without gradients, where torch takes its fast path of attention."""
    expected = by_hand(case, case.switch_off())
    with torch.set_grad_enabled(gradients):
        found, before = case.outputs(), case.outputs(case.untuned.model)
        assert_same(found, case.outputs(expected))
    assert all((one - other).abs().max() > 0.01 for one, other in zip(found, before, strict=True))


def test_the_gradient_goes_straight_through_to_every_score(case: Case) -> None:
    """It is that of the masked weight times the frozen weight, also where a weight is switched off."""
    scores = case.switch_off()
    image, text = case.outputs()
    (image[:, 0].sum() + text[:, 0].sum()).backward()
    plain = by_hand(case, scores)
    image, text = case.outputs(plain)
    (image[:, 0].sum() + text[:, 0].sum()).backward()
    of_weights = {name: weight.grad for name, weight in plain.named_parameters()}
    frozen = dict(case.untuned.model.named_parameters())
    for name, score in scores.items():
        assert score.grad is not None and of_weights[name] is not None
        torch.testing.assert_close(score.grad, of_weights[name] * frozen[name].detach(), atol=1e-6, rtol=1e-4)
    assert any((score.grad[score <= 5e-3] != 0).any() for score in scores.values())
    others = [name for name, weight in case.tuned.named_parameters() if not name.endswith("scores")]
    parameters = dict(case.tuned.named_parameters())
    assert others and all(parameters[name].grad is None and not parameters[name].requires_grad for name in others)


@torch.no_grad()
def test_saved_masks_and_merged_weights_are_the_tuned_model(case: Case, tmp_path: Path) -> None:
    scores = case.switch_off()
    expected = case.outputs()
    masks.save(case.tuned, tmp_path)
    total = sum(score.numel() for score in scores.values())
    kept = sum(int((score > 5e-3).sum()) for score in scores.values())
    facts = json.loads((tmp_path / "adapter_config.json").read_text())
    assert facts == {"tuner": "mask", "masked_weights": total, "kept_weights": kept}
    size = sum((score.numel() + 7) // 8 for score in scores.values())
    assert sum(tensor.numel() for tensor in io.read_tensors(tmp_path / "adapter_model.safetensors").values()) == size
    loaded = models.load(case.folder)
    assert_same(case.outputs(masks.load(loaded, tmp_path)), expected)
    state = masks.merge(case.tuned)
    fresh = models.load(case.folder).model
    assert state.keys() == fresh.state_dict().keys()
    fresh.load_state_dict(state)
    assert_same(case.outputs(fresh), expected)


def test_steps_move_scores_alone(case: Case) -> None:
    optimiser = torch.optim.Adam(masks.weights(case.tuned).values(), lr=0.004)
    for _ in range(3):
        image, text = case.outputs()
        (image[:, 0].sum() + text[:, 0].sum()).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert sum(int((scores <= 5e-3).sum()) for scores in masks.weights(case.tuned).values()) > 0
    masked = {name.replace(".parametrizations", "").removesuffix(".0.scores") for name in masks.weights(case.tuned)}
    merged = masks.merge(case.tuned)
    for name, weight in case.untuned.model.state_dict().items():
        same = merged[name] == weight
        assert (same | (merged[name] == 0)).all() if name in masked else same.all(), name


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (r"visual\.layer9.*", "selects no module; there are .*"),
        (r"visual\.(layer1", "not a regular expression"),
        (r"transformer\.resblocks\.0\.mlp\.c_fc", "selects nothing in the image encoder"),
        (r"visual\.layer1\.0\.conv1", "selects nothing in the text encoder"),
        (r"visual\.layer1\.0\.bn1", r"selects visual\.layer1\.0\.bn1 \(BatchNorm2d\), no linear layer"),
    ],
)
def test_expressions_that_cannot_work_are_refused(tiny_resnet_clip_folder: Path, expression: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        masks.attach(models.load(tiny_resnet_clip_folder), settings(expression))
    assert str(caught.value).startswith("tuner.target_modules: ")


def test_what_is_no_mask_of_this_model_is_refused(case: Case, tiny_clip_folder: Path, tmp_path: Path) -> None:
    masks.save(case.tuned, tmp_path / "masks")
    name = next(iter(io.read_tensors(tmp_path / "masks/adapter_model.safetensors")))
    io.write_tensors(tmp_path / "masks/adapter_model.safetensors", {name: torch.zeros(3, dtype=torch.uint8)})
    with pytest.raises(DataError, match="is no mask of a weight of this model"):
        masks.load(models.load(case.folder), tmp_path / "masks")
    expression = EXPRESSIONS["tiny_clip_folder"]
    low_rank = LoraSettings(rank=2, alpha=2, dropout=0, target_modules=expression)
    adapters.save(adapters.attach(models.load(tiny_clip_folder), low_rank), tmp_path / "adapter")
    with pytest.raises(DataError, match="not the settings of masks"):
        masks.load(models.load(tiny_clip_folder), tmp_path / "adapter")
    with pytest.raises(DataError, match="not the settings of LoRA adapters"):
        adapters.load(models.load(case.folder), tmp_path / "masks")
