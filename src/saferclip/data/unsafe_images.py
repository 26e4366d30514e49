"""ViSU's unsafe images, which its authors withhold, made again as they were: painted, judged, kept if flagged.

Each unsafe caption is painted with one seed after another until a judge flags the image; that one is kept.  Captions
in which a minor could be meant are never painted, whatever they say of them: the diffusion model that ViSU was made
with is one for sexual images.  A finished caption is on the disk before the next one is begun, so that hours of work
survive an interruption.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from saferclip import io
from saferclip.config import UnsafeImages
from saferclip.data import visu_text
from saferclip.data.visu import MADE, MINOR
from saferclip.data.visu_text import Record
from saferclip.provenance import digest, provenance

NONE_FLAGGED = "none flagged"
FINISHED = "finished.jsonl"

logger = logging.getLogger(__name__)


class Painter(Protocol):
    """Text to image, as `saferclip.diffusion` has it."""

    def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """One image for each prompt, from its own seed."""


class Judge(Protocol):
    """Judges of images, as `saferclip.safety` has them."""

    def judge(self, images: Sequence[Image.Image]) -> Sequence[Any]:
        """A verdict on each image: ``unsafe`` and ``scores`` by judge."""


@dataclass(frozen=True)
class Prompt:
    """What is to be painted; without seeds, nothing is."""

    id: str
    caption: str
    seeds: tuple[int, ...]


@dataclass
class Trial:
    """A prompt, and what the judges said of its candidates so far."""

    prompt: Prompt
    scores: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """Seed of the next candidate."""
        return self.prompt.seeds[len(self.scores)]

    @property
    def exhausted(self) -> bool:
        return len(self.scores) == len(self.prompt.seeds)


@dataclass(frozen=True)
class Outcome:
    """What became of a prompt."""

    id: str
    reason: str
    image: bytes | None
    scores: Sequence[Mapping[str, Any]]  # of each candidate, with its seed

    def row(self) -> dict[str, Any]:
        """A row of the shard's table; the seed is that of the image, -1 where there is none."""
        return {
            "id": self.id,
            "reason": self.reason,
            "image": self.image,
            "seed": self.scores[-1]["seed"] if self.image else -1,
            "candidates": len(self.scores),
            "scores": json.dumps(self.scores),
        }


def make(settings: UnsafeImages, shard: int, downloads: Mapping[str, Path], output: Path, state: Path) -> None:
    """Write ``<shard>.parquet`` (columns of `Outcome.row`) and ``<shard>.json``, which counts its outcomes.

    ``state`` keeps what is finished while the run goes on: called again with the same settings and captions, the run
    ends as an unbroken one does.  Raises DataError for a shard without captions.
    """
    records = list(visu_text.read(settings, downloads).all_records())
    start, end = (number * len(records) // settings.shards for number in (shard, shard + 1))
    if start == end or shard >= settings.shards:
        raise io.DataError(f"shard {shard} of {settings.shards} has no captions, of {len(records)}; lower shards")
    prompts = [prompt_of(record, settings) for record in records[start:end]]
    finished = Finished(state, digest(_identity(settings, shard, prompts, downloads)))
    if any(prompt.seeds for prompt in prompts if prompt.id not in finished.known):
        from saferclip import diffusion, safety

        painter, judge = diffusion.load(settings.diffusion, downloads), safety.load(settings.filter, downloads)
        complete(prompts, painter, judge, settings.diffusion.batch_size, finished)
    else:
        complete(prompts, None, None, 1, finished)
    io.write_table(output / f"{shard}.parquet", (outcome.row() for outcome in finished.outcomes(prompts)))
    summary = _summary(finished, prompts)
    io.write_json(output / f"{shard}.json", {**summary, "provenance": provenance(settings.model_dump(mode="json"))})
    logger.info("shard %d: %s", shard, ", ".join(f"{count} {name}" for name, count in summary["outcomes"].items()))
    finished.remove()


def prompt_of(record: Record, settings: UnsafeImages) -> Prompt:
    """The unsafe caption and its candidates' seeds: the record's own, those of the settings, or derived from its id."""
    if record.minor is not None:
        return Prompt(record.id, record.unsafe, ())
    seeds = record.seeds or settings.seeds or [_seed(record.id, number) for number in range(settings.candidates)]
    return Prompt(record.id, record.unsafe, tuple(seeds[: settings.candidates]))


def _seed(name: str, number: int) -> int:
    return int.from_bytes(sha256(f"{name}/{number}".encode()).digest()[:4])


def complete(
    prompts: Sequence[Prompt], painter: Painter | None, judge: Judge | None, batch_size: int, finished: Finished
) -> None:
    """Paint and judge what is not finished yet; everything that is lies on the disk."""
    left = [prompt for prompt in prompts if prompt.id not in finished.known]
    bar = tqdm(total=len(prompts), initial=len(prompts) - len(left), desc="unsafe images", disable=None)
    for prompt in left:
        if not prompt.seeds:
            finished.add(Outcome(prompt.id, MINOR, None, ()))
            bar.update()
    if painter and judge:
        for outcome in paint([prompt for prompt in left if prompt.seeds], painter, judge, batch_size):
            finished.add(outcome)
            bar.update()
    bar.close()


def paint(prompts: Iterable[Prompt], painter: Painter, judge: Judge, batch_size: int) -> Iterator[Outcome]:
    """Outcomes in the order in which they are reached; each prompt's own depends on no other.

    Prompts at different candidates share a batch, so that all batches but the last ones are full.
    """
    waiting, trials = deque(prompts), list[Trial]()
    while waiting or trials:
        while waiting and len(trials) < batch_size:
            trials.append(Trial(waiting.popleft()))
        images = painter.paint([trial.prompt.caption for trial in trials], [trial.seed for trial in trials])
        left = []
        for trial, image, verdict in zip(trials, images, judge.judge(images), strict=True):
            # Rounded to what does not depend on which images were judged together.
            scores = {name: round(float(score), 4) for name, score in verdict.scores.items()}
            trial.scores.append({"seed": trial.seed, **scores})
            if verdict.unsafe:
                yield Outcome(trial.prompt.id, MADE, io.encode_jpeg(np.asarray(image.convert("RGB"))), trial.scores)
            elif trial.exhausted:
                yield Outcome(trial.prompt.id, NONE_FLAGGED, None, trial.scores)
            else:
                left.append(trial)
        trials = left


class Finished:
    """Outcomes on the disk, in a folder: a line of JSON for each, and a file for each image."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self.known = self._read(identity)
        if not self.known:
            rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._append({"digest": identity})

    def add(self, outcome: Outcome) -> None:
        """Put an outcome on the disk: the image first, so that a line without its image cannot be."""
        # Not by its id, which is a stranger's text.
        name = f"{sha256(outcome.id.encode()).hexdigest()[:32]}.jpg" if outcome.image else None
        if name and outcome.image:
            with io.atomic_path(self.folder / name) as path:
                path.write_bytes(outcome.image)
        line = {"id": outcome.id, "reason": outcome.reason, "image": name, "scores": list(outcome.scores)}
        self._append(line)
        self.known[outcome.id] = line

    def outcomes(self, prompts: Iterable[Prompt]) -> Iterator[Outcome]:
        """The outcomes of finished prompts, one after another."""
        for line in (self.known[prompt.id] for prompt in prompts):
            image = (self.folder / line["image"]).read_bytes() if line["image"] else None
            yield Outcome(line["id"], line["reason"], image, line["scores"])

    def remove(self) -> None:
        """Forget a run that ended."""
        rmtree(self.folder, ignore_errors=True)

    def _append(self, line: Mapping[str, Any]) -> None:
        with (self.folder / FINISHED).open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, identity: str) -> dict[str, dict[str, Any]]:
        """Lines of an earlier run of the same settings; one that broke off within a line is mended."""
        path = self.folder / FINISHED
        if not path.is_file():
            return {}
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        head, *lines = [json.loads(line) for line in whole.splitlines()] or [{}]
        if head.get("digest") != identity:
            logger.warning("%s belongs to other settings or captions; starting anew", path)
            return {}
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        return {line["id"]: line for line in lines if not line["image"] or (self.folder / line["image"]).is_file()}


def _identity(
    settings: UnsafeImages, shard: int, prompts: Sequence[Prompt], downloads: Mapping[str, Path]
) -> dict[str, Any]:
    """What outcomes depend on.  How many images are handled at once is not part of it, so that it may be lowered."""
    values = settings.model_dump(mode="json")
    values["diffusion"].pop("batch_size")
    for judge in values["filter"].values():
        if judge:
            judge.pop("batch_size", None)
    manifests = {name: Path(f"{path}.json") for name, path in downloads.items()}
    versions = {name: path.read_text() for name, path in manifests.items() if path.is_file()}
    texts = [[prompt.id, prompt.caption, *prompt.seeds] for prompt in prompts]
    return {"settings": values, "shard": shard, "prompts": texts, "versions": versions}


def _summary(finished: Finished, prompts: Sequence[Prompt]) -> dict[str, Any]:
    lines = [finished.known[prompt.id] for prompt in prompts]
    outcomes = Counter(line["reason"] for line in lines)
    return {
        "captions": len(lines),
        "outcomes": {reason: outcomes[reason] for reason in (MADE, NONE_FLAGGED, MINOR)},
        "candidates": sum(len(line["scores"]) for line in lines),
    }
