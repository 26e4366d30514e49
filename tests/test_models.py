"""Loading, saving and encoding with open_clip models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CustomTextCLIP
from PIL import Image
from torch import nn
from torch.nn import functional

from saferclip import io, models

CAPTIONS = [
    "a cat",
    "a red pistol by the tall old house near a river",
    "tree",
    "two blue buses and a clock",
    "a violin beside a white cup",
]


@pytest.fixture(params=["tiny_clip_folder", "tiny_resnet_clip_folder"])
def clip(request: pytest.FixtureRequest) -> models.Clip:
    return models.load(request.getfixturevalue(request.param))


@pytest.fixture
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(3)
    sizes = [(40, 64), (64, 64), (90, 70), (33, 47), (64, 64)]
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def test_loaded_model_is_in_fp32_and_evaluation_mode(clip: models.Clip) -> None:
    assert {parameter.dtype for parameter in clip.model.parameters()} == {torch.float32}
    assert not any(module.training for module in clip.model.modules())


def test_trimmed_text_equals_untrimmed(clip: models.Clip) -> None:
    tokens = clip.tokenize(CAPTIONS)
    with torch.no_grad():
        trimmed = models.text_features(clip.model, tokens)
        untrimmed = clip.model.encode_text(tokens, normalize=True)
    assert tokens.shape[1] > int(tokens.argmax(dim=1).max()) + 1, "nothing is cut off, so nothing is tested"
    torch.testing.assert_close(trimmed, untrimmed, atol=1e-6, rtol=0)


def test_text_towers_of_other_kinds_are_encoded_whole() -> None:
    model = CustomTextCLIP(
        embed_dim=8,
        vision_cfg={"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
        text_cfg={"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    ).eval()
    tokens = open_clip.get_tokenizer("ViT-B-32", context_length=12)(CAPTIONS[:2])
    with torch.no_grad():
        assert torch.equal(models.text_features(model, tokens), model.encode_text(tokens, normalize=True))


def test_encoding_captions_keeps_their_order(clip: models.Clip) -> None:
    encoded = models.encode_texts(clip, CAPTIONS, batch_size=2)
    for row, caption in enumerate(CAPTIONS):
        alone = models.encode_texts(clip, [caption], batch_size=1)[0]
        torch.testing.assert_close(encoded[row], alone, atol=1e-6, rtol=0)
    assert (encoded @ encoded.T).fill_diagonal_(-1).max() < 1 - 1e-4, "captions are too alike to tell rows apart"


def test_encoding_pictures_keeps_their_order(clip: models.Clip, pictures: list[Image.Image]) -> None:
    encoded = models.encode_images(clip, iter(pictures), batch_size=2)
    with torch.no_grad():
        for row, picture in enumerate(pictures):
            alone = clip.model.encode_image(clip.preprocess(picture).unsqueeze(0))
            torch.testing.assert_close(encoded[row], functional.normalize(alone, dim=-1)[0], atol=1e-6, rtol=0)
    assert (encoded @ encoded.T).fill_diagonal_(-1).max() < 1 - 1e-4, "pictures are too alike to tell rows apart"


def test_order_of_pixels_in_memory_does_not_matter(clip: models.Clip, pictures: list[Image.Image]) -> None:
    images = torch.stack([clip.preprocess(picture) for picture in pictures])
    with torch.no_grad():
        expected = models.image_features(clip.model.to(memory_format=torch.contiguous_format), images)
        found = models.image_features(clip.model.to(memory_format=torch.channels_last), images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_saved_model_is_loaded_by_open_clip(clip: models.Clip, tmp_path: Path) -> None:
    models.save(tmp_path / "model", clip.model.state_dict(), clip.architecture)
    loaded, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'model'}")
    expected = clip.model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.state_dict().items())


def test_half_precision_is_stored_where_it_is_exact_and_loads_bit_by_bit(clip: models.Clip, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}
    state["token_embedding.weight"] = state["token_embedding.weight"].half().float()
    state["ln_final.weight"][:3] = torch.tensor([1e-9, 1e6, torch.finfo(torch.float32).tiny])  # beyond half precision
    state["ln_final.bias"][:2] = torch.tensor([-0.0, 6e-8])  # zero has a sign; subnormal numbers of half precision
    models.save(tmp_path, state, clip.architecture)

    stored = io.read_tensors(tmp_path / models.WEIGHTS)
    assert stored["token_embedding.weight"].dtype == torch.float16
    assert stored["ln_final.weight"].dtype == torch.float32
    loaded = models.load(tmp_path).model.state_dict()
    for name, expected in state.items():
        assert loaded[name].dtype == expected.dtype, name
        kind = torch.int32 if expected.dtype == torch.float32 else expected.dtype
        assert torch.equal(loaded[name].contiguous().view(kind), expected.contiguous().view(kind)), name


def test_weights_of_other_precisions_are_stored_without_loss(clip: models.Clip, tmp_path: Path) -> None:
    state = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in clip.model.state_dict().items()
    }
    models.save(tmp_path, state, clip.architecture)
    loaded = models.load(tmp_path).model.state_dict()
    assert all(torch.equal(loaded[name], tensor.to(loaded[name].dtype)) for name, tensor in state.items())


@pytest.mark.parametrize("missing", [models.ARCHITECTURE, models.WEIGHTS])
def test_incomplete_model_folder_is_refused(clip: models.Clip, tmp_path: Path, missing: str) -> None:
    models.save(tmp_path, clip.model.state_dict(), clip.architecture)
    (tmp_path / missing).unlink()
    with pytest.raises(io.DataError, match=f"{missing} is missing"):
        models.load(tmp_path)


def test_precision_decides_what_matrix_products_are_computed_in() -> None:
    layer = nn.Linear(4, 4)
    for precision, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with models.autocast("cpu", precision):
            assert layer(torch.ones(2, 4)).dtype == expected
    assert layer(torch.ones(2, 4)).dtype == torch.float32


def test_attention_has_the_same_gradient_in_both_precisions() -> None:
    torch.manual_seed(0)
    query = torch.randn(3, 2, 7, 8)
    gradients = []
    for precision in ("fp32", "bf16"):
        leaf = query.clone().requires_grad_()
        with models.autocast("cpu", precision):
            functional.scaled_dot_product_attention(leaf, leaf, leaf).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=0.1, rtol=0.05)
