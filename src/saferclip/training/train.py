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
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm import tqdm

from saferclip import adapters, io, models
from saferclip.config import ConfigError, TrainingSettings
from saferclip.mining.embedding import spread
from saferclip.models import Clip
from saferclip.provenance import digest, provenance
from saferclip.training import curriculum, inputs, losses
from saferclip.training.checkpoint import Checkpoint, file_digest
from saferclip.training.inputs import Images, Split, Targets
from saferclip.training.losses import Embeddings, References
from saferclip.training.validation import SELECTION_SCORE, validation_rows, validation_scores

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
    frozen = inputs.read_frozen(embeddings, targets, quadruples.images)
    rows_used = _rows_used(settings, targets, frozen)
    _log_gaps(rows_used, held_out.images)

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
        scores = validation_scores(tuner.embed_all(held_out), held_out.images)
        progress.epochs.append({"epoch": epoch, "quadruples": len(rows), "loss": loss, **scores})
        progress.steps += steps
        progress.epoch = epoch
        progress.seconds += time.perf_counter() - start
        checkpoint.save(vars(progress), tuner.weights, tuner.optimiser)
        score = f"{scores[SELECTION_SCORE]:.2f}" if scores else "cannot be measured"
        logger.info("epoch %d: loss %.4f, selection score %s", epoch, loss, score)
    _write(output, tuner, progress, identity, {"rows": rows_used, "validation_rows": validation_rows(held_out.images)})
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

        Gradients are those of the mean over the rows of the whole batch that take part in a term, however many
        micro-batches it is split into, for all terms but the contrastive ones: their negatives are those of the
        micro-batch.  Terms in which no row takes part have no number.
        """
        method, optimisation = self.settings.method, self.settings.optimisation
        micro_batch = math.ceil(optimisation.batch_size / optimisation.accumulation)
        batches = [torch.split(batch, micro_batch) for batch in torch.split(rows, optimisation.batch_size)]
        pixels = quadruples.pictures.batches([part for parts in batches for part in parts])
        taking_part = frozen.taking_part(method.cross_modal)
        adapters.set_training_mode(self.tuned)
        # disable=None: tqdm is silent where the output is not a terminal.
        for parts in tqdm(batches, desc=description, disable=None):
            start = time.perf_counter()
            count = sum(len(part) for part in parts)
            sums = torch.zeros(len(losses.TERMS) + 1, device=self.device)
            used = _counts(taking_part, torch.cat(parts))
            for part in parts:
                embedded, references = self.embed(quadruples, part, next(pixels)), frozen.select(part, self.device)
                own = _counts(taking_part, part)
                shares = {name: own[name] / used[name] if used[name] else 0.0 for name in own}
                sums += self._backward(embedded, references, shares)
            norm = nn.utils.clip_grad_norm_(self.weights.values(), optimisation.max_gradient_norm)
            numbers = dict(zip(("loss", *losses.TERMS), sums.tolist(), strict=True))
            numbers = {name: number for name, number in numbers.items() if used.get(name, count)}
            numbers["gradient_norm"] = norm.item()
            numbers["quadruples_per_second"] = count / (time.perf_counter() - start)
            yield numbers
            self.optimiser.step()
            self.optimiser.zero_grad()

    def _backward(self, embedded: Embeddings, frozen: References, shares: Mapping[str, float]) -> Tensor:
        """Add a micro-batch's gradients; its loss and terms, (1 + terms,), as what they add to those of the batch.

        ``shares`` says how many of the batch's rows that take part in a term are in this micro-batch.
        """
        method = self.settings.method
        terms = losses.terms(embedded, frozen, method.cross_modal, self.logit_scale)
        loss = losses.contribution(terms, shares, method.weights)
        loss.backward()  # type: ignore[no-untyped-call]
        return torch.stack([loss, *(shares[name] * term for name, term in terms.items())]).detach()

    def embed(self, quadruples: Split, rows: Tensor, pixels: Tensor) -> Embeddings:
        """Embed some rows, whose pixels are given: safe and unsafe inputs in one pass for each modality.

        Where an image is withheld, its row is zero.
        """
        tokens = torch.cat([quadruples.safe_tokens[rows], quadruples.unsafe_tokens[rows]]).to(self.device)
        images = self.normalise(pixels.to(self.device).float() / 255)
        there = quadruples.images.select(rows)
        with models.autocast(self.device, self.settings.optimisation.precision):
            safe_text, unsafe_text = models.text_features(self.clip.model, tokens).chunk(2)
            dim = safe_text.shape[1]
            features = models.image_features(self.clip.model, images) if len(images) else safe_text.new_zeros(0, dim)
        parts = torch.split(features, [int(column.sum()) for column in there])
        safe_image, unsafe_image = (spread(part, column, dim) for part, column in zip(parts, there, strict=True))
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


def _rows_used(settings: TrainingSettings, targets: Targets, frozen: References) -> dict[str, dict[str, int]]:
    """How many rows take part in each term of the loss, over all epochs, and how many are left out of it."""
    taking_part = frozen.taking_part(settings.method.cross_modal)
    epochs = range(1, settings.optimisation.epochs + 1)
    rows = torch.cat([curriculum.admitted(targets.difficulty, settings.method.curriculum, epoch) for epoch in epochs])
    used = _counts(taking_part, rows)
    return {name: {"used": count, "left_out": len(rows) - count} for name, count in used.items()}


def _counts(taking_part: Mapping[str, Tensor], rows: Tensor) -> dict[str, int]:
    """How many of some rows take part in each term."""
    return {name: int(there[rows].sum()) for name, there in taking_part.items()}


def _log_gaps(rows: Mapping[str, Mapping[str, int]], held_out: Images) -> None:
    """Say what withheld images mean for this run; nothing where all images are there."""
    for name, counts in rows.items():
        if counts["left_out"]:
            total = counts["used"] + counts["left_out"]
            logger.warning("%s: %d of %d rows take part, the others lack an image", name, counts["used"], total)
    measured = validation_rows(held_out)
    if any(count < len(held_out.safe) for count in measured.values()):
        rows_of = ", ".join(f"{direction} {count}" for direction, count in measured.items())
        logger.warning("validation: rows that take part, of %d: %s", len(held_out.safe), rows_of)


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


def _write(
    output: Path, tuner: Tuner, progress: Progress, identity: Mapping[str, Any], rows: Mapping[str, Any]
) -> None:
    """Write all results together, so that a folder under the final name is complete."""
    record = {
        "inputs_sha256": identity["inputs"],
        "tuned_parameters": sum(weight.numel() for weight in tuner.weights.values()),
        "quadruples": sum(epoch["quadruples"] for epoch in progress.epochs),
        **rows,
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
