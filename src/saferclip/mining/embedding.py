"""Embed training and validation quadruples with the frozen model, once for all that follows.

The frozen encoders' outputs never change, so mining and training look them up here instead of
computing them again.  Rows may lack images: captions are all that mining needs, and training uses a
row wherever it has what a term of the loss asks for.  Decoded images can be kept for training on the way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from saferclip import io, models, provenance
from saferclip.config import MiningSettings
from saferclip.mining import pixels
from saferclip.mining.pixels import IMAGES
from saferclip.models import Clip

CAPTIONS = ("safe_caption", "unsafe_caption")
FILE = "frozen.safetensors"
SUMMARY = "summary.json"

logger = logging.getLogger(__name__)


def embed(settings: MiningSettings, base_model: Path, train: Path, validation: Path, output: Path) -> None:
    """Write ``frozen.safetensors``, ``summary.json``, which counts what was embedded, and files of pixels if asked to.

    Tensors are ``{split}.{column}``, fp32 unit rows in the table's order, and zero where an image is withheld;
    ``{split}.{column}.present``, of the two image columns, is bool (rows,) and says where that is not so.
    Raises DataError if a table has no usable caption somewhere, or an image that cannot be decoded.
    """
    clip = models.load(base_model, models.default_device())
    tables = {"train": train, "validation": validation}
    if settings.pixels is None:
        shape = pixels.shape_of(pixels.split_preprocess(clip.preprocess)[0])
        for split, path in tables.items():
            (output / pixels_file(split)).unlink(missing_ok=True)  # training would take it for one of these images
            pixels.check_memory(path, shape.numel() * sum(int(present(path, column).sum()) for column in IMAGES))
    files = {split: output / pixels_file(split) if settings.pixels == "file" else None for split in tables}
    embedded = {split: embed_table(clip, path, settings.batch_size, files[split]) for split, path in tables.items()}
    masks = {f"{split}.{column}.present": present(path, column) for split, path in tables.items() for column in IMAGES}
    columns = {f"{split}.{column}": rows for split, table in embedded.items() for column, rows in table.items()}
    io.write_tensors(output / FILE, columns | masks)
    io.write_json(output / SUMMARY, {split: _counts(split, columns, masks) for split in tables})


def pixels_file(split: str) -> str:
    """Name of the file of a split's pixels."""
    return f"{split}_pixels.safetensors"


def embed_table(clip: Clip, path: Path, batch_size: int, pixels_to: Path | None = None) -> dict[str, Tensor]:
    """Embed the four inputs of each quadruple: column to unit rows of shape (quadruples, dim).

    Where an image is withheld, its row is zero.  ``pixels_to`` is a file to write all images' pixels to.
    """
    captions = io.read_table(path, CAPTIONS)
    embedded = {
        column: embed_captions(clip, captions[column].to_pylist(), batch_size, f"{path.stem} {column}")
        for column in CAPTIONS
    }
    dim = embedded[CAPTIONS[0]].shape[1]
    there = {column: present(path, column) for column in IMAGES}
    with _pixel_writer(clip, path, there, pixels_to) as writer:
        for column, mask in there.items():
            rows = _embed_images(clip, path, column, int(mask.sum()), batch_size, writer)
            embedded[column] = spread(rows, mask, dim)
            logger.info("%s: embedded %d of %d in %s", path, int(mask.sum()), len(mask), column)
    return embedded


def _pixel_writer(
    clip: Clip, path: Path, there: Mapping[str, Tensor], file: Path | None
) -> AbstractContextManager[pixels.Writer | None]:
    if file is None:
        return nullcontext()
    to_pixels, _ = pixels.split_preprocess(clip.preprocess)
    made_of = pixels.made_of(provenance.file_digest(path), to_pixels)
    counts = {column: int(mask.sum()) for column, mask in there.items()}
    return pixels.writing(file, counts, pixels.shape_of(to_pixels), made_of)


@torch.inference_mode()
def _embed_images(
    clip: Clip, path: Path, column: str, count: int, batch_size: int, writer: pixels.Writer | None
) -> Tensor:
    """Unit rows of the images that are there, (images, dim); they are decoded while others are embedded."""
    if not count:
        return torch.empty(0)
    to_pixels, normalise = pixels.split_preprocess(clip.preprocess)
    device = next(clip.model.parameters()).device
    decoded = pixels.decoded(path, column, to_pixels, torch.get_num_threads())
    embedded = []
    # disable=None: tqdm is silent where the output is not a terminal.
    with tqdm(total=count, desc=f"{path.stem} {column}", disable=None) as bar:
        while images := list(islice(decoded, batch_size)):
            if writer:
                for image in images:
                    writer.add(image)
            # In the order of the model's own preprocessing, on which the last bits of a convolution may depend.
            batch = torch.stack(images).permute(0, 3, 1, 2).contiguous().to(device)
            embedded.append(models.image_features(clip.model, normalise(batch.float() / 255)).cpu())
            bar.update(len(images))
    return torch.cat(embedded)


def spread(rows: Tensor, there: Tensor, dim: int) -> Tensor:
    """Put each of some rows, (images, dim), where ``there``, bool (n,), is true: (n, dim), else zero."""
    if there.all():
        return rows
    result = rows.new_zeros(len(there), dim)
    return result.index_put((there.to(rows.device).nonzero()[:, 0],), rows) if len(rows) else result


def present(path: Path, column: str) -> Tensor:
    """Which rows of a table have an image in this column: bool (rows,)."""
    return torch.tensor(io.present(path, column), dtype=torch.bool)


def _counts(split: str, columns: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, int]:
    images = {column: int(masks[f"{split}.{column}.present"].sum()) for column in IMAGES}
    rows = len(columns[f"{split}.{CAPTIONS[0]}"])
    return {"rows": rows, **images, **{f"without_{column}": rows - count for column, count in images.items()}}


def embed_captions(clip: Clip, captions: Sequence[str], batch_size: int, progress: str | None = None) -> Tensor:
    """Embed each different caption once, so that equal captions have equal embeddings to the last bit."""
    places = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    embedded = models.encode_texts(clip, list(places), batch_size, progress)
    return embedded[torch.tensor([places[caption] for caption in captions])]
