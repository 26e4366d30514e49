"""Image to text: what LLaVA says of unsafe images through a method's image encoder, and how toxic that is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from saferclip import io, provenance
from saferclip.config import ImageToTextSettings
from saferclip.data import picture_files, pictures
from saferclip.generation import shares
from saferclip.generation.language import Describer, Toxicity
from saferclip.generation.progress import Progress, batches
from saferclip.mining import pixels

TEST = "test"


class Picture(NamedTuple):
    """One image to ask about: where it is from, and its name there."""

    source: str
    name: str


class Pictures(NamedTuple):
    """The images of one source, and how many it has that are not used."""

    used: list[str]
    left_out: int
    read: Any  # names to images, in order


class Task(NamedTuple):
    """One question about one image."""

    place: int
    picture: Picture
    question: int


def image_to_text(
    settings: ImageToTextSettings,
    method: str,
    seed: int,
    downloads: Mapping[str, Path],
    vision: Path | None,
    test: Path,
    output: Path,
    state: Path,
) -> None:
    """Write ``record.json``, an evaluation record, and ``answers.parquet``, the toxicity of every answer.

    ``vision`` is a folder with the method's CLIPModel, whose image encoder takes the place of LLaVA's; without one
    LLaVA keeps its own. Work that was interrupted goes on from ``state``.
    """
    sources = find(settings, downloads, test)
    tasks = plan(sources, len(settings.questions))
    identity = {"method": method, "seed": seed, **settings.model_dump(mode="json")}
    names = {"pictures": [list(task.picture) for task in tasks]}
    weights = sorted(vision.glob("*.safetensors")) if vision else []
    progress = Progress.resume(state, {**identity, **names}, [test, *weights], downloads)
    pending = progress.pending(tasks)
    if pending:
        describer = Describer.load(settings, downloads, vision)
        answer(pending, sources, describer, Toxicity.load(settings.toxicity, downloads), settings, progress)
    io.write_table(output / "answers.parquet", progress.rows())
    record = io.EvaluationRecord(
        method=method,
        seed=seed,
        benchmark="image_to_text",
        counts=_counts(sources, len(tasks)),
        metrics=measure(output / "answers.parquet", settings),
        provenance=provenance.provenance(identity, seed),
    )
    io.write_evaluation(output / "record.json", record)
    progress.remove()


def find(settings: ImageToTextSettings, downloads: Mapping[str, Path], test: Path) -> dict[str, Pictures]:
    """The images of every source, by its name.  Raises DataError for a source without a usable image."""
    sources = {}
    if settings.test_images:
        sources[TEST] = _of_test(test, settings.test_images)
    for name, download in settings.folders.items():
        sources[name] = _of_folder(downloads[download], settings.folder_images)
    for name, source in sources.items():
        if not source.used:
            raise io.DataError(f"{name}: no usable image; supply images, or leave this source out")
    return sources


def _of_test(table: Path, limit: int) -> Pictures:
    """Unsafe images of a table of quadruples, spread over it; those that are withheld are left out."""
    present = io.present(table, "unsafe_image")
    used = _spread([row for row, there in enumerate(present) if there], limit)

    def read(names: Iterable[str]) -> Iterator[Image.Image]:
        rows = list(map(int, names))
        for row, cell in zip(rows, io.read_cells(table, "unsafe_image", rows), strict=True):
            yield pixels.decode(cell, f"{table}: row {row}, unsafe_image")

    return Pictures([str(row) for row in used], len(present) - len(used), read)


def _of_folder(place: Path, limit: int) -> Pictures:
    """Images of a folder or zip, spread over it by name; those that cannot be read are left out."""
    files = picture_files.find(place)
    usable = [checked.name for checked in picture_files.check(files, files.names) if checked.problem is None]
    used = _spread(usable, limit)

    def read(names: Iterable[str]) -> Iterator[Image.Image]:
        for name in names:
            yield pictures.read(files.read(name))

    return Pictures(used, len(files.names) - len(used), read)


def _spread(items: Sequence[Any], limit: int) -> list[Any]:
    """So many of the items at most, at even distances."""
    if len(items) <= limit:
        return list(items)
    return [items[place] for place in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def plan(sources: Mapping[str, Pictures], questions: int) -> list[Task]:
    """Every question about every image; questions about one image follow each other."""
    chosen = [Picture(name, picture) for name, source in sources.items() for picture in source.used]
    pairs = [(picture, question) for picture in chosen for question in range(questions)]
    return [Task(place, picture, question) for place, (picture, question) in enumerate(pairs)]


def answer(
    tasks: Sequence[Task],
    sources: Mapping[str, Pictures],
    describer: Describer,
    toxicity: Toxicity,
    settings: ImageToTextSettings,
    progress: Progress,
) -> None:
    """Ask and judge batch by batch, and keep what the settings allow."""
    bar = tqdm(total=len(tasks), desc="answers", disable=None)
    images = in_order(tasks, sources)
    for batch in batches(tasks, settings.batch_size):
        answers = describer.answer(
            list(islice(images, len(batch))), [settings.questions[task.question] for task in batch]
        )
        scores = toxicity.scores(answers)
        progress.add([_row(*parts, settings) for parts in zip(batch, answers, scores, strict=True)])
        bar.update(len(batch))


def in_order(tasks: Sequence[Task], sources: Mapping[str, Pictures]) -> Iterator[Image.Image]:
    """The image of each task; one that several questions are about is read once."""
    for source, group in groupby(tasks, key=lambda task: task.picture.source):
        names = [task.picture.name for task in group]
        images = sources[source].read(dict.fromkeys(names))
        for _, same in groupby(names):
            yield from repeat(next(images), len(list(same)))


def _row(task: Task, text: str, score: float, settings: ImageToTextSettings) -> dict[str, Any]:
    toxic = score >= settings.toxicity.threshold
    row: dict[str, Any] = {
        "place": task.place,
        "source": task.picture.source,
        "image_name": task.picture.name,
        "question": task.question,
        "toxic": toxic,
        "toxicity": score,
    }
    if settings.keep_answers != "none":
        row["answer"] = text if settings.keep_answers == "all" or not toxic else ""
    return row


def measure(path: Path, settings: ImageToTextSettings) -> dict[str, io.Metric]:
    """Share of toxic answers in percent and mean toxicity, of each source and of all."""
    table: pd.DataFrame = io.read_table(path, ["source", "image_name", "toxic", "toxicity"]).to_pandas()
    metrics: dict[str, io.Metric] = {}
    for name in dict.fromkeys([*table["source"], "all"]):
        rows = table if name == "all" else table[table["source"] == name]
        # Answers about one image are alike, so intervals are over images.
        means = rows.groupby(["source", "image_name"])[["toxic", "toxicity"]].mean().to_numpy(dtype=np.float64)
        mean = partial(shares.mean, images=len(means), resamples=settings.bootstrap, seed=settings.bootstrap_seed)
        metrics |= {f"{name}/toxic": mean(100 * means[:, 0]), f"{name}/toxicity": mean(means[:, 1])}
    return metrics


def _counts(sources: Mapping[str, Pictures], answers: int) -> dict[str, int]:
    counts = {f"{name}_images": len(source.used) for name, source in sources.items()}
    left_out = {f"{name}_images_left_out": source.left_out for name, source in sources.items()}
    return {**counts, **left_out, "answers": answers}
