"""Fine-tune a CLIP so that unsafe inputs land on safe ones: one loop for every method.

A method is a choice of targets, cross-modal loss, weights and curriculum (``MethodSettings``).  The
frozen model is never run here: its embeddings are looked up in the table that mining reads.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm import tqdm

from saferclip import adapters, io, metrics, models
from saferclip.config import ConfigError, TrainingSettings
from saferclip.models import Clip
from saferclip.provenance import digest, provenance
from saferclip.training import curriculum, inputs, losses
from saferclip.training.checkpoint import Checkpoint, file_digest
from saferclip.training.inputs import Split
from saferclip.training.losses import Embeddings, References

VALIDATION_BLOCK = 1024  # queries compared with the gallery at once

logger = logging.getLogger(__name__)


class DivergenceError(ConfigError):
    """The loss or its gradient is not a finite number any more; the message says what to try."""


@dataclass
class Progress:
    """How far a run is, and what it measured; plain values."""

    epoch: int = 0
    seconds: float = 0.0
    steps: list[dict[str, float]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)


def train(
    settings: TrainingSettings,
    seed: int,
    base_model: Path,
    train: Path,
    validation: Path,
    embeddings: Path,
    neighbours: Path,
    output: Path,
    state: Path,
) -> None:
    """Tune the base model by one method with one seed, and write the folder ``output``.

    It holds ``adapter/`` (PEFT's format), the merged model (open_clip's ``local-dir:`` format),
    ``steps.csv``, ``epochs.csv`` and ``record.json``.  ``state`` keeps the last epoch while the run
    goes on: called again with the same settings and inputs, the run ends as an unbroken one does.

    Raises DivergenceError, and writes no output, if the loss is not finite; ConfigError if the
    adapters do not fit the model; DataError if the inputs do not fit each other.
    """
    files = {"train": train, "validation": validation, "embeddings": embeddings, "neighbours": neighbours}
    files["base_model"] = base_model / models.WEIGHTS
    identity = {
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "inputs": {name: file_digest(path) for name, path in files.items()},
    }
    method, optimisation = settings.method, settings.optimisation
    device = models.default_device()
    _be_deterministic(device, seed)
    clip = models.load(base_model, device)
    tuner = Tuner(clip, adapters.attach(clip, optimisation.lora), settings)

    quadruples, held_out = (inputs.read_split(path, clip, torch.get_num_threads()) for path in (train, validation))
    targets = inputs.read_targets(method, train, neighbours)
    frozen = inputs.read_frozen(embeddings, targets)

    checkpoint = Checkpoint(state, digest(identity))
    progress = Progress(**(checkpoint.restore(tuner.weights, tuner.optimiser) or {}))
    for epoch in range(progress.epoch + 1, optimisation.epochs + 1):
        start = time.perf_counter()
        rows = curriculum.shuffled(curriculum.admitted(targets.difficulty, method.curriculum, epoch), seed, epoch)
        steps: list[dict[str, float]] = []
        for numbers in tuner.steps(rows, quadruples, frozen, f"epoch {epoch}/{optimisation.epochs}"):
            place = {"step": len(progress.steps) + len(steps) + 1, "epoch": epoch}
            _check_finite(place, numbers)
            steps.append({**place, "learning_rate": method.learning_rate, **numbers})
        loss = sum(step["loss"] for step in steps) / len(steps)
        scores = validation_scores(tuner.embed_all(held_out))
        progress.epochs.append({"epoch": epoch, "quadruples": len(rows), "loss": loss, **scores})
        progress.steps += steps
        progress.epoch = epoch
        progress.seconds += time.perf_counter() - start
        checkpoint.save(vars(progress), tuner.weights, tuner.optimiser)
        logger.info("epoch %d: loss %.4f, selection score %.2f", epoch, loss, scores["selection_score"])
    _write(output, tuner, progress, identity)
    checkpoint.remove()


class Tuner:
    """The model being tuned, its optimiser, and how quadruples go through it."""

    def __init__(self, clip: Clip, tuned: PeftModel, settings: TrainingSettings) -> None:
        self.clip = clip
        self.tuned = tuned
        self.settings = settings
        self.device = next(tuned.parameters()).device
        self.weights = adapters.weights(tuned)
        scale = settings.optimisation.logit_scale
        self.logit_scale = scale if isinstance(scale, float) else clip.model.get_parameter("logit_scale").exp().item()
        self.optimiser = torch.optim.Adam(self.weights.values(), lr=settings.method.learning_rate, fused=True)
        _, self.normalise = inputs.split_preprocess(clip.preprocess)

    def steps(
        self, rows: Tensor, quadruples: Split, frozen: References, description: str
    ) -> Iterator[dict[str, float]]:
        """Take one optimiser step for each batch of rows, yielding its numbers *before* the weights change.

        Gradients are those of the mean over the whole batch, however many micro-batches it is split
        into, for all terms but the contrastive ones: their negatives are those of the micro-batch.
        """
        method, optimisation = self.settings.method, self.settings.optimisation
        micro_batch = math.ceil(optimisation.batch_size / optimisation.accumulation)
        batches = [torch.split(batch, micro_batch) for batch in torch.split(rows, optimisation.batch_size)]
        pixels = quadruples.pictures.batches([part for parts in batches for part in parts])
        adapters.set_training_mode(self.tuned)
        # disable=None: tqdm is silent where the output is not a terminal.
        for parts in tqdm(batches, desc=description, disable=None):
            start = time.perf_counter()
            count = sum(len(part) for part in parts)
            sums = torch.zeros(len(losses.TERMS) + 1, device=self.device)
            for part in parts:
                embedded = self.embed(quadruples, part, next(pixels))
                terms = losses.terms(embedded, frozen.select(part, self.device), method.cross_modal, self.logit_scale)
                loss = losses.total(terms, method.weights)
                share = len(part) / count
                (share * loss).backward()  # type: ignore[no-untyped-call]
                sums += share * torch.stack([loss, *terms.values()]).detach()
            norm = nn.utils.clip_grad_norm_(self.weights.values(), optimisation.max_gradient_norm)
            numbers = dict(zip(("loss", *losses.TERMS), sums.tolist(), strict=True))
            numbers["gradient_norm"] = norm.item()
            numbers["quadruples_per_second"] = count / (time.perf_counter() - start)
            yield numbers
            self.optimiser.step()
            self.optimiser.zero_grad()

    def embed(self, quadruples: Split, rows: Tensor, pixels: Tensor) -> Embeddings:
        """Embed some rows, whose pixels are given: safe and unsafe inputs in one pass for each modality."""
        tokens = torch.cat([quadruples.safe_tokens[rows], quadruples.unsafe_tokens[rows]]).to(self.device)
        images = self.normalise(pixels.to(self.device).float() / 255)
        with models.autocast(self.device, self.settings.optimisation.precision):
            safe_text, unsafe_text = models.text_features(self.clip.model, tokens).chunk(2)
            safe_image, unsafe_image = models.image_features(self.clip.model, images).chunk(2)
        return Embeddings(safe_text, unsafe_text, safe_image, unsafe_image)

    @torch.no_grad()
    def embed_all(self, quadruples: Split) -> Embeddings:
        """Embed a whole split in evaluation mode: four tensors of shape (rows, dim) on the CPU."""
        self.tuned.eval()
        plan = torch.split(torch.arange(len(quadruples)), self.settings.optimisation.batch_size)
        batches = [
            self.embed(quadruples, rows, pixels)
            for rows, pixels in zip(plan, quadruples.pictures.batches(plan), strict=True)
        ]
        return Embeddings(*(torch.cat(columns).cpu() for columns in zip(*batches, strict=True)))


def validation_scores(embedded: Embeddings) -> dict[str, float]:
    """R@1 in percent in the four directions, and the score by which learning rates are selected.

    Safe queries search among safe items; unsafe ones among safe and unsafe ones, where the paired
    safe item is right.  The score is the harmonic mean of preservation (the mean of the two safe
    directions) and redirection (of the two unsafe ones): their plain mean would be highest for a
    model that is hardly tuned.
    """
    safe_text, unsafe_text, safe_image, unsafe_image = embedded
    searches = {
        "text_to_image": (safe_text, safe_image),
        "image_to_text": (safe_image, safe_text),
        "unsafe_text_to_image": (unsafe_text, torch.cat([safe_image, unsafe_image])),
        "unsafe_image_to_text": (unsafe_image, torch.cat([safe_text, unsafe_text])),
    }
    own = torch.arange(len(safe_text))
    scores = {
        f"{direction}/recall@1": metrics.recall_at(metrics.ranks(queries, gallery, own, VALIDATION_BLOCK), 1)
        for direction, (queries, gallery) in searches.items()
    }
    recalls = list(scores.values())
    preservation, redirection = sum(recalls[:2]) / 2, sum(recalls[2:]) / 2
    return {**scores, "selection_score": harmonic_mean([preservation, redirection])}


def _be_deterministic(device: torch.device, seed: int) -> None:
    """Let the seed decide everything: adapters' first weights, dropout, and on GPUs the kernels too."""
    torch.manual_seed(seed)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def _check_finite(place: Mapping[str, int], numbers: Mapping[str, float]) -> None:
    """Raise DivergenceError if a number is infinite or none at all."""
    if all(math.isfinite(number) for number in numbers.values()):
        return
    values = ", ".join(f"{name} {number:.4g}" for name, number in numbers.items() if name != "quadruples_per_second")
    raise DivergenceError(
        f"training diverged at step {place['step']} (epoch {place['epoch']}): {values}. "
        "Lower the method's learning_rate or optimisation.max_gradient_norm, or set optimisation.precision to fp32; "
        "if it happens in the first steps, look for wrong inputs"
    )


def _write(output: Path, tuner: Tuner, progress: Progress, identity: Mapping[str, Any]) -> None:
    """Write all results together, so that a folder under the final name is complete."""
    record = {
        "inputs_sha256": identity["inputs"],
        "tuned_parameters": sum(weight.numel() for weight in tuner.weights.values()),
        "quadruples": sum(epoch["quadruples"] for epoch in progress.epochs),
        "seconds": progress.seconds,
        "device": str(tuner.device),
        "threads": torch.get_num_threads(),
        "validation": progress.epochs[-1],
        "provenance": provenance(identity["settings"], identity["seed"]),
    }
    with io.atomic_path(output) as folder:
        adapters.save(tuner.tuned, folder / "adapter")
        models.save(folder, adapters.merge(tuner.tuned), tuner.clip.architecture)
        io.write_csv(folder / "steps.csv", progress.steps)
        io.write_csv(folder / "epochs.csv", progress.epochs)
        io.write_json(folder / "record.json", record)
