"""Train the base model of the mini scale: an ordinary contrastive CLIP, from scratch, on IconWorld.

It is trained once, in phases: captions of objects alone first, because colours and backgrounds are
so much easier to learn that they tell the scenes of a batch apart, and nothing is learnt of objects
as long as they are said.  Once objects are known it is the other way round, so scenes then come with
twins that differ in colours and background alone.  Every batch is a function of the seed and the step,
so a killed run goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from saferclip import io, models, workers
from saferclip.config import BaseModelTrainingSettings, SceneDetail, TrainingPhase
from saferclip.data import iconworld
from saferclip.data.iconworld import Detail, Scene, SceneObject
from saferclip.provenance import digest, provenance

logger = logging.getLogger(__name__)

# Real images dominate the web, so most scenes are "photographs"; every other style is present, as
# drawings are, or zero-shot classification could not work there.
STYLE_SHARES = {"photo": 0.4, "generated": 0.25} | dict.fromkeys(
    ("sketch", "sticker", "mosaic", *iconworld.HELD_OUT_STYLES), 0.07
)
POOL_SCENES = 100_000  # distinct scenes of a phase: 1.2 GB of pixels; captions are drawn anew each time
LONGEST_SHIFT = 3  # pixels; the only image augmentation
WARM_UP_STEPS = 100
HIGHEST_LOGIT_SCALE = math.log(100)  # as in CLIP
STEPS_PER_CHECKPOINT = 200
VALIDATION_SCENES = 1000
NO_PHASE = TrainingPhase(captions="default", samples=1, learning_rate=1, single_object_share=0, negatives="random")
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)


@dataclass(frozen=True)
class Pool:
    """Rendered scenes: pixels of shape (n, 3, size, size), uint8, and what each shows."""

    images: Tensor
    scenes: list[Scene]


def train(settings: BaseModelTrainingSettings, output: Path, state: Path) -> None:
    """Train through all phases and write an open_clip model folder with its record.

    ``state`` holds the last checkpoint while the run goes on; it is outside ``output`` because
    Snakemake deletes the outputs of a failed job.
    """
    torch.manual_seed(settings.seed)
    model = CLIP(**settings.architecture).to(memory_format=torch.channels_last)
    size = settings.architecture["vision_cfg"]["image_size"]
    tokenize = open_clip.SimpleTokenizer(context_length=settings.architecture["text_cfg"]["context_length"])
    validation = draw_pool(settings.seed, NO_PHASE, size, VALIDATION_SCENES, stream=0)
    checkpoint = Checkpoint(state / "checkpoint.pt", digest(settings.model_dump(mode="json")))
    reached, start, rows = checkpoint.restore_model(model)
    for number, phase in enumerate(settings.phases[reached:], start=reached):
        optimizer = _optimizer(model, phase, settings.weight_decay)
        if start:
            checkpoint.restore_optimizer(optimizer)
        scenes = min(POOL_SCENES, phase.samples)
        pool = draw_pool(settings.seed, phase, size, scenes, stream=number + 1)
        for step, loss in _steps(model, optimizer, settings, phase, pool, tokenize, number, start):
            last = step + 1 == _number_of_steps(settings, phase)
            if (step + 1) % STEPS_PER_CHECKPOINT == 0 or last:
                recall = _recall(model, settings, validation, tokenize)
                rows.append({"phase": number, "step": step + 1, "loss": loss, **recall})
                logger.info("phase %d, step %d: loss %.3f, %s", number, step + 1, loss, recall)
                position = (number + 1, 0) if last else (number, step + 1)
                checkpoint.save(model, optimizer, *position, rows)
        start = 0
    _write(settings, model, rows, output)
    checkpoint.remove()


def draw_pool(seed: int, phase: TrainingPhase, size: int, count: int, stream: int) -> Pool:
    """Draw and render random scenes, in parallel; a function of the arguments alone.

    ``count`` must be even; of a phase with twins, every odd scene is the twin of the one before it.
    """
    seeds = np.random.SeedSequence([seed, stream]).spawn(math.ceil(count / 1000))
    job = partial(_draw_chunk, phase=phase, size=size, count=min(1000, count))
    images, scenes = [], []
    with workers.pool() as processes:
        for pixels, drawn in tqdm(processes.map(job, seeds), total=len(seeds), desc="scenes", disable=None):
            images.append(torch.from_numpy(pixels))
            scenes.extend(drawn)
    return Pool(torch.cat(images), scenes)


def _draw_chunk(
    seed: np.random.SeedSequence, phase: TrainingPhase, size: int, count: int
) -> tuple[NDArray[np.uint8], list[Scene]]:
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scenes.append(_random_scene(rng, phase.single_object_share))
        if phase.negatives == "twins":
            scenes.append(_twin(rng, scenes[-1]))
    pixels = np.stack([iconworld.render(scene, size) for scene in scenes])
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), scenes


def _twin(rng: np.random.Generator, scene: Scene) -> Scene:
    """The same objects, as often and in the same style, in other colours, on another background, placed anew."""
    colours = {item: _other(rng, tuple(iconworld.COLOURS), item.colour) for item in dict.fromkeys(scene.objects)}
    return Scene(
        objects=tuple(SceneObject(item.concept, colours[item]) for item in scene.objects),
        background=_other(rng, iconworld.BACKGROUNDS, scene.background),
        style=scene.style,
        layout_seed=int(rng.integers(2**31)),
    )


def _other(rng: np.random.Generator, values: Sequence[str], value: str) -> str:
    rest = [other for other in values if other != value]
    return rest[int(rng.integers(len(rest)))]


def _random_scene(rng: np.random.Generator, single_object_share: float) -> Scene:
    """One to four copies of one object with the given probability, else two or three objects."""
    style = str(rng.choice(list(STYLE_SHARES), p=list(STYLE_SHARES.values())))
    concepts = tuple(iconworld.concepts())
    if rng.random() < single_object_share:
        count = int(rng.choice([1, 1, 1, 2, 3, 4]))
        return iconworld.count_scene(rng, concepts[int(rng.integers(len(concepts)))], count, style=style)
    return iconworld.sample_scene(rng, concepts, style=style)


def _number_of_steps(settings: BaseModelTrainingSettings, phase: TrainingPhase) -> int:
    return math.ceil(phase.samples / settings.batch_size)


def _steps(
    model: CLIP,
    optimizer: torch.optim.Optimizer,
    settings: BaseModelTrainingSettings,
    phase: TrainingPhase,
    pool: Pool,
    tokenize: Any,
    number: int,
    start: int,
) -> Iterator[tuple[int, float]]:
    """Take the optimizer steps of one phase, yielding each step's number and loss."""
    detail = caption_detail(settings.detail, phase.captions)
    total = _number_of_steps(settings, phase)
    for step in tqdm(range(start, total), initial=start, total=total, desc=f"phase {number}", disable=None):
        rng = np.random.default_rng([settings.seed, number, step])
        rows = _rows(rng, len(pool.scenes), settings.batch_size)
        captions = [iconworld.describe(pool.scenes[row], rng, detail) for row in rows]
        images = _shift(pool.images[torch.from_numpy(rows)], rng)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = _rate(phase.learning_rate, step, total)
        model.train()
        with models.autocast("cpu", settings.precision):
            image_features = models.image_features(model, images)
            text_features = models.text_features(model, tokenize(captions))
        logits = model.logit_scale.exp() * image_features @ text_features.T
        labels = torch.arange(len(logits))
        loss = (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, HIGHEST_LOGIT_SCALE)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"phase {number}, step {step}: the loss is {loss.item()}; lower the learning rate")
        yield step, loss.item()


def _rows(rng: np.random.Generator, scenes: int, batch_size: int) -> NDArray[np.int64]:
    """Random pairs of neighbouring scenes, which are twins where the phase has twins."""
    pairs = rng.choice(scenes // 2, math.ceil(batch_size / 2), replace=scenes < batch_size)
    return (2 * pairs[:, None] + np.arange(2)).ravel()[:batch_size]


def caption_detail(default: SceneDetail, captions: str) -> Detail:
    """The amount of detail that a phase's setting ``captions`` asks for."""
    if captions == "objects":
        return Detail(max_objects=None, colour=0, background=0)
    if captions == "full":
        return iconworld.FULL_DETAIL
    return Detail(max_objects=default.named_objects, colour=default.colour, background=default.background)


def _normalise(images: Tensor) -> Tensor:
    """CLIP's preprocessing of pictures that have the model's size already."""
    scaled = (images.float() / 255 - MEAN) / STD
    return scaled.contiguous(memory_format=torch.channels_last)


def _shift(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Move the whole batch by a few pixels, repeating the border."""
    size = images.shape[-1]
    left, top = (int(offset) for offset in rng.integers(0, 2 * LONGEST_SHIFT + 1, 2))
    padded = functional.pad(_normalise(images), [LONGEST_SHIFT] * 4, mode="replicate")
    return padded[:, :, top : top + size, left : left + size].contiguous(memory_format=torch.channels_last)


def _rate(highest: float, step: int, total: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    return highest * warm_up * 0.5 * (1 + math.cos(math.pi * step / total))


def _optimizer(model: CLIP, phase: TrainingPhase, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; gains, biases and the logit scale do not decay, as in CLIP."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=phase.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True)


@torch.inference_mode()
def _recall(model: CLIP, settings: BaseModelTrainingSettings, pool: Pool, tokenize: Any) -> dict[str, float]:
    """Text-to-image recall@1 in percent on held-out scenes, for every kind of caption."""
    model.eval()
    images = torch.cat([models.image_features(model, _normalise(batch)) for batch in torch.split(pool.images, 250)])
    result = {}
    for captions in ("objects", "full", "default"):
        rng = np.random.default_rng(settings.seed)
        detail = caption_detail(settings.detail, captions)
        tokens = tokenize([iconworld.describe(scene, rng, detail) for scene in pool.scenes])
        texts = models.text_features(model, tokens)
        correct = (texts @ images.T).argmax(dim=1) == torch.arange(len(texts))
        result[f"recall@1_{captions}"] = 100 * correct.float().mean().item()
    return result


@dataclass(frozen=True)
class Checkpoint:
    """The run's state on disk: weights, optimizer, position and the numbers so far."""

    path: Path
    settings_digest: str

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            stored: dict[str, Any] = torch.load(self.path, weights_only=True)
            digest = stored["settings"]
        except Exception as error:  # of many kinds, depending on what the file is instead
            raise io.DataError(
                f"{self.path}: cannot be read as a state of training, and nothing in it was executed "
                f"({str(error).partition('.')[0]}); delete it to begin anew"
            ) from error
        if digest != self.settings_digest:
            logger.warning("%s belongs to other settings; starting anew", self.path)
            return None
        return stored

    def restore_model(self, model: CLIP) -> tuple[int, int, list[dict[str, float]]]:
        """Load the stored weights, if any; return phase and step to go on from and the rows of steps.csv so far."""
        stored = self._read()
        if stored is None:
            return 0, 0, []
        model.load_state_dict(stored["model"])
        return stored["phase"], stored["step"], stored["rows"]

    def restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Load the optimizer's state of the phase that was interrupted."""
        stored = self._read()
        assert stored is not None
        optimizer.load_state_dict(stored["optimizer"])

    def save(
        self, model: CLIP, optimizer: torch.optim.Optimizer, phase: int, step: int, rows: list[dict[str, float]]
    ) -> None:
        """Write the state so that a kill leaves the old one or the new one."""
        state = {
            "settings": self.settings_digest,
            "phase": phase,
            "step": step,
            "rows": rows,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        with io.atomic_path(self.path) as temporary:
            torch.save(state, temporary)

    def remove(self) -> None:
        """Forget the state of a run that ended."""
        self.path.unlink(missing_ok=True)


def _write(settings: BaseModelTrainingSettings, model: CLIP, rows: list[dict[str, float]], output: Path) -> None:
    """Store weights in half precision: the vocabulary's 49,408 rows are most of the file."""
    architecture = {
        "model_cfg": settings.architecture,
        "preprocess_cfg": {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)},
    }
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    models.save(output, state, architecture)
    io.write_csv(output / "steps.csv", rows)
    io.write_json(
        output / "record.json",
        {"final": rows[-1], "provenance": provenance(settings.model_dump(mode="json"), settings.seed)},
    )
