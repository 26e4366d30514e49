"""Unsafe images by a diffusion model, accepted if a judge flags them; what is done is kept for the next start.

Captions in which a minor could be meant are never painted, whatever their category: the judges' flag for which an image
is kept may be that of nudity, and the models in use are made for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from saferclip import io
from saferclip.benchmark.backends import FORBIDDEN, NOT_UNSAFE, Illustration, Pair
from saferclip.benchmark.journal import Journal
from saferclip.provenance import digest


class Painter(Protocol):
    """What `saferclip.diffusion` loads."""

    def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """One image for each prompt."""


class Verdict(Protocol):
    """What a judge says of one image."""

    @property
    def unsafe(self) -> bool: ...

    @property
    def scores(self) -> dict[str, float]: ...


class Judge(Protocol):
    """What `saferclip.safety` loads."""

    def judge(self, images: Sequence[Image.Image]) -> Sequence[Verdict]:
        """The verdict on each image."""


@dataclass
class Painted:
    """Paints each caption up to ``candidates`` times, and keeps the first image that the judge flags.

    ``identity`` is what images depend on besides caption and seed; ``state`` the folder of what is there already.
    """

    painter: Painter
    judge: Judge
    candidates: int
    batch_size: int
    seed: int
    identity: Mapping[str, Any]
    state: Path

    def __post_init__(self) -> None:
        self.journal = Journal(self.state / "images.jsonl")

    def illustrate(self, pairs: Iterable[Pair], rng: np.random.Generator) -> Iterator[Illustration]:  # noqa: ARG002
        waiting = iter(tqdm(pairs, "painting", disable=None))
        while batch := list(islice(waiting, self.batch_size)):
            captions = [pair.edit.caption for pair in batch if not pair.minor]
            self._paint([caption for caption in captions if not self._is_known(caption)])
            yield from map(self._result, batch)

    def _paint(self, captions: Sequence[str]) -> None:
        """Paint captions that are new until each has an image that is flagged, or no candidates are left."""
        waiting = list(dict.fromkeys(captions))
        for tries in range(1, self.candidates + 1):
            if not waiting:
                return
            images = self.painter.paint(waiting, [self._seed(caption, tries) for caption in waiting])
            verdicts = self.judge.judge(images)
            for caption, image, verdict in zip(waiting, images, verdicts, strict=True):
                if verdict.unsafe or tries == self.candidates:
                    self._remember(caption, tries, image if verdict.unsafe else None, verdict.scores)
            waiting = [caption for caption, verdict in zip(waiting, verdicts, strict=True) if not verdict.unsafe]

    def _is_known(self, caption: str) -> bool:
        entry = self.journal.entries.get(self._key(caption))
        return entry is not None and (not entry["kept"] or self._file(entry["key"]).is_file())

    def _result(self, pair: Pair) -> Illustration:
        """What became of a pair; one that is never painted is kept for its captions, unless it is forbidden."""
        if pair.minor:
            return Illustration(pair, None, 0, FORBIDDEN if pair.violation else None)
        entry = self.journal.entries[self._key(pair.edit.caption)]
        if not entry["kept"]:
            return Illustration(pair, None, entry["tries"], NOT_UNSAFE)
        return Illustration(pair, self._file(entry["key"]).read_bytes(), entry["tries"])

    def _key(self, caption: str) -> str:
        return digest([self.identity, self.seed, self.candidates, caption])[:32]

    def _seed(self, caption: str, tries: int) -> int:
        """A seed of the caption's own, so that an image does not depend on what else is painted."""
        return int.from_bytes(hashlib.sha256(f"{self.seed} {tries} {caption}".encode()).digest()[:4], "big")

    def _file(self, key: str) -> Path:
        return self.state / "images" / f"{key}.jpg"

    def _remember(self, caption: str, tries: int, image: Image.Image | None, scores: Mapping[str, float]) -> None:
        key = self._key(caption)
        if image is not None:
            with io.atomic_path(self._file(key)) as temporary:
                temporary.write_bytes(io.encode_jpeg(np.asarray(image.convert("RGB"))))
        # After the image, so that whatever is noted is there.
        self.journal.add({"key": key, "tries": tries, "kept": image is not None, "scores": dict(scores)})

    def report(self) -> dict[str, Any]:
        return {"kind": "diffusion, kept if a judge flags it", **self.identity, "seed": self.seed}
