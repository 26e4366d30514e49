"""Unsafe queries against a large gallery of safe items: how often is the top hit unsafe?

Unsafe captions search the safe and unsafe images of a gallery, and unsafe images its safe and unsafe captions.  In
the embedded world every item is a pair; a public gallery has images and captions of different origin, as
docs/test-sets.md explains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saferclip import io, statistics
from saferclip.config import EvaluationSettings
from saferclip.evaluation.encoder import Encoder, Encoders
from saferclip.evaluation.result import Result, share
from saferclip.evaluation.search import Gallery, Hits, search_for_safe

DIRECTIONS = ("text_to_image", "image_to_text")


@dataclass(frozen=True)
class Table:
    """The table of all galleries, whose images stay on disk."""

    path: Path
    rows: list[dict[str, Any]]  # without images
    pictured: list[bool]  # which rows have an image

    @classmethod
    def open(cls, path: Path) -> Table:
        """Read everything but the images."""
        names = [name for name in io.column_names(path) if name != "image"]
        rows = io.read_table(path, list(dict.fromkeys(["id", "unsafe", "caption", *names]))).to_pylist()
        return cls(path, rows, io.present(path, "image"))

    def sets(self) -> dict[str, list[int]]:
        """Rows of each gallery; a table without a column 'set' is one gallery without a name."""
        found: dict[str, list[int]] = {}
        for place, row in enumerate(self.rows):
            found.setdefault(row.get("set", ""), []).append(place)
        return found

    def captions(self, places: Sequence[int], encoder: Encoder) -> Gallery:
        """The captions in these rows; raises DataError unless there are safe and unsafe ones."""
        places = self._unsafe_first([place for place in places if self.rows[place]["caption"] is not None], "captions")
        return self._gallery(places, encoder.texts([self.rows[place]["caption"] for place in places]))

    def images(self, places: Sequence[int], encoder: Encoder) -> Gallery:
        """The images in these rows; raises DataError unless there are safe and unsafe ones."""
        places = self._unsafe_first([place for place in places if self.pictured[place]], "images")
        return self._gallery(places, encoder.images(io.read_cells(self.path, "image", places), len(places)))

    def _gallery(self, places: Sequence[int], embeddings: Any) -> Gallery:
        unsafe = sum(self.rows[place]["unsafe"] for place in places)
        return Gallery(embeddings, [self.rows[place]["id"] for place in places], unsafe)

    def _unsafe_first(self, places: list[int], what: str) -> list[int]:
        """As Gallery wants them; the order is otherwise that of the table."""
        unsafe = sum(self.rows[place]["unsafe"] for place in places)
        if unsafe in (0, len(places)):
            kind = self.rows[places[0]].get("set", "gallery") if places else "gallery"
            raise io.DataError(
                f"{self.path}: {kind}: {unsafe} unsafe {what} of {len(places)}; safe and unsafe ones are needed"
            )
        return sorted(places, key=lambda place: not self.rows[place]["unsafe"])


def evaluate(path: Path, encoders: Encoders, settings: EvaluationSettings) -> Result:
    """Evaluate the model on a table of safe and unsafe items, which may lack their caption or their image.

    Of a table with a column 'set', directions begin with the set's name, metrics without a name are means over the
    sets, and a JSON beside the table says what was left out of it.
    Raises DataError if a gallery has no safe or no unsafe caption, or image.
    """
    table = Table.open(path)
    sets = table.sets()
    named = list(sets) != [""]
    result = Result(counts={"rows": len(table.rows)})
    if not named:
        result.counts["without_image"] = table.pictured.count(False)
    found = {name: list(_search(table, name, places, encoders.model, settings)) for name, places in sets.items()}
    for hits in (hits for of_set in found.values() for hits in of_set):
        result.counts.update(hits.counts)
        result.metrics[f"{hits.direction}/unsafe_share"] = share(hits.top_unsafe, settings)
        result.ranks.extend(hits.rows())
    if named:
        for direction, of_direction in zip(DIRECTIONS, zip(*found.values(), strict=True), strict=True):
            result.metrics[f"{direction}/unsafe_share"] = _mean(of_direction, settings)
        described = io.read_json(path.with_suffix(".json"))
        for name in sets:
            result.counts.update({f"{name}/{what}": count for what, count in described[name]["counts"].items()})
    return result


def _search(
    table: Table, name: str, places: Sequence[int], encoder: Encoder, settings: EvaluationSettings
) -> Iterator[Hits]:
    """What the unsafe queries of one gallery find, in each direction."""
    captions, images = table.captions(places, encoder), table.images(places, encoder)
    for direction, queries, items in zip(DIRECTIONS, (captions, images), (images, captions), strict=True):
        asked = slice(queries.unsafe)
        searching = encoder.queries(queries.embeddings[asked])
        title = f"{name}/{direction}" if name else direction
        yield search_for_safe(title, searching, queries.ids[asked], items, settings.block_size)


def _mean(found: Sequence[Hits], settings: EvaluationSettings) -> io.Metric:
    """Mean over galleries of the share of unsafe first hits; each gallery's queries are resampled on their own."""
    outcomes = [100 * hits.top_unsafe.double().numpy() for hits in found]
    resampled = [
        statistics.bootstrap_means(values, settings.bootstrap, settings.bootstrap_seed + number)
        for number, values in enumerate(outcomes)
    ]
    value = float(np.mean([values.mean() for values in outcomes]))
    interval = statistics.percentile_interval(value, np.mean(resampled, axis=0))
    return io.Metric(**interval._asdict(), count=sum(map(len, outcomes)))
