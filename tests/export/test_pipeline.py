"""A Stable Diffusion pipeline of tiny random parts, whose text encoder is swapped for an exported one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saferclip import models
from saferclip.config import ExportSettings
from saferclip.export import export

diffusers = pytest.importorskip("diffusers")

SETTINGS = ExportSettings(licence=None, formats=("diffusers",), title=None, base_model=None)
PROMPT = "a pistol on a table"


@pytest.fixture(scope="module")
def text_encoders(tuned: Path, untuned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports of the tuned and the untuned model."""
    folder = tmp_path_factory.mktemp("text-encoders")
    for name, model in (("tuned", tuned), ("untuned", untuned)):
        export.export(SETTINGS, model, None, None, folder / name)
    return {name: folder / name / "diffusers_text_encoder" for name in ("tuned", "untuned")}


@pytest.fixture(scope="module")
def published(text_encoders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline that was published with the untuned text encoder."""
    from transformers import CLIPTextModel, CLIPTokenizer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=32,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )
        vae = diffusers.AutoencoderKL(block_out_channels=(16,), norm_num_groups=8, latent_channels=4, sample_size=8)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel.from_pretrained(text_encoders["untuned"] / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(text_encoders["untuned"] / "tokenizer"),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(folder)
    return folder


def paint(pipeline: Any, **prompt: Any) -> np.ndarray:
    """An image after two steps, shape (1, height, width, 3), in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    images: np.ndarray = pipeline(
        **prompt, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np"
    ).images
    return images


@torch.inference_mode()
def states(model: Path, tokenizer: Any, prompt: str) -> torch.Tensor:
    """What the trained model itself computes for a pipeline: (1, context, width)."""
    clip: Any = models.load(model).model
    tokens = tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    embedded = clip.token_embedding(tokens) + clip.positional_embedding
    return clip.ln_final(clip.transformer(embedded, attn_mask=clip.attn_mask))


def test_a_pipeline_with_the_swapped_encoder_paints_what_the_tuned_model_says(
    published: Path, text_encoders: dict[str, Path], tuned: Path
) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    before = diffusers.StableDiffusionPipeline.from_pretrained(published, safety_checker=None)
    after = diffusers.StableDiffusionPipeline.from_pretrained(
        published,
        safety_checker=None,
        text_encoder=CLIPTextModel.from_pretrained(text_encoders["tuned"] / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(text_encoders["tuned"] / "tokenizer"),
    )
    untuned_image, tuned_image = paint(before, prompt=PROMPT), paint(after, prompt=PROMPT)
    assert np.abs(untuned_image - tuned_image).max() > 1e-3

    own = {
        name: states(tuned, after.tokenizer, text)
        for name, text in (("prompt_embeds", PROMPT), ("negative_prompt_embeds", ""))
    }
    expected = paint(before, **own)  # the untuned pipeline, given the trained model's own embeddings
    np.testing.assert_allclose(tuned_image, expected, atol=1e-4)
