"""CLIP between open_clip and transformers: the same weights, the same embeddings, and what is refused."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from saferclip import conversion
from saferclip.conversion import ConversionError

CAPTIONS = ["a cat", "un café à Zürich, 日本語 🎻", "a red pistol by the tall old house " * 20, ""]
TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 3, "layers": 2},
}


def random_model(model_cfg: dict[str, Any]) -> CLIP:
    """An open_clip model with random weights, biases and gains included, as a trained one has them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(**model_cfg).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.05)
            elif ".ln_" in f".{name}":
                nn.init.uniform_(parameter, 0.8, 1.2)
    return model


@torch.inference_mode()
def embeddings(model: CLIP, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)


@torch.inference_mode()
def converted_embeddings(
    model: CLIP, model_cfg: dict[str, Any], images: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """As ``embeddings``, by transformers' own forward pass."""
    # On the meta device first, so that weights are not drawn at random to be overwritten.
    with torch.device("meta"):
        other = CLIPModel(CLIPConfig(**conversion.transformers_config(model_cfg))).eval()
    buffers = {name: torch.arange(buffer.shape[1])[None] for name, buffer in other.named_buffers()}
    weights = conversion.to_transformers(model.state_dict(), model_cfg)
    other.load_state_dict(weights, assign=True, strict=True)
    for name, buffer in buffers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(parent), leaf, buffer)
    image = other.get_image_features(images).pooler_output
    text = other.get_text_features(tokens).pooler_output
    return functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)


@pytest.fixture(scope="module", params=["ViT-B-32", "ViT-L-14"])
def large(request: pytest.FixtureRequest) -> Iterator[tuple[CLIP, dict[str, Any]]]:
    model_cfg = open_clip.get_model_config(request.param)
    yield random_model(model_cfg), model_cfg
    gc.collect()


@pytest.mark.parametrize("quick_gelu", [False, True], ids=["GELU", "QuickGELU"])
def test_embeddings_are_those_of_transformers(large: tuple[CLIP, dict[str, Any]], quick_gelu: bool) -> None:
    model, model_cfg = large
    model_cfg = {**model_cfg, "quick_gelu": quick_gelu}
    for tower in (model.visual.transformer, model.transformer):
        for block in tower.resblocks:
            block.mlp.gelu = open_clip.model.QuickGELU() if quick_gelu else nn.GELU()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    tokens = open_clip.tokenize(CAPTIONS)
    assert tokens[2, -1] == 49407, "no caption fills the context"

    expected = embeddings(model, images, tokens)
    found = converted_embeddings(model, model_cfg, images, tokens)
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    wrong = converted_embeddings(model, {**model_cfg, "quick_gelu": not quick_gelu}, images, tokens)
    assert (wrong[0] - expected[0]).abs().max() > 1e-4, "the activation does not matter, so nothing is tested"


def test_a_round_trip_changes_no_weight(large: tuple[CLIP, dict[str, Any]]) -> None:
    model, model_cfg = large
    state = model.state_dict()
    again = conversion.to_open_clip(conversion.to_transformers(state, model_cfg), model_cfg)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    "name", ["ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14-336", "ViT-H-14", "ViT-g-14", "ViT-bigG-14", "ViT-S-32-alt"]
)
def test_an_architecture_comes_back_the_same(name: str) -> None:
    model_cfg = open_clip.get_model_config(name)
    again = conversion.open_clip_config(conversion.transformers_config(model_cfg))
    with torch.device("meta"):
        shapes = [{key: tensor.shape for key, tensor in CLIP(**cfg).state_dict().items()} for cfg in (model_cfg, again)]
    assert shapes[0] == shapes[1]
    assert again["quick_gelu"] == model_cfg.get("quick_gelu", False)
    assert conversion.transformers_config(again) == conversion.transformers_config(model_cfg)


def test_openclips_other_kind_of_block_is_the_same_network() -> None:
    custom = {
        key: value | {"block_type": "custom"} if isinstance(value, dict) else value for key, value in TINY.items()
    }
    model = random_model(custom)
    images, tokens = torch.randn(2, 3, 32, 32), open_clip.tokenize(CAPTIONS)
    for ours, theirs in zip(
        embeddings(model, images, tokens), converted_embeddings(model, custom, images, tokens), strict=True
    ):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


def test_another_epsilon_is_kept() -> None:
    model_cfg = {**TINY, "text_cfg": TINY["text_cfg"] | {"norm_kwargs": {"eps": 1e-3}}}
    model = random_model(model_cfg)
    images, tokens = torch.randn(1, 3, 32, 32), open_clip.tokenize(CAPTIONS)
    _, expected = embeddings(model, images, tokens)
    _, found = converted_embeddings(model, model_cfg, images, tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    again = conversion.open_clip_config(conversion.transformers_config(model_cfg))
    assert again["text_cfg"]["norm_kwargs"] == {"eps": 1e-3}
    assert "norm_kwargs" not in again["vision_cfg"]


def test_the_logit_scale_may_be_a_vector_of_one() -> None:
    model_cfg = {**TINY, "nonscalar_logit_scale": True}
    converted = conversion.to_transformers(random_model(model_cfg).state_dict(), model_cfg)
    assert converted["logit_scale"].shape == ()


def test_counters_that_older_versions_stored_are_left_out() -> None:
    state = random_model(TINY).state_dict()
    stored = conversion.to_transformers(state, TINY) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    assert conversion.to_open_clip(stored, TINY).keys() == state.keys()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8}},
            r"vision_cfg\.layers: \[1, 1, 1, 1\] \(a ModifiedResNet\)",
        ),
        ({"vision_cfg": {"timm_model_name": "vit_tiny"}}, r"timm_model_name: vit_tiny \(an image encoder of timm\)"),
        ({"vision_cfg": {"attentional_pool": True}}, r"vision_cfg\.attentional_pool: True"),
        ({"vision_cfg": {"image_size": [32, 64]}}, r"image_size: \[32, 64\] \(not square\)"),
        ({"vision_cfg": {"pool_type": "avg"}}, r"pool_type: avg"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, r"hf_model_name: roberta-base \(another text encoder\)"),
        ({"text_cfg": {"no_causal_mask": True}}, r"text_cfg\.no_causal_mask: True"),
        ({"text_cfg": {"norm_kwargs": {"elementwise_affine": False}}}, r"text_cfg\.norm_kwargs"),
        ({"custom_text": True}, r"custom_text: True"),
        ({"init_logit_bias": -10}, r"init_logit_bias: -10"),
    ],
)
def test_what_transformers_cannot_express_is_named(change: dict[str, Any], named: str) -> None:
    model_cfg = {key: TINY.get(key, {}) | value if isinstance(value, dict) else value for key, value in change.items()}
    with pytest.raises(ConversionError, match=f"CLIPModel cannot express this architecture: .*{named}"):
        conversion.transformers_config({**TINY, **model_cfg})


@pytest.mark.parametrize("name", ["RN50", "roberta-ViT-B-32", "ViT-B-16-SigLIP", "coca_ViT-B-32", "convnext_base"])
def test_openclips_other_families_are_refused(name: str) -> None:
    with pytest.raises(ConversionError, match="cannot express"):
        conversion.to_transformers({}, open_clip.get_model_config(name))


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("text_config", {"hidden_act": "gelu"}, "hidden_act is 'gelu' for text and 'quick_gelu' for images"),
        ("text_config", {"eos_token_id": 5}, "eos_token_id 5"),
        ("vision_config", {"num_channels": 4}, "not of three channels"),
        (None, {"model_type": "siglip"}, "model_type is 'siglip'"),
    ],
)
def test_what_openclip_cannot_express_is_named(section: str | None, change: dict[str, Any], named: str) -> None:
    config = conversion.transformers_config({**TINY, "quick_gelu": True})
    (config if section is None else config[section]).update(change)
    with pytest.raises(ConversionError, match=named):
        conversion.open_clip_config(config)


def test_settings_that_a_file_leaves_out_are_the_librarys_own() -> None:
    assert conversion.open_clip_config({"model_type": "clip"})["quick_gelu"] is True  # as transformers has it


def test_the_first_files_of_transformers_still_mean_the_highest_token() -> None:
    config = conversion.transformers_config(TINY)
    config["text_config"]["eos_token_id"] = 2
    assert conversion.open_clip_config(config)["text_cfg"]["vocab_size"] == 49408


def test_weights_of_another_architecture_are_refused() -> None:
    state = random_model(TINY).state_dict()
    deeper = {**TINY, "vision_cfg": TINY["vision_cfg"] | {"layers": 3}}
    with pytest.raises(ConversionError, match=r"12 missing, such as visual\.transformer\.resblocks\.2"):
        conversion.to_transformers(state, deeper)
    with pytest.raises(ConversionError, match="1 extra, such as other"):
        conversion.to_transformers({**state, "other": torch.ones(1)}, TINY)


@pytest.mark.parametrize(
    "preprocess_cfg", [{}, {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.2] * 3}]
)
def test_preprocessing_comes_back_the_same(preprocess_cfg: dict[str, Any]) -> None:
    config = conversion.image_processor_config(preprocess_cfg, 32)
    again = conversion.preprocess_config(config)
    assert preprocess_cfg.items() <= again.items()
    assert conversion.image_processor_config(again, 32) == config


def test_preprocessing_as_openai_published_it() -> None:
    published = {"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3, "image_mean": [0.4] * 3}
    assert conversion.preprocess_config(published)["resize_mode"] == "shortest"


def test_preprocessing_without_a_counterpart_is_refused() -> None:
    with pytest.raises(ConversionError, match="resize_mode 'longest'"):
        conversion.image_processor_config({"resize_mode": "longest"}, 32)
    with pytest.raises(ConversionError, match="do_center_crop False"):
        conversion.preprocess_config({"size": {"shortest_edge": 32}, "do_center_crop": False})
