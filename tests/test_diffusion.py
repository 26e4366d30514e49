"""Pipelines of small random models in the forms of Stable Diffusion and SDXL; guidance against a plain computation."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from saferclip import diffusion, io
from saferclip.config import DiffusionSettings, SafeGuidanceSettings

PROMPTS = ["a cat", "a dog on a table", "a red bus by the sea, at night"]
SEEDS = [1, 2, 3]
GUIDANCE = SafeGuidanceSettings(
    concept="violence, illegal activity",
    scale=2000,
    threshold=0.025,
    warmup_steps=2,
    momentum_scale=0.5,
    momentum_beta=0.7,
)


@pytest.fixture(scope="module")
def folders(small_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One pipeline of each kind."""
    root = tmp_path_factory.mktemp("pipelines")
    small_models.stable_diffusion(root / "sd")
    small_models.stable_diffusion_xl(root / "sdxl")
    return {"sd": root / "sd", "sdxl": root / "sdxl"}


@pytest.fixture
def painter(folders: dict[str, Path]) -> Callable[..., diffusion.Painter]:
    """A function (kind, guided=False, text_encoder=None, **settings) -> painter."""

    def load(kind: str, guided: bool = False, text_encoder: Path | None = None, **changes: Any) -> diffusion.Painter:
        return diffusion.load(settings(kind, **changes), folders, text_encoder, GUIDANCE if guided else None)

    return load


def settings(model: str, **changes: Any) -> DiffusionSettings:
    values = {"steps": 4, "guidance": 7.5, "image_size": 32, "precision": "fp32", "batch_size": 3}
    return DiffusionSettings(model=model, **{**values, **changes})


def pixels(images: list[Any]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_an_image_depends_on_its_prompt_and_seed_but_not_on_the_batch(
    kind: str, guided: bool, painter: Callable[..., diffusion.Painter]
) -> None:
    at_once = pixels(painter(kind, guided).paint(PROMPTS, SEEDS))
    assert at_once.shape == (3, 32, 32, 3)
    one_by_one = pixels(painter(kind, guided, batch_size=1).paint(PROMPTS, SEEDS))
    backwards = pixels(painter(kind, guided, batch_size=2).paint(PROMPTS[::-1], SEEDS[::-1]))
    # A matrix product of another size may round otherwise: one step of brightness at most.
    assert np.abs(at_once - one_by_one).max() <= 1
    assert np.abs(at_once - backwards[::-1]).max() <= 1
    other_seeds = pixels(painter(kind, guided).paint(PROMPTS, [4, 5, 6]))
    assert np.abs(at_once - other_seeds).max(axis=(1, 2, 3)).min() > 10
    assert pixels(painter(kind, guided).paint(PROMPTS[::-1], SEEDS)).tolist() != at_once.tolist()


def test_the_global_random_state_does_not_matter(painter: Callable[..., diffusion.Painter]) -> None:
    loaded = painter("sd")
    torch.manual_seed(1)
    first = pixels(loaded.paint(PROMPTS, SEEDS))
    torch.manual_seed(2)
    np.testing.assert_array_equal(first, pixels(loaded.paint(PROMPTS, SEEDS)))


def test_a_scale_given_with_the_prompts_replaces_that_of_the_settings(
    painter: Callable[..., diffusion.Painter],
) -> None:
    given = pixels(painter("sd").paint(PROMPTS, SEEDS, guidance=3.0))
    np.testing.assert_array_equal(given, pixels(painter("sd", guidance=3.0).paint(PROMPTS, SEEDS)))
    assert (given != pixels(painter("sd").paint(PROMPTS, SEEDS))).any()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(precision: str, painter: Callable[..., diffusion.Painter]) -> None:
    loaded = painter("sd", precision=precision, guided=True)
    assert loaded.pipeline.unet.dtype == diffusion.PRECISIONS[precision]
    assert pixels(loaded.paint(PROMPTS[:1], SEEDS[:1])).std() > 1


def test_numbers_of_prompts_and_seeds_must_agree(painter: Callable[..., diffusion.Painter]) -> None:
    with pytest.raises(ValueError, match="3 prompts, but 2 seeds"):
        painter("sd").paint(PROMPTS, SEEDS[:2])
    assert painter("sd").paint([], []) == []


def slow_safety_term(noise: list[np.ndarray], momentum: np.ndarray) -> np.ndarray:
    """Equations 4 to 7 of the paper, element by element."""
    unconditional, prompt, concept = (part.ravel() for part in noise)
    result = np.zeros(len(prompt))
    for place in range(len(prompt)):
        difference = prompt[place] - concept[place]
        strength = 0.0 if difference >= GUIDANCE.threshold else min(1.0, GUIDANCE.scale * abs(difference))
        result[place] = strength * (concept[place] - unconditional[place])
        result[place] += GUIDANCE.momentum_scale * momentum.ravel()[place]
    return result.reshape(momentum.shape)


def random_noise(steps: int) -> np.ndarray:
    """Predictions in which concept and prompt are sometimes near each other: (steps, 3, images, channels, 4, 4)."""
    random = np.random.default_rng(0)
    noise = random.normal(size=(steps, 3, 2, 4, 4, 4))
    noise[:, 2] = noise[:, 1] + random.normal(size=noise[:, 2].shape) * 10.0 ** random.integers(
        -5, 1, noise[:, 2].shape
    )
    return noise


def test_the_safety_term_is_the_papers() -> None:
    noise = random_noise(1)[0]
    momentum = np.random.default_rng(1).normal(size=noise[0].shape)
    term = diffusion.safety_term(
        diffusion.Predictions(*map(torch.tensor, noise)), torch.tensor(momentum), GUIDANCE
    ).numpy()
    np.testing.assert_allclose(term, slow_safety_term(list(noise), momentum), atol=1e-12)
    strengths = (term - GUIDANCE.momentum_scale * momentum) / (noise[2] - noise[0])
    assert {0, 1} <= set(strengths.round(6).ravel())  # clamped, and left alone
    assert ((strengths > 0.01) & (strengths < 0.99)).any()


def test_the_denoiser_is_steered_after_the_warm_up_and_gathers_momentum_before() -> None:
    """What a pipeline makes of the hooks' two predictions is the paper's equation 3, step for step."""
    steps = random_noise(5)
    denoiser = diffusion.SafeDenoiser(GUIDANCE, torch.zeros(1, 1, 1), None)
    momentum, scale = np.zeros_like(steps[0, 0]), 7.5
    for number, noise in enumerate(steps):
        output = torch.tensor(noise.reshape(-1, 4, 4, 4))
        unconditional, prompt = denoiser.after(None, None, (output,))[0].chunk(2)
        guided = (unconditional + scale * (prompt - unconditional)).numpy()
        term = slow_safety_term(list(noise), momentum)
        momentum = GUIDANCE.momentum_beta * momentum + (1 - GUIDANCE.momentum_beta) * term
        expected = noise[1] - noise[0] - (term if number >= GUIDANCE.warmup_steps else 0)
        np.testing.assert_allclose(guided, noise[0] + scale * expected, atol=1e-10)


def test_images_equal_those_of_the_authors_pipeline(
    folders: dict[str, Path], painter: Callable[..., diffusion.Painter]
) -> None:
    """Diffusers keeps the authors' own pipeline, no longer maintained, among its deprecated ones."""
    safe = pytest.importorskip("diffusers.pipelines.deprecated.stable_diffusion_safe")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = safe.StableDiffusionPipelineSafe.from_pretrained(
            folders["sd"], safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        theirs.safety_concept = GUIDANCE.concept
        expected = theirs(
            prompt=PROMPTS,
            height=32,
            width=32,
            num_inference_steps=4,
            guidance_scale=7.5,
            generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
            sld_guidance_scale=GUIDANCE.scale,
            sld_warmup_steps=GUIDANCE.warmup_steps,
            sld_threshold=GUIDANCE.threshold,
            sld_momentum_scale=GUIDANCE.momentum_scale,
            sld_mom_beta=GUIDANCE.momentum_beta,
        ).images
    ours = pixels(painter("sd", guided=True).paint(PROMPTS, SEEDS))
    assert np.abs(ours - pixels(expected)).max() <= 1
    assert np.abs(ours - pixels(painter("sd").paint(PROMPTS, SEEDS))).max() > 3


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_guidance_leaves_no_trace_in_the_pipeline(kind: str, painter: Callable[..., diffusion.Painter]) -> None:
    guided = painter(kind, guided=True)
    plain = diffusion.Painter(guided.pipeline, guided.settings)
    before = pixels(plain.paint(PROMPTS, SEEDS))
    during = pixels(guided.paint(PROMPTS, SEEDS))
    np.testing.assert_array_equal(during, pixels(guided.paint(PROMPTS, SEEDS)))  # momentum starts anew
    np.testing.assert_array_equal(before, pixels(plain.paint(PROMPTS, SEEDS)))
    assert (during != before).any()


def test_without_guidance_there_is_nothing_to_make_safe(painter: Callable[..., diffusion.Painter]) -> None:
    np.testing.assert_array_equal(
        pixels(painter("sd", guided=True).paint(PROMPTS, SEEDS, guidance=1.0)),
        pixels(painter("sd").paint(PROMPTS, SEEDS, guidance=1.0)),
    )


def test_only_pipelines_with_a_unet_can_be_guided_safely() -> None:
    with (
        pytest.raises(io.DataError, match="pipeline of Stable Diffusion's kind, not object"),
        diffusion.safely(object(), GUIDANCE),
    ):
        pass


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_another_text_encoder_makes_other_images(
    kind: str, painter: Callable[..., diffusion.Painter], small_models: ModuleType, tmp_path: Path
) -> None:
    from transformers import CLIPTextModel

    torch.manual_seed(7)
    CLIPTextModel(small_models.text_config(32)).save_pretrained(tmp_path)
    replaced = painter(kind, text_encoder=tmp_path)
    given = CLIPTextModel.from_pretrained(tmp_path).state_dict()
    for name, tensor in replaced.pipeline.text_encoder.state_dict().items():
        assert torch.equal(tensor, given[name]), name
    assert (pixels(replaced.paint(PROMPTS, SEEDS)) != pixels(painter(kind).paint(PROMPTS, SEEDS))).any()


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_text_encoder_of_another_width_is_refused(
    kind: str, painter: Callable[..., diffusion.Painter], small_models: ModuleType, tmp_path: Path
) -> None:
    from transformers import CLIPTextModel

    CLIPTextModel(small_models.text_config(16)).save_pretrained(tmp_path)
    with pytest.raises(io.DataError, match=rf"{tmp_path}: .* hidden_size 16, but the pipeline .* expects 32"):
        painter(kind, text_encoder=tmp_path)


def test_what_is_no_text_encoder_is_refused(painter: Callable[..., diffusion.Painter], tmp_path: Path) -> None:
    with pytest.raises(io.DataError, match="cannot be loaded as a CLIPTextModel"):
        painter("sd", text_encoder=tmp_path)


def test_the_published_index_needs_no_safety_checker(folders: dict[str, Path], tmp_path: Path) -> None:
    """Stable Diffusion 1.x lists a checker and its preprocessing, which are neither fetched nor wanted."""
    folder = shutil.copytree(folders["sd"], tmp_path / "sd")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index | {"requires_safety_checker": True}))
    painted = diffusion.load(settings("sd"), {"sd": folder}).paint(PROMPTS, SEEDS)
    np.testing.assert_array_equal(
        pixels(painted), pixels(diffusion.load(settings("sd"), folders).paint(PROMPTS, SEEDS))
    )


def test_weights_in_half_precision_files_are_found(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["sd"], tmp_path / "sd")
    for path in folder.glob("*/*.safetensors"):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    assert len(diffusion.load(settings("sd"), {"sd": folder}).paint(PROMPTS, SEEDS)) == 3


def test_weights_as_pickles_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["sd"], tmp_path / "sd")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(io.DataError, match=r"unet: weights as pickles only .*safe_serialization"):
        diffusion.load(settings("sd"), {"sd": folder})


def test_a_folder_that_is_no_pipeline_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(io.DataError, match=r"not a folder of a diffusers pipeline: model_index\.json is missing"):
        diffusion.load(settings("sd"), {"sd": tmp_path})
    folder = shutil.copytree(folders["sd"], tmp_path / "sd")
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(io.DataError, match=rf"{folder}: cannot be loaded"):
        diffusion.load(settings("sd"), {"sd": folder})
