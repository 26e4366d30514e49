"""Fine-tune a CLIP so that unsafe inputs land on safe ones: one loop for every method.

A method is a choice of targets, cross-modal loss, weights and curriculum (``MethodSettings``), or of terms in
hyperbolic space (``HyperbolicMethod``), whose numbers are trained and saved with the adapters.  The
frozen model is never run here: its embeddings are looked up in the table that mining reads.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saferclip import io, models, signals, similarity, tuners
from saferclip.config import ConfigError, TrainingSettings
from saferclip.heads import SECTION, Head
from saferclip.mining.embedding import pixels_file
from saferclip.provenance import digest, file_digest, provenance
from saferclip.training import curriculum, inputs, losses, processes
from saferclip.training.checkpoint import Checkpoint
from saferclip.training.inputs import Images, Split, Stored, Targets
from saferclip.training.losses import References
from saferclip.training.processes import Processes
from saferclip.training.progress import Keeper, Progress
from saferclip.training.tuner import CLOCK, Tuner, counts
from saferclip.training.validation import SELECTION_SCORE, validation_rows, validation_scores

logger = logging.getLogger(__name__)


class DivergenceError(ConfigError):
    """The loss, its gradient or an embedding is not a finite number any more; the message says what to try."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}. Lower the method's learning_rate or optimisation.max_gradient_norm, or set "
            "optimisation.precision to fp32; if it happens in the first steps, look for wrong inputs"
        )


@dataclass(frozen=True)
class Material:
    """What a run works on: the model, and all that it is fed with."""

    tuner: Tuner
    quadruples: Split
    held_out: Split
    targets: Targets
    frozen: References


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

    It holds ``adapter/`` (PEFT's format, or masks), the merged model (open_clip's ``local-dir:`` format),
    ``steps.csv``, ``epochs.csv`` and ``record.json``.  ``state`` keeps the last step that was saved while
    the run goes on: called again with the same settings and inputs, the run ends as an unbroken one does.
    Where torchrun has started several processes, they share each batch, and the first one writes.
    Pixels are read from the files that the embedding step may have written beside the embeddings.

    Raises DivergenceError, and writes no output, if the loss is not finite; ConfigError if the
    adapters do not fit the model, a GPU is too small, or there are fewer GPUs than processes; DataError if the
    inputs do not fit each other, or if another process was killed; Ended, with the state saved, if a signal
    asks for it.
    """
    files = {"train": train, "validation": validation, "embeddings": embeddings, "neighbours": neighbours}
    with processes.connected() as group:
        identity = group.from_first(
            lambda: _identity(settings, seed, {**files, "base_model": base_model / models.WEIGHTS})
        )
        stored = _stored(embeddings.parent, identity["inputs"])
        material = _read(settings, seed, base_model, files, stored, group)
        tuner, held_out = material.tuner, material.held_out
        rows_used = _rows_used(settings, material)
        _log_gaps(rows_used, held_out.images)

        checkpoint = Checkpoint(state, digest(identity), group)
        progress = Progress(**(checkpoint.restore(tuner.weights, tuner.optimiser) or {}))
        with signals.deferred() as request, _gpu_memory():
            keeper = Keeper(checkpoint, tuner, progress, request)
            for epoch in range(progress.epoch + 1, settings.optimisation.epochs + 1):
                _epoch(epoch, seed, material, keeper)
        _log_waiting(progress)
        if group.first:
            rows = {"rows": rows_used, "validation_rows": validation_rows(held_out.images)}
            _write(output, tuner, progress, identity, rows)
            checkpoint.remove()


def _identity(settings: TrainingSettings, seed: int, files: Mapping[str, Path]) -> dict[str, Any]:
    """All that decides what a run's numbers are."""
    return {
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "inputs": {name: file_digest(path) for name, path in files.items()},
    }


def _stored(folder: Path, digests: Mapping[str, str]) -> dict[str, Stored]:
    """Which splits have a file of pixels."""
    files = {split: folder / pixels_file(split) for split in ("train", "validation")}
    return {split: Stored(file, digests[split]) for split, file in files.items() if file.exists()}


def _read(
    settings: TrainingSettings,
    seed: int,
    base_model: Path,
    files: Mapping[str, Path],
    stored: Mapping[str, Stored],
    group: Processes,
) -> Material:
    """Load the model, put fresh adapters or masks on it, and read all tables."""
    device = models.default_device()
    _warn_of_slow_precision(device, settings.optimisation.precision)
    _be_deterministic(device, seed)
    clip = models.load(base_model, device)
    tuner = Tuner(clip, tuners.attach(clip, settings), settings, group)
    group.align(tuner.weights.values(), seed)
    quadruples, held_out = (
        inputs.read_split(files[split], clip, stored.get(split), group.count) for split in ("train", "validation")
    )
    targets = inputs.read_targets(settings.method, files["train"], files["neighbours"])
    labels = inputs.read_labels(settings.method, files["train"])
    frozen = inputs.read_frozen(files["embeddings"], targets, quadruples.images, labels)
    return Material(tuner, quadruples, held_out, targets, frozen)


def _epoch(epoch: int, seed: int, material: Material, keeper: Keeper) -> None:
    """Take the steps of an epoch that are still to be taken, and validate."""
    tuner, progress, targets = material.tuner, keeper.progress, material.targets
    method, optimisation = tuner.settings.method, tuner.settings.optimisation
    rows = curriculum.shuffled(curriculum.admitted(targets.difficulty, method.curriculum, epoch), seed, epoch)
    remaining = rows[progress.taken * optimisation.batch_size :]
    description = f"epoch {epoch}/{optimisation.epochs}"
    for numbers in tuner.steps(remaining, material.quadruples, material.frozen, description):
        place = {"step": len(progress.steps) + 1, "epoch": epoch}
        _check_finite(place, numbers)
        progress.add_step({**place, "learning_rate": method.learning_rate, **numbers})
        keeper.pause()
    losses = [step["loss"] for step in progress.steps if step["epoch"] == epoch]
    loss = sum(losses) / len(losses)
    embedded = tuner.embed_all(material.held_out, keeper.pause)
    if not all(column.isfinite().all() for column in embedded):
        raise DivergenceError(f"training diverged in epoch {epoch}: embeddings of the validation split are not finite")
    images = material.held_out.images
    head = tuner.space.head(embedded, images) if tuner.space else None
    scores = validation_scores(embedded, images, head)
    learnt = head.model_dump(exclude_none=True) if head else {}
    progress.add_epoch({"epoch": epoch, "quadruples": len(rows), "loss": loss, **learnt, **scores})
    keeper.save()
    score = f"{scores[SELECTION_SCORE]:.2f}" if scores else "cannot be measured"
    logger.info("epoch %d: loss %.4f, selection score %s", epoch, loss, score)


def _rows_used(settings: TrainingSettings, material: Material) -> dict[str, dict[str, int]]:
    """How many rows take part in each term of the loss, over all epochs, and how many are left out of it."""
    method, targets = settings.method, material.targets
    taking_part = material.frozen.taking_part(method.cross_modal, losses.active(method.weights))
    epochs = range(1, settings.optimisation.epochs + 1)
    rows = torch.cat([curriculum.admitted(targets.difficulty, method.curriculum, epoch) for epoch in epochs])
    used = counts(taking_part, rows)
    return {name: {"used": count, "left_out": len(rows) - count} for name, count in used.items()}


def _log_gaps(rows: Mapping[str, Mapping[str, int]], held_out: Images) -> None:
    """Say what withheld images and labels mean for this run; nothing where every row takes part in every term."""
    for name, row in rows.items():
        if row["left_out"]:
            total = row["used"] + row["left_out"]
            logger.warning(
                "%s: %d of %d rows take part, the others lack an image or are labelled otherwise",
                *(name, row["used"], total),
            )
    measured = validation_rows(held_out)
    if any(count < len(held_out.safe) for count in measured.values()):
        rows_of = ", ".join(f"{direction} {count}" for direction, count in measured.items())
        logger.warning("validation: rows that take part, of %d: %s", len(held_out.safe), rows_of)


def _log_waiting(progress: Progress) -> None:
    """Say how much of the steps' time went by without pixels to work on: whether reading them keeps up."""
    seconds = [1 / step["quadruples_per_second"] for step in progress.steps]  # of a quadruple; batches are alike
    shares = [step.get("waiting_for_pixels", 0.0) for step in progress.steps]  # a state from before has none
    waited = sum(time * share for time, share in zip(seconds, shares, strict=True))
    logger.info("waited for pixels in %.1f%% of the time of all steps", 100 * waited / sum(seconds))


def _warn_of_slow_precision(device: torch.device, precision: str) -> None:
    """Say so if a processor has to compute bf16 products without instructions for them."""
    if device.type == "cpu" and precision == "bf16" and similarity.fastest() != torch.bfloat16:
        logger.warning(
            "optimisation.precision is bf16, for which this processor has no instructions: training may take many "
            "times as long as with fp32"
        )


def _be_deterministic(device: torch.device, seed: int) -> None:
    """Let the seed decide everything: adapters' first weights, dropout, and on GPUs the kernels too."""
    torch.manual_seed(seed)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


@contextmanager
def _gpu_memory() -> Iterator[None]:
    """Raise ConfigError, which says what to try, where the memory of a GPU does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{str(error).partition('. ')[0]}: train on more GPUs, which share each batch (gpu), or raise "
            "optimisation.accumulation, which splits it into smaller parts with fewer negatives each"
        ) from error


def _check_finite(place: Mapping[str, int], numbers: Mapping[str, float]) -> None:
    """Raise DivergenceError if a number is infinite or none at all."""
    if all(math.isfinite(number) for number in numbers.values()):
        return
    values = ", ".join(f"{name} {number:.4g}" for name, number in numbers.items() if name not in CLOCK)
    raise DivergenceError(f"training diverged at step {place['step']} (epoch {place['epoch']}): {values}")


def _architecture(tuner: Tuner, progress: Progress) -> dict[str, Any]:
    """That of the base model, with the head of the last epoch where the method has a space of its own."""
    if not tuner.space:
        return tuner.clip.architecture
    last = progress.epochs[-1]
    head = Head.model_validate({name: last[name] for name in Head.model_fields if name in last})
    return {**tuner.clip.architecture, SECTION: head.model_dump(exclude_none=True)}


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
        "processes": tuner.processes.count,
        "threads": torch.get_num_threads(),
        "validation": progress.epochs[-1],
        "provenance": provenance(identity["settings"], identity["seed"]),
    }
    with io.atomic_path(output) as folder:
        tuner.kind.save(tuner.tuned, folder / "adapter")
        models.save(folder, tuner.kind.merge(tuner.tuned), _architecture(tuner, progress))
        io.write_csv(folder / "steps.csv", progress.steps)
        io.write_csv(folder / "epochs.csv", progress.epochs)
        io.write_json(folder / "record.json", record)
