"""Refuse weights in an architecture with the other activation, which runs without an error and is only worse.

OpenAI's weights, and some others, were trained with QuickGELU, x * sigmoid(1.702 x); most with GELU.  What a
source says of it is compared with the architecture; then the model itself is asked, since files may say nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP, QuickGELU
from open_clip.transformer import TextTransformer, VisionTransformer
from PIL import Image
from torch import nn
from torch.nn import functional

from saferclip import models, statistics
from saferclip.base_model.formats import Declared
from saferclip.config import ConfigError
from saferclip.data import iconworld
from saferclip.data.iconworld import Detail

PAIRS = 256
SEED = 20260105
BATCH_SIZE = 16
RESAMPLES = 10_000
CONFIDENCE = 99.0  # percent

NAMES = {False: "GELU", True: "QuickGELU"}

logger = logging.getLogger(__name__)


class ActivationError(ConfigError):
    """Weights were trained with another activation than the architecture has; the message says what to write."""


class Verdict(NamedTuple):
    """Contrastive losses on the probe, in nats, and 99% intervals of what decides."""

    declared: float  # loss with the architecture's own activation
    other: float
    advantage: statistics.Interval  # of the other activation: loss saved
    knowledge: statistics.Interval  # of the other activation: loss saved against guessing

    @property
    def wrong(self) -> bool:
        """Whether the weights are clearly better with the other activation.

        Guessing counts, because an untrained model is indifferent to what its loss happens to be.
        """
        return self.advantage.low > 0 and self.knowledge.low > 0


def check_declared(model_cfg: dict[str, Any], declared: Iterable[Declared], remedy: str) -> None:
    """Raise ActivationError if something said of the weights contradicts the architecture."""
    quick_gelu = bool(model_cfg.get("quick_gelu", False))
    for said in declared:
        if said.quick_gelu != quick_gelu:
            raise ActivationError(
                f"these weights were trained with {NAMES[said.quick_gelu]}, says {said.where}, but the architecture "
                f"computes {NAMES[quick_gelu]}, which runs and is wrong; {remedy}"
            )


def check_behaviour(clip: models.Clip, quick_gelu: bool, remedy: str) -> None:
    """Raise ActivationError if the model is clearly better at a fixed task with the other activation."""
    if not any(_blocks(clip.model)):
        logger.info("no layer of this architecture depends on quick_gelu, so it cannot be wrong")
        return
    found = probe(clip)
    text = f"loss {found.declared:.3f} with {NAMES[quick_gelu]} and {found.other:.3f} with {NAMES[not quick_gelu]}"
    if found.wrong:
        raise ActivationError(
            f"these weights were trained with {NAMES[not quick_gelu]}, but the architecture computes "
            f"{NAMES[quick_gelu]}, which runs and is wrong: {text} on {PAIRS} drawn pairs of image and caption "
            f"(99% interval of the difference {found.advantage.low:.3f} to {found.advantage.high:.3f}); {remedy}"
        )
    logger.info("activation: %s on %d pairs of image and caption", text, PAIRS)


def other_name(architecture: str) -> str | None:
    """open_clip's name of the same architecture with the other activation, if it has one."""
    suffix = "-quickgelu"
    other = architecture.removesuffix(suffix) if architecture.endswith(suffix) else architecture + suffix
    return other if other in open_clip.list_models() else None


def probe(clip: models.Clip) -> Verdict:
    """Compare both activations by the contrastive loss of the same pairs, at the model's own logit scale."""
    model: Any = clip.model
    images, captions = pairs(model.visual.image_size)
    declared = _losses(clip, images, captions, "probe")
    with other_activation(clip.model):
        other = _losses(clip, images, captions, "probe, other activation")
    guessing = math.log(PAIRS)
    return Verdict(
        declared=float(declared.mean()),
        other=float(other.mean()),
        advantage=_interval(declared - other),
        knowledge=_interval(guessing - other),
    )


def pairs(image_size: Any) -> tuple[list[Image.Image], list[str]]:
    """The fixed probe: pictures of two or three safe objects each, and captions that name these.

    ``image_size`` is a number, or height and width.  Of single objects, a model that knows them makes too few
    mistakes for the activation to show.
    """
    size = image_size if isinstance(image_size, int) else image_size[0]
    rng = np.random.default_rng(SEED)
    unsafe = set(iconworld.unsafe_concepts())
    safe = [name for name in iconworld.concepts() if name not in unsafe]
    scenes = [iconworld.sample_scene(rng, safe, style="photo") for _ in range(PAIRS)]
    detail = Detail(colour=0, background=0, max_objects=None)
    return (
        [Image.fromarray(iconworld.render(scene, size)) for scene in scenes],
        [iconworld.describe(scene, rng, detail) for scene in scenes],
    )


@contextmanager
def other_activation(model: nn.Module) -> Iterator[None]:
    """Context in which QuickGELU stands where GELU was, and the other way, wherever ``quick_gelu`` decides."""
    before = [(block, block.mlp.gelu) for block in _blocks(model)]
    try:
        for block, activation in before:
            block.mlp.gelu = nn.GELU() if isinstance(activation, QuickGELU) else QuickGELU()
        yield
    finally:
        for block, activation in before:
            block.mlp.gelu = activation


def _blocks(model: nn.Module) -> Iterator[Any]:
    """Residual blocks whose activation is chosen by ``quick_gelu``; towers of other libraries have their own."""
    towers: list[Any] = [
        getattr(model, "visual", None),
        model if isinstance(model, CLIP) else getattr(model, "text", None),
    ]
    for tower in towers:
        if isinstance(tower, (VisionTransformer, CLIP, TextTransformer)):
            yield from (block for block in tower.transformer.resblocks if hasattr(block.mlp, "gelu"))


def _losses(clip: models.Clip, images: list[Image.Image], captions: list[str], name: str) -> NDArray[np.float64]:
    """The contrastive loss of each pair, shape (pairs,): mean of both directions."""
    image = models.encode_images(clip, images, BATCH_SIZE, len(images), f"{name}: pictures")
    text = models.encode_texts(clip, captions, BATCH_SIZE, f"{name}: captions")
    logits = clip.model.get_parameter("logit_scale").exp().item() * image @ text.T
    own = torch.arange(len(captions))
    both = [functional.cross_entropy(side, own, reduction="none") for side in (logits, logits.T)]
    losses: NDArray[np.float64] = (torch.stack(both).mean(dim=0)).double().numpy()
    return losses


def _interval(values: NDArray[np.float64]) -> statistics.Interval:
    """Mean with its 99% bootstrap interval over pairs."""
    means = statistics.bootstrap_means(values, RESAMPLES, SEED)
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return statistics.Interval(float(values.mean()), float(low), float(high))
