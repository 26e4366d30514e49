"""What training feeds to the model: token ids, pixels, and the frozen embeddings beside them."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize  # type: ignore[import-untyped]

from saferclip import io, signals
from saferclip.config import MethodSettings
from saferclip.mining import embedding, nearest
from saferclip.models import Clip
from saferclip.training.losses import Present, References

DECODED_BYTES = 2 * 1024**3  # pixels of one split are kept in memory up to this size, else decoded when used
LONGEST_QUEUE = 2  # batches that each decoding process prepares

Pair = tuple[Tensor | None, Tensor | None]  # a row's safe and unsafe pixels, where they are there

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
    """Where unsafe training inputs are sent, and how hard that is; shapes (rows,)."""

    rows: Tensor
    difficulty: Tensor


def read_split(path: Path, clip: Clip, workers: int, readers: int = 1) -> Split:
    """Tokenise the captions once, and open the images; ``readers`` processes of this machine do so at once."""
    captions = io.read_table(path, embedding.CAPTIONS)
    safe, unsafe = (clip.tokenize(captions[column].to_pylist()) for column in embedding.CAPTIONS)
    images = Images(*(embedding.present(path, column) for column in embedding.IMAGES))
    return Split(safe, unsafe, open_pictures(path, clip, images, workers, readers), images)


def open_pictures(path: Path, clip: Clip, images: Images, workers: int, readers: int = 1) -> Pictures:
    """Decode all images now if they fit into ``DECODED_BYTES``, once for each reader, else leave them to workers."""
    to_pixels, _ = split_preprocess(clip.preprocess)
    size = images.total * to_pixels(Image.new("RGB", (8, 8))).numel()
    if size * readers <= DECODED_BYTES:
        return DecodedPictures(path, to_pixels, images)
    logger.info("%s: %.1f GB of pixels do not fit; images are decoded when they are used", path, size / 1e9)
    return StreamedPictures(path, to_pixels, workers)


def split_preprocess(preprocess: Callable[..., Any]) -> tuple[Callable[[Image.Image], Tensor], Normalize]:
    """Part open_clip's preprocessing: a picture to uint8 (height, width, 3), and the normalisation.

    ``normalise(pixels.permute(2, 0, 1).float() / 255)`` equals ``preprocess(image)``.
    """
    *steps, normalise = preprocess.transforms if isinstance(preprocess, Compose) else [preprocess]
    if not isinstance(normalise, Normalize):
        raise io.DataError("this model's preprocessing does not end in a normalisation; use an open_clip model")
    return partial(_pixels, Compose(steps)), normalise


def _pixels(to_tensor: Callable[[Image.Image], Tensor], image: Image.Image) -> Tensor:
    return to_tensor(image).mul(255).round().byte().permute(1, 2, 0).contiguous()


class DecodedPictures:
    """All pixels of a split in memory, decoded and resized once."""

    def __init__(self, path: Path, to_pixels: Callable[[Image.Image], Tensor], images: Images) -> None:
        self.images = images
        self.safe, self.unsafe = (
            _decode(path, column, to_pixels, int(there.sum()))
            for column, there in zip(embedding.IMAGES, images, strict=True)
        )
        # The place of each row's image among those that are there.
        self.safe_place, self.unsafe_place = (there.cumsum(0) - 1 for there in images)

    def batches(self, plan: Sequence[Tensor]) -> Iterator[Tensor]:
        """See Pictures."""
        for rows in plan:
            safe = self.safe_place[rows[self.images.safe[rows]]]
            unsafe = self.unsafe_place[rows[self.images.unsafe[rows]]]
            yield torch.cat([self.safe[safe], self.unsafe[unsafe]]).permute(0, 3, 1, 2)


def _decode(path: Path, column: str, to_pixels: Callable[[Image.Image], Tensor], count: int) -> Tensor:
    """All images of a column as uint8 (images, height, width, 3)."""
    # Filled one by one: stacking would need the memory twice.
    pixels = torch.empty(count, *_shape(to_pixels), dtype=torch.uint8)
    images = (image for image in embedding.read_images(path, column) if image is not None) if count else ()
    for place, image in enumerate(images):
        pixels[place] = to_pixels(image)
    return pixels


def _shape(to_pixels: Callable[[Image.Image], Tensor]) -> torch.Size:
    """Height, width and channels of a model's input."""
    return to_pixels(Image.new("RGB", (8, 8))).shape


class StreamedPictures:
    """Pixels decoded by worker processes, from a memory-mapped copy that ``datasets`` makes in its cache."""

    def __init__(self, path: Path, to_pixels: Callable[[Image.Image], Tensor], workers: int) -> None:
        self.rows = _Rows(path, to_pixels)
        self.workers = workers

    def batches(self, plan: Sequence[Tensor]) -> Iterator[Tensor]:
        """See Pictures."""
        sampler = [rows.tolist() for rows in plan]
        queue = LONGEST_QUEUE if self.workers else None
        loader = DataLoader(
            self.rows,
            batch_sampler=sampler,
            num_workers=self.workers,
            prefetch_factor=queue,
            collate_fn=partial(_safe_then_unsafe, _shape(self.rows.to_pixels)),
            worker_init_fn=_leave_signals_to_training,
            # Else each pass would draw from the random numbers of dropout, and a pass begun anew would draw once more.
            generator=torch.Generator(),
        )
        for pixels in loader:
            if isinstance(pixels, io.DataError):
                raise pixels
            yield pixels.permute(0, 3, 1, 2)


def _leave_signals_to_training(_worker: int) -> None:
    """Go on when a whole group of processes is told to end: training finishes its step, and then ends its helpers."""
    for number in signals.ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def decoding() -> Iterator[None]:
    """Around all that happens while images are decoded: raises DataError if a decoding process dies.

    torch says so wherever the main process happens to be.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if not reason.startswith("DataLoader worker"):
            raise
        raise io.DataError(
            f"a process that decodes images is gone ({reason}); unless it says why above, it was most likely killed "
            "because the machine, or the job, ran out of memory or of shared memory (/dev/shm): ask for more memory, "
            "or for fewer threads, of which each decodes images. The run's state is kept: start again to go on"
        ) from error


class _Rows(Dataset[Pair | io.DataError]):
    def __init__(self, path: Path, to_pixels: Callable[[Image.Image], Tensor]) -> None:
        import datasets

        self.path = path
        self.to_pixels = to_pixels
        self.table = datasets.Dataset.from_parquet(str(path), columns=list(embedding.IMAGES))
        for column in embedding.IMAGES:
            self.table = self.table.cast_column(column, datasets.Image(decode=False))

    def __getitem__(self, row: int) -> Pair | io.DataError:
        """The row's pixels; an error is handed over as a value, to which torch adds no traceback."""
        cells = self.table[row]
        try:
            safe, unsafe = (
                None
                if cells[column] is None
                else self.to_pixels(embedding.decode(cells[column], f"{self.path}: row {row}, {column}"))
                for column in embedding.IMAGES
            )
        except io.DataError as error:
            return error
        return safe, unsafe


def _safe_then_unsafe(shape: torch.Size, rows: Sequence[Pair | io.DataError]) -> Tensor | io.DataError:
    pairs: list[Pair] = []
    for row in rows:
        if isinstance(row, io.DataError):
            return row
        pairs.append(row)
    images = [safe for safe, _ in pairs] + [unsafe for _, unsafe in pairs]
    there = [image for image in images if image is not None]
    return torch.stack(there) if there else torch.empty(0, *shape, dtype=torch.uint8)


def read_targets(method: MethodSettings, train: Path, neighbours: Path) -> Targets:
    """Target row of each training row by the method's rule, with terciles of their similarity.

    Raises DataError if the neighbour table does not match the training table.
    """
    ids = nearest.read_training_ids(train)
    table = io.read_table(neighbours, ("unsafe_id", "safe_id", "paired_similarity", "difficulty"))
    mined = {row["unsafe_id"]: row for row in table.to_pylist()}
    row_of = {name: row for row, name in enumerate(ids)}
    if mined.keys() != row_of.keys() or not {row["safe_id"] for row in mined.values()} <= row_of.keys():
        raise io.DataError(f"{neighbours}: its ids are not those of {train}; mine again")
    if method.targets == "nearest":
        return Targets(
            torch.tensor([row_of[mined[name]["safe_id"]] for name in ids]),
            torch.tensor([mined[name]["difficulty"] for name in ids]),
        )
    paired = torch.tensor([mined[name]["paired_similarity"] for name in ids])
    return Targets(torch.arange(len(ids)), nearest.terciles(paired, ids))


def read_frozen(embeddings: Path, targets: Targets, images: Images) -> References:
    """Frozen embeddings of all training rows and of their targets, each of shape (rows, dim).

    Raises DataError if they are not as many as the training rows, or not of the same images.
    """
    tensors = io.read_tensors(embeddings)
    count = len(targets.rows)
    columns = {}
    for column in (*embedding.CAPTIONS, *embedding.IMAGES):
        columns[column] = tensors.get(f"train.{column}", torch.empty(0))
        if len(columns[column]) != count:
            raise io.DataError(f"{embeddings}: {len(columns[column])} rows of train.{column}, not {count}; embed again")
    for column, there in zip(embedding.IMAGES, images, strict=True):
        embedded = tensors.get(f"train.{column}.present")
        if embedded is None or not torch.equal(embedded, there):
            raise io.DataError(f"{embeddings}: other images are there in train.{column} than in the table; embed again")
    complete = images.total == 2 * count
    return References(
        safe_text=columns["safe_caption"],
        unsafe_text=columns["unsafe_caption"],
        safe_image=columns["safe_image"],
        unsafe_image=columns["unsafe_image"],
        target_text=columns["safe_caption"][targets.rows],
        target_image=columns["safe_image"][targets.rows],
        present=None if complete else Present(images.safe, images.unsafe, images.safe[targets.rows]),
    )
