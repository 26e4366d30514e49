"""UWM: scores against the formula written out weight by weight, on layers of every kind."""

from __future__ import annotations

import io as memory
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from saferclip import io, models
from saferclip.config import ConfigError, UwmSettings
from saferclip.editing import edit, layers, uwm
from saferclip.io import DataError


def slow_ratio(weight: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean ratio of each weight, by the formula as it stands: pairs of (positions, in) inputs."""
    total = torch.zeros_like(weight, dtype=torch.float64)
    rows, columns = weight.shape
    for pair in pairs:
        score = []
        for inputs in pair:
            n = [inputs[:, j].square().sum().sqrt().item() for j in range(columns)]
            d = [inputs[:, j].std().item() + 1e-8 for j in range(columns)]
            carried = [[n[j] * abs(weight[i, j].item()) for j in range(columns)] for i in range(rows)]
            out = [sum(carried[i]) / columns for i in range(rows)]
            into = [sum(carried[i][j] for i in range(rows)) / rows for j in range(columns)]
            score.append([[out[i] * into[j] / d[j] for j in range(columns)] for i in range(rows)])
        safe, unsafe = (torch.tensor(values, dtype=torch.float64) for values in score)
        total += unsafe / safe
    return total / len(pairs)


def test_scores_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 4)
    pairs = [(torch.randn(5, 4), torch.randn(5, 4)) for _ in range(6)]
    scores = uwm.Scores(weight)
    for part in (pairs[:4], pairs[4:]):  # of unequal size: each pair counts alike
        safe, unsafe = (torch.stack([pair[side] for pair in part]) for side in (0, 1))
        scores.add(uwm.strength(safe), uwm.strength(unsafe))
    torch.testing.assert_close(scores.mean(), slow_ratio(weight, pairs), rtol=1e-5, atol=0)


def test_positions_after_the_end_do_not_count() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 6, 3)
    there = torch.arange(6) < torch.tensor([[3], [6]])
    found = uwm.strength(inputs, there)
    for row, length in enumerate((3, 6)):
        expected = uwm.strength(inputs[row : row + 1, :length])
        torch.testing.assert_close(found.norm[row], expected.norm[0])
        torch.testing.assert_close(found.deviation[row], expected.deviation[0])


def test_a_silent_feature_takes_its_pair_out_of_its_own_mean() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 4)
    pairs = [(torch.rand(5, 4), torch.rand(5, 4)) for _ in range(3)]
    pairs[1][0][:, 2] = 0
    for pair in pairs:
        pair[1][:, 3] = 0
    scores = uwm.Scores(weight)
    scores.add(*(uwm.strength(torch.stack([pair[side] for pair in pairs])) for side in (0, 1)))
    found = scores.mean()
    assert found.isfinite().all()
    assert (found[:, 3] == 0).all()
    torch.testing.assert_close(found[:, :2], slow_ratio(weight, pairs)[:, :2], rtol=1e-5, atol=0)
    speaking = slow_ratio(weight, [pairs[0], pairs[2]])
    torch.testing.assert_close(found[:, 2], speaking[:, 2], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [(0.0, [1, 1, 1, 1]), (0.25, [0, 1, 1, 1]), (0.5, [0, 1, 1, 0]), (0.75, [0, 1, 0, 0]), (1.0, [0, 0, 0, 0])],
)
def test_the_heaviest_hold_what_the_lowest_leave(sparsity: float, expected: list[int]) -> None:
    """Scores 1, 5, 3, 1: ascending, the sums are 0.1, 0.2, 0.5 and 1."""
    found = uwm.heaviest(torch.tensor([[1.0, 5.0], [3.0, 1.0]]), sparsity)
    sums = torch.tensor([0.1, 1.0, 0.5, 0.2])
    assert found.flatten().tolist() == (sums > sparsity).tolist()
    assert found.flatten()[1].item() == bool(expected[1])


def test_no_scores_choose_nothing() -> None:
    assert not uwm.heaviest(torch.zeros(2, 3), 0.0).any()


def inputs_by_hand(clip: models.Clip, name: str, tokens: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's input, and the model's output, by making the layer's weight the identity and reading its output."""
    layer = clip.model.get_submodule(name)
    output = (
        models.image_features(clip.model, images)
        if name.startswith("visual.")
        else models.text_features(clip.model, tokens)
    )
    seen: list[Tensor] = []
    if name.endswith("out_proj"):
        attention: Any = clip.model.get_submodule(name.rpartition(".")[0])
        plain = {}

        def attend(_module: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
            plain["x"], plain["mask"] = inputs[0], options["attn_mask"]

        handle = attention.register_forward_pre_hook(attend, with_kwargs=True)
        models.text_features(clip.model, tokens)
        handle.remove()
        packed = plain["x"] @ attention.in_proj_weight.T + attention.in_proj_bias
        batch, length, _ = packed.shape
        heads = packed.view(batch, length, 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
        weights = heads[0] @ heads[1].transpose(-1, -2) / attention.head_dim**0.5 + plain["mask"]
        return (weights.softmax(dim=-1) @ heads[2]).transpose(1, 2).flatten(2), output
    handle = layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    models.image_features(clip.model, images)
    handle.remove()
    found = seen[0]
    return (found.flatten(2).transpose(1, 2) if isinstance(layer, nn.Conv2d) else found), output


@torch.no_grad()
def test_what_enters_layers_is_seen_and_nothing_else_changes(inputs: Any) -> None:
    clip = models.load(inputs.base_model)
    before = {name: weight.clone() for name, weight in clip.model.state_dict().items()}
    tokens = clip.tokenize(["a cat", "a red pistol by the house"])
    images = torch.randn(2, *clip.preprocess(Image.new("RGB", (8, 8))).shape)
    for encoder in ("text", "image"):
        chosen = layers.choose(clip.model, inputs.modules[f"{encoder}_modules"], "key", encoder)
        assert chosen
        with layers.inputs_of(clip.model, chosen) as seen:
            found = (
                models.text_features(clip.model, tokens)
                if encoder == "text"
                else models.image_features(clip.model, images)
            )
        for name in chosen:
            expected, output = inputs_by_hand(clip, name, tokens, images)
            torch.testing.assert_close(seen[name], expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found, output, atol=1e-6, rtol=0)
    after = clip.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@torch.no_grad()
def test_patches_are_what_a_convolution_multiplies() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    images = torch.randn(2, 3, 7, 7)
    model = nn.ModuleDict({"conv": convolution})
    with layers.inputs_of(model, {"conv": convolution}) as seen:
        output = convolution(images)
    found = seen["conv"] @ convolution.weight.flatten(1).T + convolution.bias
    torch.testing.assert_close(found.transpose(1, 2).view_as(output), output)


@torch.no_grad()
def test_the_edit_multiplies_the_weights_that_the_formula_names(inputs: Any, tmp_path: Any) -> None:
    """From captions and pictures to changed weights, with one input at a time and everything written out."""
    settings = inputs.uwm(factor=-0.5)
    edit.edit(settings, **inputs.files(), output=tmp_path / "edited")
    table = io.read_table(inputs.train).to_pylist()
    rows = [place * len(table) // 7 for place in range(7)]
    base, found = models.load(inputs.base_model), models.load(tmp_path / "edited").model.state_dict()
    expected = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    for encoder, columns in (("text", ("safe_caption", "unsafe_caption")), ("image", ("safe_image", "unsafe_image"))):
        chosen = layers.choose(base.model, inputs.modules[f"{encoder}_modules"], "key", encoder)
        for name, layer in chosen.items():
            pairs = []
            for row in rows:
                pair = []
                for column in columns:
                    with layers.inputs_of(base.model, chosen) as seen:
                        if encoder == "text":
                            tokens = base.tokenize([table[row][column]])
                            models.text_features(base.model, tokens)
                        else:
                            picture = Image.open(memory.BytesIO(table[row][column]["bytes"])).convert("RGB")
                            models.image_features(base.model, base.preprocess(picture).unsqueeze(0))
                    pair.append(seen[name][0])
                pairs.append((pair[0], pair[1]))
            weight = layer.weight.flatten(1)
            speaking = all((side != 0).any(dim=0).all() for pair in pairs for side in pair)
            scores = slow_ratio(weight, pairs) if speaking else _ratio_with_silence(weight, pairs)
            scores = scores * weight.abs() if encoder == "text" else scores
            share = settings.edit.text_sparsity if encoder == "text" else settings.edit.image_sparsity
            order = scores.flatten().sort()
            heavy = order.indices[order.values.cumsum(0) / scores.sum() > share]
            assert 0 < len(heavy) < weight.numel()
            changed = weight.flatten().clone()
            changed[heavy] *= -0.5
            expected[f"{name}.weight"] = changed.view_as(layer.weight)
    for name, weight in expected.items():
        differing = (found[name] != weight).sum().item()
        # The last bits of a score may put two neighbours in the other order.
        assert differing <= 0.01 * weight.numel(), name


def _ratio_with_silence(weight: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    scores = uwm.Scores(weight)
    for safe, unsafe in pairs:
        scores.add(uwm.strength(safe.unsqueeze(0)), uwm.strength(unsafe.unsqueeze(0)))
    return scores.mean()


def test_sparsity_of_one_changes_nothing(inputs: Any, tmp_path: Any) -> None:
    edit.edit(inputs.uwm(text_sparsity=1, image_sparsity=1), **inputs.files(), output=tmp_path / "edited")
    record = io.read_json(tmp_path / "edited" / edit.RECORD)
    assert record["changed_weights"] == {}
    assert record["calibration_rows"] == {"text": 7, "image": 7}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_modules": "("}, "edit.text_modules: not a regular expression"),
        ({"image_modules": r"visual\.nothing"}, r"selects no module; there are .*visual\."),
        ({"text_modules": r"visual\.conv1"}, "visual.conv1, which is not in the text encoder"),
        ({"image_modules": "ln_final"}, "ln_final, which is not in the image encoder"),
        ({"text_modules": "ln_final"}, r"ln_final \(LayerNorm\), not a linear layer"),
    ],
)
def test_modules_that_cannot_be_scored_are_refused(inputs: Any, tmp_path: Any, changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        edit.edit(inputs.uwm(**changes), **inputs.files(), output=tmp_path / "edited")
    assert not (tmp_path / "edited").exists()


def test_a_layer_whose_weight_is_read_without_calling_it_is_refused(tiny_resnet_clip_folder: Any, inputs: Any) -> None:
    clip = models.load(tiny_resnet_clip_folder)
    settings = inputs.uwm(text_modules=r"transformer\..*c_fc", image_modules=r"visual\.attnpool\.c_proj").edit
    assert isinstance(settings, UwmSettings)
    with pytest.raises(ConfigError, match=r"leave out visual\.attnpool\.c_proj: the model reads its weight without"):
        uwm.edit(clip, settings, inputs.train, 4)


def test_a_layer_with_one_position_is_refused(tiny_resnet_clip_folder: Any, inputs: Any) -> None:
    clip = models.load(tiny_resnet_clip_folder)
    clip.model.visual.attnpool = _Pool(clip.model.visual.attnpool)
    settings = inputs.uwm(text_modules=r"transformer\..*c_fc", image_modules=r"visual\.attnpool\.one").edit
    assert isinstance(settings, UwmSettings)
    with pytest.raises(ConfigError, match=r"leave out visual\.attnpool\.one: .* without positions"):
        uwm.edit(clip, settings, inputs.train, 4)


class _Pool(nn.Module):
    """A pooling whose convolution sees one position."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.one = nn.Conv2d(256, 256, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(images) + 0 * self.one(functional.adaptive_avg_pool2d(images, 1)).sum()


def test_a_table_without_pairs_of_images_is_refused(inputs: Any, tmp_path: Any) -> None:
    rows = io.read_table(inputs.train).to_pylist()
    table = tmp_path / "train.parquet"
    io.write_table(table, [row | {"safe_image": row["safe_image"]["bytes"], "unsafe_image": None} for row in rows])
    with pytest.raises(DataError, match="no row has both images"):
        edit.edit(inputs.uwm(), **(inputs.files() | {"train": table}), output=tmp_path / "edited")
