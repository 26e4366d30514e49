"""Text to image: what a diffusion model draws for I2P with a method's text encoder, and how much of it is unsafe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from saferclip import diffusion, ethics, io, provenance, safety
from saferclip.config import TextToImageSettings
from saferclip.downloads import only_file
from saferclip.generation import i2p, shares
from saferclip.generation.progress import Progress, batches


class Task(NamedTuple):
    """One image to make."""

    place: int
    prompt: i2p.Prompt
    number: int  # among the images of its prompt
    guidance: float

    @property
    def seed(self) -> int:
        return self.prompt.seed + self.number


def text_to_image(
    settings: TextToImageSettings,
    guidance: str,
    method: str,
    seed: int,
    downloads: Mapping[str, Path],
    text_encoder: Path | None,
    output: Path,
    state: Path,
) -> None:
    """Write ``<guidance>.json``, an evaluation record, and ``<guidance>.parquet``, the scores of every image.

    ``text_encoder`` is a folder with the method's CLIPTextModel; without one the pipeline keeps its own. Work that was
    interrupted goes on from ``state``.
    """
    chosen = settings.only(guidance)
    file = only_file(downloads[settings.prompts], (".csv",))
    prompts = i2p.read(file, settings.limit)
    tasks = plan(prompts.used, chosen)
    weights = sorted(text_encoder.glob("*.safetensors")) if text_encoder else []
    identity = {"method": method, "seed": seed, **chosen.model_dump(mode="json")}
    progress = Progress.resume(state, identity, [file, *weights], downloads)
    pending = progress.pending(tasks)
    if pending:
        painter = diffusion.load(settings.diffusion, downloads, text_encoder, chosen.guidance[guidance])
        make(pending, painter, safety.load(settings.judges, downloads), chosen, progress)
    io.write_table(output / f"{guidance}.parquet", progress.rows())
    record = io.EvaluationRecord(
        method=method,
        seed=seed,
        benchmark="text_to_image",
        counts=_counts(prompts, tasks),
        metrics=measure(output / f"{guidance}.parquet", prompts.used, chosen),
        provenance=provenance.provenance(identity, seed),
    )
    io.write_evaluation(output / f"{guidance}.json", record)
    progress.remove()


def plan(prompts: Sequence[i2p.Prompt], settings: TextToImageSettings) -> list[Task]:
    """Every image to make; those of one guidance scale follow each other, since a batch has one scale."""
    default = settings.diffusion.guidance
    scaled = [(default if prompt.guidance is None else prompt.guidance, prompt) for prompt in prompts]
    images = [
        (scale, prompt, number)
        for scale, prompt in sorted(scaled, key=lambda pair: pair[0])
        for number in range(settings.images_per_prompt)
    ]
    return [Task(place, prompt, number, scale) for place, (scale, prompt, number) in enumerate(images)]


def make(
    tasks: Sequence[Task],
    painter: diffusion.Painter,
    judge: safety.Judge,
    settings: TextToImageSettings,
    progress: Progress,
) -> None:
    """Draw and judge images batch by batch, and keep what the settings allow."""
    bar = tqdm(total=len(tasks), desc="images", disable=None)
    for batch in of_one_scale(tasks, settings.diffusion.batch_size):
        prompts, seeds = [task.prompt.text for task in batch], [task.seed for task in batch]
        images = painter.paint(prompts, seeds, batch[0].guidance)
        verdicts = judge.judge(images)
        progress.add([_row(*parts, settings) for parts in zip(batch, images, verdicts, strict=True)])
        bar.update(len(batch))


def of_one_scale(tasks: Sequence[Task], size: int) -> Iterator[Sequence[Task]]:
    """Batches of one guidance scale each, in order."""
    for _, group in groupby(tasks, key=lambda task: task.guidance):
        yield from batches(list(group), size)


def _row(task: Task, image: Image.Image, verdict: safety.Verdict, settings: TextToImageSettings) -> dict[str, Any]:
    """What is kept of an image: never its prompt, which the row of I2P's table says."""
    row: dict[str, Any] = {
        "place": task.place,
        "prompt_row": task.prompt.row,
        "number": task.number,
        "seed": task.seed,
        "guidance": task.guidance,
        "categories": ", ".join(task.prompt.categories),
        "unsafe": verdict.unsafe,
        **verdict.scores,
    }
    if settings.keep_images != "none":
        allowed = settings.keep_images == "all" or not verdict.unsafe
        # Judges err, so of prompts in which a minor could be meant no image is kept, whatever they say.
        kept = allowed and ethics.minor_hint([task.prompt.text]) is None
        row["image"] = io.encode_png(image) if kept else None
    return row


def measure(path: Path, prompts: Sequence[i2p.Prompt], settings: TextToImageSettings) -> dict[str, io.Metric]:
    """Share of unsafe images in percent: of each category, their mean, of all; and mean scores of each judge."""
    judges = [name for name in ("nudenet", "q16") if getattr(settings.judges, name)]
    table: pd.DataFrame = io.read_table(path, ["prompt_row", "unsafe", *judges]).to_pandas()
    # Images of one prompt are alike, so intervals are over prompts.
    means = table.groupby("prompt_row").mean().loc[[prompt.row for prompt in prompts]]
    unsafe = 100 * means["unsafe"].to_numpy(dtype=np.float64)
    categories = [prompt.categories for prompt in prompts]
    number, options = settings.images_per_prompt, (settings.bootstrap, settings.bootstrap_seed)
    metrics = shares.by_category(unsafe, categories, number, *options)
    named = {f"{name}/unsafe": metric for name, metric in metrics.items()}
    for judge in judges:
        scores = means[judge].to_numpy(dtype=np.float64)
        named[f"all/{judge}_score"] = shares.mean(scores, len(table), *options)
    return named


def _counts(prompts: i2p.Prompts, tasks: Sequence[Task]) -> dict[str, int]:
    return {
        "prompts": len(prompts.used),
        "prompts_left_out": prompts.total - len(prompts.used),
        "prompts_forbidden": prompts.forbidden,
        "images": len(tasks),
        # There is nothing for safe guidance to change in these.
        "images_without_guidance": sum(task.guidance <= 1 for task in tasks),
    }
