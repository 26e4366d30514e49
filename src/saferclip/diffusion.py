"""Text to image with a diffusers pipeline: one seed for each image, whatever the batch.

Safe latent diffusion (Schramowski et al., CVPR 2023) steers away from a concept given in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from saferclip import io, models
from saferclip.config import DiffusionSettings, SafeGuidanceSettings

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# Where a pipeline's parts may come from; diffusers would import whatever is named.
LIBRARIES = (["diffusers"], ["transformers"], ["stable_diffusion"], [None])


@dataclass(frozen=True)
class Painter:
    """A pipeline with its settings and, where wanted, safe guidance."""

    pipeline: Any
    settings: DiffusionSettings
    safe_guidance: SafeGuidanceSettings | None = None

    @torch.inference_mode()
    def paint(self, prompts: Sequence[str], seeds: Sequence[int], guidance: float | None = None) -> list[Image.Image]:
        """One image for each prompt, from noise that its own seed decides; ``guidance`` replaces the settings' scale.

        Raises DataError where safe guidance is wanted of a pipeline that cannot give it.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts, but {len(seeds)} seeds")
        scale = self.settings.guidance if guidance is None else guidance
        images: list[Image.Image] = []
        for start in range(0, len(prompts), self.settings.batch_size):
            rows = slice(start, start + self.settings.batch_size)
            images += self._batch(list(prompts[rows]), seeds[rows], scale)
        return images

    def _batch(self, prompts: list[str], seeds: Sequence[int], scale: float) -> list[Image.Image]:
        size = self.settings.image_size
        with ExitStack() as contexts:
            # Up to 1 there is no guidance that could be made safe.
            if self.safe_guidance and scale > 1:
                contexts.enter_context(safely(self.pipeline, self.safe_guidance))
            return self.pipeline(
                prompt=prompts,
                height=size,
                width=size,
                num_inference_steps=self.settings.steps,
                guidance_scale=scale,
                # On the CPU, so that every machine draws the same noise; one each, so that the batch does not matter.
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="pil",
            ).images


def load(
    settings: DiffusionSettings,
    downloads: Mapping[str, Path],
    text_encoder: Path | None = None,
    safe_guidance: SafeGuidanceSettings | None = None,
) -> Painter:
    """Load a pipeline of the Stable Diffusion or SDXL kind from its folder, without a network or a safety checker.

    ``text_encoder`` is a folder with a transformers CLIPTextModel to use in place of the pipeline's own (first) one.
    Raises DataError for a folder without a pipeline or with weights as pickles, and for an encoder that does not fit.
    """
    from diffusers import AutoPipelineForText2Image

    folder = downloads[settings.model]
    index = _index(folder)
    kind = PRECISIONS[settings.precision]
    parts: dict[str, Any] = {name: None for name in ("safety_checker", "feature_extractor") if name in index}
    if "requires_safety_checker" in index:
        parts["requires_safety_checker"] = False
    if text_encoder:
        parts["text_encoder"] = _text_encoder(text_encoder, folder).to(kind)
    try:
        pipeline = AutoPipelineForText2Image.from_pretrained(  # type: ignore[no-untyped-call]
            str(folder),
            torch_dtype=kind,
            variant=_variant(folder),
            use_safetensors=True,
            local_files_only=True,
            **parts,
        )
    except (OSError, ValueError) as error:
        raise io.DataError(f"{folder}: cannot be loaded as a text-to-image pipeline: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return Painter(pipeline.to(models.default_device()), settings, safe_guidance)


def _index(folder: Path) -> dict[str, Any]:
    """What a pipeline's folder lists as its parts, after a look at the files of their weights."""
    file = folder / "model_index.json"
    if not file.is_file():
        raise io.DataError(f"{folder}: not a folder of a diffusers pipeline: {file.name} is missing")
    index: dict[str, Any] = io.read_json(file)
    if not isinstance(index, dict):
        raise io.DataError(f"{file}: not the list of a pipeline's parts")
    if code := sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py")):
        raise io.DataError(f"{folder}: brings code of its own ({', '.join(code[:5])}), which is not run here")
    for name, part in index.items():
        if isinstance(part, list) and not name.startswith("_") and part[:1] not in LIBRARIES:
            raise io.DataError(f"{file}: {name} is of the library {part[:1]}, which is not read here")
    for part in (folder / name for name in index if name != "safety_checker"):
        pickled = sorted(path.name for path in part.glob("*") if path.suffix in (".bin", ".pt", ".ckpt"))
        if pickled and not any(part.glob("*.safetensors")):
            raise io.DataError(
                f"{part}: weights as pickles only ({', '.join(pickled)}), which may execute anything when read; get "
                "a revision with safetensors, or convert them, on a machine that you can spare, by diffusers' "
                "save_pretrained(..., safe_serialization=True)"
            )
    return index


def _variant(folder: Path) -> str | None:
    """'fp16' where weights are there in that form only, such as unet/diffusion_pytorch_model.fp16.safetensors."""
    names = [path.name for path in folder.glob("unet/*.safetensors")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def _text_encoder(folder: Path, pipeline: Path) -> Any:
    """A text encoder to put into a pipeline, in fp32; raises DataError where the pipeline's own is of another shape."""
    from transformers import CLIPTextModel

    own = io.read_json(pipeline / "text_encoder" / "config.json")
    try:
        encoder = CLIPTextModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise io.DataError(f"{folder}: cannot be loaded as a CLIPTextModel: {error}") from error
    for name in ("hidden_size", "vocab_size", "max_position_embeddings"):
        given, expected = getattr(encoder.config, name), own.get(name)
        if expected is not None and given != expected:
            raise io.DataError(
                f"{folder}: this text encoder has {name} {given}, but the pipeline {pipeline} expects {expected}; "
                "Stable Diffusion 1.x goes with ViT-L/14"
            )
    return encoder.eval()  # type: ignore[no-untyped-call]


class Predictions(NamedTuple):
    """The noise that a denoiser sees: without a prompt, with it, and with the concept to avoid."""

    unconditional: Tensor
    prompt: Tensor
    concept: Tensor


def safety_term(noise: Predictions, momentum: Tensor, settings: SafeGuidanceSettings) -> Tensor:
    """What safe latent diffusion subtracts from the guidance, equations 4 to 7 of the paper: shape as the noise.

    Each element is steered away from the concept, the more the nearer prompt and concept are, up to 1, and not at all
    where the prompt exceeds the concept by the threshold; to this the accumulated momentum is added.
    """
    difference = noise.prompt - noise.concept
    strength = (settings.scale * difference.abs()).clamp(max=1).where(difference < settings.threshold, 0)
    return strength * (noise.concept - noise.unconditional) + settings.momentum_scale * momentum


class SafeDenoiser:
    """Hooks of a denoiser that make ordinary classifier-free guidance safe.

    Pipelines ask the denoiser for (unconditional, prompt) stacked into one batch, and combine these as
    ``unconditional + scale * (prompt - unconditional)``. The hook before a call appends the concept to the batch; the
    one after it takes it off and subtracts the safety term from the prompt's part, which gives the paper's equation 3.
    """

    def __init__(self, settings: SafeGuidanceSettings, concept: Tensor, pooled: Tensor | None) -> None:
        self.settings = settings
        self.concept, self.pooled = concept, pooled
        self.momentum: Tensor | None = None
        self.step = 0

    def before(self, _module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Append the concept: inputs of batch 2n to 3n."""
        latents, *rest = positional
        count = len(latents) // 2
        named = dict(named)
        named["encoder_hidden_states"] = _extended(named["encoder_hidden_states"], self.concept)
        if added := named.get("added_cond_kwargs"):
            extra = {"text_embeds": self.pooled, "time_ids": added.get("time_ids", latents)[:count]}
            named["added_cond_kwargs"] = {name: _extended(value, extra[name]) for name, value in added.items()}
        return (torch.cat([latents, latents[:count]]), *rest), named

    def after(self, _module: Any, _inputs: Any, output: Any) -> Any:
        """Combine the three predictions into two: outputs of batch 3n to 2n."""
        noise = Predictions(*output[0].chunk(3))
        if self.momentum is None:
            self.momentum = torch.zeros_like(noise.prompt)
        term = safety_term(noise, self.momentum, self.settings)
        beta = self.settings.momentum_beta
        self.momentum = beta * self.momentum + (1 - beta) * term
        guided = noise.prompt - term if self.step >= self.settings.warmup_steps else noise.prompt
        self.step += 1
        return (torch.cat([noise.unconditional, guided]), *output[1:])


def _extended(stacked: Tensor, extra: Tensor | None) -> Tensor:
    """Append rows to a batch of 2n: n of them, or one that is repeated n times."""
    assert extra is not None
    count = len(stacked) // 2
    return torch.cat([stacked, extra.to(stacked.dtype).expand(count, *extra.shape[1:])])


@contextmanager
def safely(pipeline: Any, settings: SafeGuidanceSettings) -> Iterator[None]:
    """Context in which a pipeline's guidance is safe latent diffusion; for one batch of images.

    Raises DataError for a pipeline that is not of the Stable Diffusion kind.
    """
    if not hasattr(pipeline, "unet"):
        raise io.DataError(f"safe guidance needs a pipeline of Stable Diffusion's kind, not {type(pipeline).__name__}")
    # Four values for SDXL, of which the third is the pooled embedding. A replaced text encoder reads the concept too.
    concept, _, *pooled = pipeline.encode_prompt(
        prompt=settings.concept,
        device=pipeline.unet.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
    )
    denoiser = SafeDenoiser(settings, concept, pooled[0] if pooled else None)
    hooks = [
        pipeline.unet.register_forward_pre_hook(denoiser.before, with_kwargs=True),
        pipeline.unet.register_forward_hook(denoiser.after),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
