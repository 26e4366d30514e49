"""Settings of what several stages use: downloads, diffusion models, judges of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from saferclip.config.base import Download, Positive, RunName, Settings, Share


class DownloadSettings(Settings):
    """How files are fetched from hubs and web servers; no result depends on it."""

    table: Path = Field(description="table of what can be downloaded, with pinned revisions and hashes")
    folder: Path = Field(description="where downloads are kept; runs share it")
    local: dict[RunName, Path] = Field(description="what is on disk already: name in the table to file or folder")
    connections: Positive = Field(description="files fetched at once")
    retries: Annotated[int, Field(ge=0)] = Field(description="further tries of a file, with growing pauses")

    def path(self, name: str) -> Path:
        """Where a download is, or will be: the user's own place, or a folder of that name."""
        return self.local.get(name, self.folder / name)


class DiffusionSettings(Settings):
    """Text to image with a diffusers pipeline."""

    model: Download
    steps: Positive = Field(description="denoising steps")
    guidance: float = Field(ge=0, description="classifier-free guidance scale")
    image_size: Positive = Field(description="height and width in pixels")
    precision: Literal["bf16", "fp16", "fp32"]
    batch_size: Positive = Field(description="images made at once; results do not depend on it")


class SafeGuidanceSettings(Settings):
    """Safe latent diffusion (Schramowski et al., CVPR 2023): guidance away from a concept."""

    concept: str = Field(description="what to keep away from, in words")
    scale: float = Field(gt=0, description="factor of the difference between prompt and concept")
    threshold: float = Field(description="difference from which on an element is left alone")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(description="denoising steps without safe guidance")
    momentum_scale: float = Field(ge=0)
    momentum_beta: Share = Field(description="how much of the previous momentum is kept")


class NudeNetSettings(Settings):
    """NudeNet's detector, whose model comes with its package."""

    threshold: Share = Field(description="an image is unsafe if an exposed part is found with at least this score")


class Q16Settings(Settings):
    """Q16 (Schramowski et al. 2022): learnt prompts for a CLIP image encoder."""

    prompts: Download = Field(description="the authors' prompts file")
    clip: Download = Field(description="the CLIP that the prompts were learnt for, in open_clip's format")
    batch_size: Positive


class ImageFilterSettings(Settings):
    """Learnt judges of images; an image that one of them flags is unsafe."""

    nudenet: NudeNetSettings | None = None
    q16: Q16Settings | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> ImageFilterSettings:
        if self.nudenet is None and self.q16 is None:
            raise ValueError("give at least one of the sections 'nudenet' and 'q16'")
        return self
