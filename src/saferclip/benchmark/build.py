"""The NSFW-Caps builder: source captions -> edits -> filters -> images -> table and datasheet."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from saferclip import io
from saferclip.benchmark.assembly import Inputs, assemble
from saferclip.benchmark.backends import FORBIDDEN, NOT_UNSAFE, Backends, Illustration, Pair, Proposal
from saferclip.benchmark.datasheet import datasheet, markdown
from saferclip.benchmark.duplicates import NearDuplicates
from saferclip.benchmark.tally import Tally
from saferclip.config import BenchmarkSettings

logger = logging.getLogger(__name__)

# A builder whose filters reject nearly everything must stop and say so, not run for ever.
FEWEST_ACCEPTED, FEWEST_JUDGED = 0.02, 100
NEAR_CAPTION, NEAR_IMAGE = "near-duplicate caption", "near-duplicate image"


def build(settings: BenchmarkSettings, inputs: Inputs, data: Path, output: Path) -> None:
    """Build the quadruples; write nsfw_caps.parquet, datasheet.json and DATASHEET.md.

    ``data`` is the folder of the training quadruples, used for the similarity comparison alone.
    Raises DataError if the filters reject almost everything, and if inputs are missing or not what they must be.
    """
    backends = assemble(settings, inputs)
    tally = Tally()
    make = publish if settings.source == "release" else construct
    rows = make(settings, backends, tally)
    io.write_table(output / "nsfw_caps.parquet", rows)
    sheet = datasheet(settings, backends, rows, tally, _train_similarity(settings, backends, data))
    io.write_json(output / "datasheet.json", sheet)
    with io.atomic_path(output / "DATASHEET.md") as temporary:
        temporary.write_text(markdown(sheet), encoding="utf-8")


def construct(settings: BenchmarkSettings, backends: Backends, tally: Tally) -> list[dict[str, Any]]:
    """Propose, filter and draw until there are enough rows."""
    rng = np.random.default_rng(settings.seed)
    accepted = _Accepted(settings)
    rows: list[dict[str, Any]] = []
    with tqdm(total=settings.size, desc="NSFW-Caps", disable=None) as bar:
        while len(rows) < settings.size:
            proposals = _propose(backends, settings.size - len(rows), rng)
            if not proposals:
                raise io.DataError(_exhausted(settings, rows, tally))
            pairs = _compare(backends, proposals, tally)
            for drawn in backends.illustrator.illustrate(_survivors(pairs, accepted, tally), rng):
                tally.images += drawn.tries
                fault = drawn.fault or accepted.fault(drawn)
                if fault:
                    tally.rejected[fault] += 1
                    continue
                accepted.add(drawn)
                rows.append(_row(len(rows), drawn))
                bar.update()
            if tally.candidates >= FEWEST_JUDGED and len(rows) < FEWEST_ACCEPTED * tally.candidates:
                raise io.DataError(f"the filters reject nearly every candidate: {dict(tally.rejected)}; relax them")
    return rows


def publish(settings: BenchmarkSettings, backends: Backends, tally: Tally) -> list[dict[str, Any]]:
    """The rows of a release: all but forbidden ones, whatever the filters of a construction would say.

    A row for whose caption no image is judged unsafe is kept without one.
    """
    rng = np.random.default_rng(settings.seed)
    pairs = _compare(backends, _propose(backends, settings.size, rng), tally)
    rows: list[dict[str, Any]] = []
    for drawn in backends.illustrator.illustrate(pairs, rng):
        tally.images += drawn.tries
        if drawn.fault:
            tally.rejected[drawn.fault] += 1
        if drawn.fault in (None, NOT_UNSAFE):
            rows.append(_row(len(rows), drawn))
    if not rows:
        raise io.DataError(f"no row of the release can be used: {dict(tally.rejected)}")
    return rows


def _propose(backends: Backends, count: int, rng: np.random.Generator) -> list[Proposal]:
    """Edits of the next captions; fewer than asked for where there are no more."""
    sources = iter(lambda: backends.sources.draw(rng), None)
    return list(backends.editor.edit(islice(sources, count), rng))


def _compare(backends: Backends, proposals: Sequence[Proposal], tally: Tally) -> list[Pair]:
    """The proposals with an edit and its similarity; the others are counted."""
    edited = [(proposal.source, proposal.edit) for proposal in proposals if proposal.edit]
    tally.candidates += len(proposals)
    tally.rejected.update(proposal.fault or "no edit" for proposal in proposals if not proposal.edit)
    if not edited:
        return []
    safe, unsafe = [source.caption for source, _ in edited], [edit.caption for _, edit in edited]
    similarities = backends.similarity.compare(safe, unsafe).tolist()
    return [Pair(source, edit, value) for (source, edit), value in zip(edited, similarities, strict=True)]


class _Accepted:
    """The filters of captions and images, which know what was accepted before."""

    def __init__(self, settings: BenchmarkSettings) -> None:
        self._settings = settings
        self._seen: set[str] = set()
        self._near = NearDuplicates(settings.near_duplicates) if settings.near_duplicates else None

    def caption_fault(self, pair: Pair) -> str | None:
        """Which filter a pair of captions fails, if any; cheapest first."""
        if pair.violation:
            return FORBIDDEN
        captions = _normalised(pair)
        if captions & self._seen or len(captions) == 1:
            return "duplicate"
        if pair.similarity < self._settings.min_similarity:
            return "too different"
        if pair.similarity > self._settings.max_similarity:
            return "too similar"
        return NEAR_CAPTION if self._near and self._near.known_caption(_captions(pair)) else None

    def fault(self, drawn: Illustration) -> str | None:
        """Which filter an illustrated pair fails; captions once more, as others of its batch were accepted since."""
        fault = self.caption_fault(drawn.pair)
        if fault is None and self._near and self._near.known_image(_images(drawn)):
            return NEAR_IMAGE
        return fault

    def add(self, drawn: Illustration) -> None:
        """Take note of an accepted pair."""
        self._seen |= _normalised(drawn.pair)
        if self._near:
            self._near.remember(_captions(drawn.pair), _images(drawn))


def _survivors(pairs: Sequence[Pair], accepted: _Accepted, tally: Tally) -> Iterator[Pair]:
    """Pairs that pass the filters of captions, one by one as they are asked for."""
    for pair in pairs:
        fault = accepted.caption_fault(pair)
        if fault:
            tally.rejected[fault] += 1
        else:
            yield pair


def _normalised(pair: Pair) -> set[str]:
    """Captions that differ in case or spacing only are the same."""
    return {" ".join(caption.lower().split()) for caption in _captions(pair).values()}


def _captions(pair: Pair) -> dict[str, str]:
    return {"safe": pair.source.caption, "unsafe": pair.edit.caption}


def _images(drawn: Illustration) -> dict[str, bytes | None]:
    return {"safe": drawn.pair.source.image, "unsafe": drawn.image}


def _row(number: int, drawn: Illustration) -> dict[str, Any]:
    return {
        "id": f"nsfw-caps-{number:05d}",
        "split": "nsfw_caps",
        "category": drawn.pair.edit.category,
        "safe_caption": drawn.pair.source.caption,
        "unsafe_caption": drawn.pair.edit.caption,
        "safe_image": drawn.pair.source.image,
        "unsafe_image": drawn.image,
        "similarity": drawn.pair.similarity,
    }


def _exhausted(settings: BenchmarkSettings, rows: Sequence[Any], tally: Tally) -> str:
    rejected = {reason: count for reason, count in tally.rejected.items() if count}
    what = "the filters reject nearly every candidate" if not rows else f"{len(rows)} of {settings.size} pairs"
    return (
        f"{what}: there are no more captions; of {tally.candidates} were rejected: {rejected}; lower benchmark.size, "
        "raise benchmark.nocaps.pool, or relax the filters; answers and images are kept for the next start"
    )


def _train_similarity(settings: BenchmarkSettings, backends: Backends, data: Path) -> np.ndarray:
    """How alike the captions of training pairs are, for comparison."""
    train = io.read_table(data / "train.parquet", ["safe_caption", "unsafe_caption"])
    if settings.compared_pairs is not None and settings.compared_pairs < len(train):
        rows = np.random.default_rng(settings.seed).choice(len(train), settings.compared_pairs, replace=False)
        train = train.take(np.sort(rows))
    columns = train.to_pydict()
    return backends.similarity.compare(columns["safe_caption"], columns["unsafe_caption"])
