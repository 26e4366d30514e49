"""Low-rank adapters: they compute what LoRA defines, on both encoders, and touch nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from PIL import Image
from torch import Tensor, nn

from saferclip import adapters, models
from saferclip.config import ConfigError, LoraSettings

EXPRESSIONS = {
    "tiny_clip_folder": r"visual\.conv1|(visual\.)?transformer\.resblocks\.\d+\.(attn|mlp\.c_fc|mlp\.c_proj)",
    "tiny_resnet_clip_folder": r"visual\.layer\d\.\d\.(conv\d|downsample\.0)"
    r"|transformer\.resblocks\.\d+\.(attn|mlp\.c_fc|mlp\.c_proj)",
}
RANK, ALPHA = 3, 6.0
CAPTIONS = ["a cat", "a red pistol by the house", "two blue buses and a clock"]


def settings(expression: str, dropout: float = 0.0) -> LoraSettings:
    return LoraSettings(rank=RANK, alpha=ALPHA, dropout=dropout, target_modules=expression)


class Case:
    """A model with random adapters, beside the untuned one."""

    def __init__(self, folder: Path, expression: str, dropout: float = 0.0) -> None:
        self.folder = folder
        self.untuned = models.load(folder)
        self.clip = models.load(folder)
        torch.manual_seed(0)
        picture = Image.new("RGB", (8, 8))
        self.images = torch.randn(3, *self.clip.preprocess(picture).shape)
        self.tokens = self.clip.tokenize(CAPTIONS)
        self.tuned = adapters.attach(self.clip, settings(expression, dropout))
        adapters.set_training_mode(self.tuned)

    def randomise(self) -> None:
        for weight in adapters.weights(self.tuned).values():
            nn.init.normal_(weight, std=0.2)

    def outputs(self, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        model = model or self.clip.model
        return models.image_features(model, self.images), models.text_features(model, self.tokens)


@pytest.fixture(params=list(EXPRESSIONS))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.getfixturevalue(request.param), EXPRESSIONS[request.param])


def merged_by_hand(case: Case) -> nn.Module:
    """The untuned model with W + alpha / rank * B A written into every adapted weight."""
    model = copy.deepcopy(case.untuned.model)
    weights = {name.removeprefix("base_model.model."): w for name, w in adapters.weights(case.tuned).items()}
    for name, low in weights.items():
        if ".lora_A." not in name:
            continue
        high = weights[name.replace(".lora_A.", ".lora_B.")]
        delta = ALPHA / RANK * torch.einsum("or,r...->o...", high.flatten(1), low)
        path = name.partition(".lora_A.")[0].replace("base_layer.", "")
        module = model.get_submodule(path)
        weight = module.in_proj_weight if isinstance(module, nn.MultiheadAttention) else module.weight
        weight.data += delta
    return model


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


@torch.no_grad()
def test_fresh_adapters_change_nothing(case: Case) -> None:
    assert_same(case.outputs(), case.outputs(case.untuned.model), 1e-6)


@torch.no_grad()
def test_adapters_compute_what_lora_defines(case: Case) -> None:
    case.randomise()
    assert_same(case.outputs(), case.outputs(merged_by_hand(case).eval()), 1e-5)
    for tuned, untuned in zip(case.outputs(), case.outputs(case.untuned.model), strict=True):
        assert (tuned - untuned).abs().max() > 0.01, "the adapters are too small to test anything"


@torch.no_grad()
def test_merged_weights_equal_the_adapted_model(case: Case) -> None:
    case.randomise()
    expected = case.outputs()
    state = adapters.merge(case.tuned)
    fresh = models.load(case.folder).model
    assert state.keys() == fresh.state_dict().keys()
    fresh.load_state_dict(state)
    assert_same(case.outputs(fresh), expected, 1e-5)


@pytest.mark.filterwarnings("ignore:A")  # PEFT visits an attention's output projection by itself, too
@torch.no_grad()
def test_merging_can_be_undone(case: Case) -> None:
    case.randomise()
    expected = case.outputs()
    case.tuned.merge_adapter()
    assert_same(case.outputs(), expected, 1e-5)
    case.tuned.unmerge_adapter()
    assert_same(case.outputs(), expected, 1e-5)


@torch.no_grad()
def test_saved_adapter_is_loaded_again(case: Case, tmp_path: Path) -> None:
    case.randomise()
    adapters.save(case.tuned, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", RANK, ALPHA)
    fresh = models.load(case.folder)
    adapters.load(fresh, tmp_path)
    assert_same(case.outputs(fresh.model), case.outputs(), 1e-6)


def test_saved_adapter_has_the_names_peft_expects(case: Case, tmp_path: Path) -> None:
    case.randomise()
    adapters.save(case.tuned, tmp_path)
    plain = PeftModel.from_pretrained(models.load(case.folder).model, str(tmp_path))
    loaded = {name: weight for name, weight in plain.named_parameters() if ".lora_" in name}
    trained = adapters.weights(case.tuned)
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in trained.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_adapter_gets_a_gradient_and_nothing_else_does(case: Case, precision: str) -> None:
    case.randomise()
    with models.autocast("cpu", precision):
        image, text = case.outputs()
    (image[:, 0].sum() + text[:, 0].sum()).backward()
    for name, parameter in case.tuned.named_parameters():
        if ".lora_" in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert not parameter.requires_grad and parameter.grad is None, name


@torch.no_grad()
def test_bf16_stays_close_to_fp32(case: Case) -> None:
    case.randomise()
    expected = case.outputs()
    with models.autocast("cpu", "bf16"):
        found = case.outputs()
    assert_same(found, expected, 0.05)


def test_steps_move_neither_frozen_weights_nor_statistics(case: Case) -> None:
    optimiser = torch.optim.Adam(adapters.weights(case.tuned).values(), lr=0.1)
    for _ in range(5):
        adapters.set_training_mode(case.tuned)
        image, text = case.outputs()
        (image[:, 0].sum() + text[:, 0].sum()).backward()
        optimiser.step()
        optimiser.zero_grad()
    state = case.clip.model.state_dict()
    frozen = {name.replace("base_layer.", ""): weight for name, weight in state.items() if ".lora_" not in name}
    expected = case.untuned.model.state_dict()
    assert frozen.keys() == expected.keys()
    assert all(torch.equal(frozen[name], weight) for name, weight in expected.items())
    # The untuned model takes torch.nn.MultiheadAttention's fast path, whose rounding differs on some processors.
    with torch.no_grad(), case.tuned.disable_adapter():
        assert_same(case.outputs(), case.outputs(case.untuned.model), 1e-6)


@pytest.mark.parametrize("folder", list(EXPRESSIONS))
def test_dropout_acts_in_training_mode_only(folder: str, request: pytest.FixtureRequest) -> None:
    case = Case(request.getfixturevalue(folder), EXPRESSIONS[folder], dropout=0.5)
    case.randomise()
    with torch.no_grad():
        first, second = case.outputs(), case.outputs()
        assert not any(torch.equal(one, other) for one, other in zip(first, second, strict=True))
        case.tuned.eval()
        assert_same(case.outputs(), case.outputs(merged_by_hand(case).eval()), 1e-5)
    adapters.set_training_mode(case.tuned)
    training = {type(module) for module in case.tuned.modules() if module.training}
    assert training <= {nn.Dropout, nn.ModuleDict}


@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_attention_equals_torch_with_merged_weights(batch_first: bool) -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(12, 3, batch_first=batch_first).eval()
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="attn")
    config._register_custom_module({nn.MultiheadAttention: adapters.MultiheadAttention})
    model = inject_adapter_in_model(config, nn.ModuleDict({"attn": copy.deepcopy(plain)})).eval()
    layer = model["attn"]
    for adapted in (layer, layer.base_layer.out_proj):
        nn.init.normal_(adapted.lora_B["default"].weight)
    plain.in_proj_weight += layer.lora_B["default"].weight @ layer.lora_A["default"].weight * ALPHA / RANK
    out = layer.base_layer.out_proj
    plain.out_proj.weight += out.lora_B["default"].weight @ out.lora_A["default"].weight * ALPHA / RANK
    inputs = torch.randn(5, 4, 12)
    length = inputs.shape[1 if batch_first else 0]
    mask = torch.full((length, length), -torch.inf).triu(1)
    for attn_mask in (None, mask):
        found, _ = layer(inputs, inputs, inputs, need_weights=False, attn_mask=attn_mask)
        expected, _ = plain(inputs, inputs, inputs, need_weights=False, attn_mask=attn_mask)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_attention_between_two_inputs_is_refused(case: Case) -> None:
    layer = next(module for module in case.tuned.modules() if isinstance(module, adapters.MultiheadAttention))
    query, key = torch.randn(2, 1, 4, 32)
    with pytest.raises(ConfigError, match="between two inputs"):
        layer(query, key, key)


TEXT = r"transformer\.resblocks\.\d+\.mlp\.c_fc"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (r"visual\.layer9.*", r"selects no module; there are .*visual\.layerN\.N\.convN"),
        (r"layer1\.0\.conv1", "selects no module"),  # PEFT matches whole names
        (r"visual\.(layer1", "not a regular expression"),
        (TEXT, "selects nothing in the image encoder"),
        (r"visual\.layer1\.0\.conv1", "selects nothing in the text encoder"),
        (rf"{TEXT}|visual\.layer1\.0\.(conv1|bn1)", "cannot be adapted.*BatchNorm2d"),
        (rf"{TEXT}|visual\.layer1\.0\.conv1|visual\.attnpool\.[qk]_proj", r"leave out visual\.attnpool\.k_proj, "),
        (r"visual\.layer1\.0\.conv1|transformer\.resblocks\.0\.attn\.out_proj", "leave out .*out_proj: the model"),
        (
            r"visual\.layer1\.0\.conv1|transformer\.resblocks\.0\.attn(\.out_proj)?",
            r"selects transformer\.resblocks\.0\.attn\.out_proj and also transformer\.resblocks\.0\.attn,",
        ),
    ],
)
def test_expressions_that_cannot_work_are_refused(tiny_resnet_clip_folder: Path, expression: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        adapters.attach(models.load(tiny_resnet_clip_folder), settings(expression))
    assert str(caught.value).startswith("optimisation.lora.target_modules: ")


@pytest.mark.parametrize(
    ("encoder", "expression"), [("text", TEXT), ("image", r"visual\.layer1\.0\.conv1")], ids=["text", "image"]
)
def test_one_encoder_alone_can_be_tuned(tiny_resnet_clip_folder: Path, encoder: str, expression: str) -> None:
    clip = models.load(tiny_resnet_clip_folder)
    alone = settings(expression).model_copy(update={"encoders": (encoder,)})
    tuned = adapters.attach(clip, alone)
    assert adapters.weights(tuned)
    assert all((".visual." in name) == (encoder == "image") for name in adapters.weights(tuned))


def test_an_encoder_that_is_to_stay_as_it_is_has_no_adapters(tiny_resnet_clip_folder: Path) -> None:
    alone = settings(rf"{TEXT}|visual\.layer1\.0\.conv1").model_copy(update={"encoders": ("text",)})
    with pytest.raises(ConfigError, match=r"selects some of the image encoder; .*encoders names text"):
        adapters.attach(models.load(tiny_resnet_clip_folder), alone)


def test_grouped_convolution_is_refused(tiny_resnet_clip_folder: Path) -> None:
    clip = models.load(tiny_resnet_clip_folder)
    clip.model.visual.conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
    with pytest.raises(ConfigError, match=r"visual\.conv2, a grouped convolution"):
        adapters.attach(clip, settings(rf"{TEXT}|visual\.conv2"))
