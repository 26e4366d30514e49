"""What training feeds to the model: token ids, pixels, and the frozen embeddings beside them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from saferclip import io
from saferclip.config import HyperbolicMethod, MethodSettings, TargetRule
from saferclip.mining import embedding, nearest, pixels
from saferclip.mining.pixels import IMAGES
from saferclip.models import Clip
from saferclip.training import geometry
from saferclip.training.losses import Labels, Present, References

READERS = 4  # threads that read batches
BATCHES_AHEAD = 4  # that are read before they are asked for

logger = logging.getLogger(__name__)


class Images(NamedTuple):
    """Which rows of a split have their safe and their unsafe image: bool tensors of shape (rows,)."""

    safe: Tensor
    unsafe: Tensor

    def select(self, rows: Tensor) -> Images:
        """The same for some rows."""
        return Images(self.safe[rows], self.unsafe[rows])

    @property
    def total(self) -> int:
        """How many images there are."""
        return int(self.safe.sum()) + int(self.unsafe.sum())


class Pictures(Protocol):
    """Safe and unsafe images of one split."""

    def batches(self, plan: Sequence[Tensor]) -> Iterator[Tensor]:
        """Pixels for each tensor of n rows: uint8 (2 n, 3, height, width), the safe images first.

        Where images are withheld there are fewer, those of the other rows in the same order.
        """


class Source(Protocol):
    """Where the pixels of a split are."""

    def read(self, column: str, places: Sequence[int], pixels: np.ndarray) -> None:
        """Fill ``pixels``, uint8 (n, height, width, 3), with images of a column, counted without withheld ones."""


@dataclass(frozen=True)
class Memory:
    """Pixels in memory: uint8 (images, height, width, 3) by column."""

    columns: Mapping[str, np.ndarray]

    def read(self, column: str, places: Sequence[int], pixels: np.ndarray) -> None:
        """See Source."""
        np.take(self.columns[column], places, axis=0, out=pixels, mode="clip")


class ReadAhead:
    """Pictures whose batches are read while earlier ones are worked on, into memory from which a GPU fetches them."""

    def __init__(self, source: Source, images: Images, shape: Sequence[int]) -> None:
        self.source = source
        self.images = images
        self.shape = shape
        # The place of each row's image among those that are there.
        self.places = Images(*(there.cumsum(0) - 1 for there in images))

    def batches(self, plan: Sequence[Tensor]) -> Iterator[Tensor]:
        """See Pictures."""
        return pixels.ahead(self._read, plan, READERS, BATCHES_AHEAD)

    def _read(self, rows: Tensor) -> Tensor:
        wanted = [places[rows[there[rows]]].tolist() for places, there in zip(self.places, self.images, strict=True)]
        counts = [len(places) for places in wanted]
        batch = torch.empty(sum(counts), *self.shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        for column, places, part in zip(IMAGES, wanted, torch.split(batch, counts), strict=True):
            self.source.read(column, places, part.numpy())
        return batch.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Split:
    """One split of quadruples, row by row as in its table."""

    safe_tokens: Tensor  # (rows, context)
    unsafe_tokens: Tensor
    pictures: Pictures
    images: Images

    def __len__(self) -> int:
        return len(self.safe_tokens)


@dataclass(frozen=True)
class Targets:
    """Where unsafe training inputs are sent, and how hard that is."""

    rows: Tensor  # int64 (rows, neighbours): the target is the mean of these safe items
    difficulty: Tensor  # int64 (rows,)

    def of(self, column: Tensor) -> Tensor:
        """Target embeddings, from those of the safe items: both (rows, dim), of unit length.

        A withheld image, whose row is zero, has no part in a mean; the target is zero where all are withheld.
        """
        found = column[self.rows[:, 0]]
        if self.rows.shape[1] == 1:
            return found
        for place in range(1, self.rows.shape[1]):
            found += column[self.rows[:, place]]
        return functional.normalize(found, dim=-1)


def read_split(path: Path, clip: Clip, stored: Stored | None = None, readers: int = 1) -> Split:
    """Tokenise the captions once, and open the images; ``readers`` processes of this machine do so at once.

    Raises ConfigError if there is no file of pixels, and they are too many for memory; DataError for unfit files.
    """
    captions = io.read_table(path, embedding.CAPTIONS)
    safe, unsafe = (clip.tokenize(captions[column].to_pylist()) for column in embedding.CAPTIONS)
    images = Images(*(embedding.present(path, column) for column in IMAGES))
    return Split(safe, unsafe, open_pictures(path, clip, images, stored, readers), images)


@dataclass(frozen=True)
class Stored:
    """A file of a split's pixels, and the SHA-256 of the table that it has to be of."""

    file: Path
    table_sha256: str


def open_pictures(path: Path, clip: Clip, images: Images, stored: Stored | None, readers: int) -> Pictures:
    """The images of a table, from a file of pixels or decoded now."""
    to_pixels, _ = pixels.split_preprocess(clip.preprocess)
    shape = pixels.shape_of(to_pixels)
    counts = {column: int(there.sum()) for column, there in zip(IMAGES, images, strict=True)}
    if stored:
        made_of = pixels.made_of(stored.table_sha256, to_pixels)
        return ReadAhead(pixels.PixelFile(stored.file, counts, shape, made_of), images, shape)
    pixels.check_memory(path, images.total * shape.numel() * readers)
    columns = {}
    for column, count in counts.items():
        # Filled one by one: stacking would need the memory twice.
        columns[column] = np.empty((count, *shape), dtype=np.uint8)
        decoded = pixels.decoded(path, column, to_pixels, torch.get_num_threads()) if count else ()
        for place, image in enumerate(decoded):
            columns[column][place] = image.numpy()
    return ReadAhead(Memory(columns), images, shape)


def read_targets(method: MethodSettings | HyperbolicMethod, train: Path, neighbours: Path) -> Targets:
    """Target rows of each training row by the method's rule, with terciles of their similarity.

    ``neighbours`` is what mining wrote for that rule.  Raises DataError if it does not match the training table.
    """
    ids = nearest.read_training_ids(train)
    paired = method.targets == "paired"
    table = io.read_table(neighbours, ("unsafe_id", "safe_id", "paired_similarity" if paired else "difficulty"))
    mined: dict[str, list[dict[str, Any]]] = {name: [] for name in ids}
    for row in table.to_pylist():
        if row["unsafe_id"] not in mined or row["safe_id"] not in mined:
            raise io.DataError(f"{neighbours}: its ids are not those of {train}; mine again")
        mined[row["unsafe_id"]].append(row)
    wanted = method.targets.neighbours or 1 if isinstance(method.targets, TargetRule) else 1
    if any(len(rows) != wanted for rows in mined.values()):
        raise io.DataError(
            f"{neighbours}: its ids are not those of {train}, or not {wanted} for each unsafe input; mine again"
        )
    if paired:
        similarity = torch.tensor([mined[name][0]["paired_similarity"] for name in ids])
        return Targets(torch.arange(len(ids))[:, None], nearest.terciles(similarity, ids))
    row_of = {name: row for row, name in enumerate(ids)}
    return Targets(
        torch.tensor([[row_of[row["safe_id"]] for row in mined[name]] for name in ids]),
        torch.tensor([mined[name][0]["difficulty"] for name in ids]),
    )


def read_labels(method: MethodSettings | HyperbolicMethod, train: Path) -> Labels | None:
    """What the training table says of the safety of what stands in unsafe places, if the method heeds it.

    Raises DataError if it does not say so by truth values.
    """
    if method.labels is None:
        return None
    columns = [io.labels(train, column) for column in io.LABEL_COLUMNS]
    if columns == [None, None]:
        logger.warning("%s: no column %s or %s; all is taken for unsafe that stands so", train, *io.LABEL_COLUMNS)
    rows = io.read_table(train, ("id",)).num_rows
    return Labels(*(torch.tensor([True] * rows if column is None else column) for column in columns))


def read_frozen(embeddings: Path, targets: Targets, images: Images, labels: Labels | None = None) -> References:
    """Frozen embeddings of all training rows and of their targets, each of shape (rows, dim).

    The direction from safe to unsafe inputs of each modality, (dim,), is shared by all rows.

    Raises DataError if they are not as many as the training rows, or not of the same images.
    """
    tensors = io.read_tensors(embeddings)
    count = len(targets.rows)
    columns = {}
    for column in (*embedding.CAPTIONS, *IMAGES):
        columns[column] = tensors.get(f"train.{column}", torch.empty(0))
        if len(columns[column]) != count:
            raise io.DataError(f"{embeddings}: {len(columns[column])} rows of train.{column}, not {count}; embed again")
    for column, there in zip(IMAGES, images, strict=True):
        embedded = tensors.get(f"train.{column}.present")
        if embedded is None or not torch.equal(embedded, there):
            raise io.DataError(f"{embeddings}: other images are there in train.{column} than in the table; embed again")
    complete = images.total == 2 * count
    pictured = images.safe & images.unsafe
    shared = {
        "unsafe_direction_text": geometry.unsafe_direction(columns["safe_caption"], columns["unsafe_caption"]),
        "unsafe_direction_image": geometry.unsafe_direction(
            columns["safe_image"][pictured], columns["unsafe_image"][pictured]
        ),
    }
    return References(
        safe_text=columns["safe_caption"],
        unsafe_text=columns["unsafe_caption"],
        safe_image=columns["safe_image"],
        unsafe_image=columns["unsafe_image"],
        target_text=targets.of(columns["safe_caption"]),
        target_image=targets.of(columns["safe_image"]),
        present=None if complete else Present(images.safe, images.unsafe, images.safe[targets.rows].any(dim=1)),
        labels=labels,
        shared=shared,
    )
