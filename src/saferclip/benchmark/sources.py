"""Where captions come from at paper scale: NoCaps' validation split, or the public release of NSFW-Caps."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from saferclip import io
from saferclip.benchmark.backends import Edit, Proposal, Source
from saferclip.config import BenchmarkImages, NocapsSettings
from saferclip.downloads import leads_out, only_file

RELEASE_COLUMNS = ("image_coco_url", "caption", "nsfw_caption", "chosen_category")
TABLES = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class NocapsImage(BaseModel):
    """An image of NoCaps' captions file."""

    model_config = ConfigDict(frozen=True)

    id: int
    coco_url: str
    domain: str | None = None


class NocapsCaption(BaseModel):
    """A caption of NoCaps' captions file."""

    model_config = ConfigDict(frozen=True)

    image_id: int
    caption: str


class NocapsFile(BaseModel):
    """NoCaps' captions file, in COCO's layout; what else it holds is not needed."""

    images: list[NocapsImage]
    annotations: list[NocapsCaption]


class Captioned(NamedTuple):
    """The address of an image with all captions of it; the first one is to be edited."""

    url: str
    captions: tuple[str, ...]


class Released(NamedTuple):
    """A row of the public release."""

    url: str
    caption: str
    edit: Edit


def nocaps(settings: NocapsSettings, path: Path, seed: int) -> list[Captioned]:
    """The images that may be used, in random order, each with its captions in random order.

    ``path`` is the captions file or a folder that holds it. Raises DataError for a file that is none.
    """
    file = only_file(path, [".json"])
    try:
        found = NocapsFile.model_validate(io.read_json(file))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise io.DataError(f"{file}: not captions in COCO's layout: {where}: {problem['msg']}") from error
    rng = np.random.default_rng(seed)
    captions: dict[int, list[str]] = {}
    for annotation in found.annotations:
        captions.setdefault(annotation.image_id, []).append(" ".join(annotation.caption.split()))
    wanted = [image for image in found.images if _wanted(image, settings) and captions.get(image.id)]
    chosen = [wanted[row] for row in rng.permutation(len(wanted))[: settings.pool]]
    if not chosen:
        raise io.DataError(f"{file}: no image with captions of domains {', '.join(settings.domains or ('any',))}")
    return [Captioned(image.coco_url, tuple(rng.permutation(captions[image.id]).tolist())) for image in chosen]


def _wanted(image: NocapsImage, settings: NocapsSettings) -> bool:
    return settings.domains is None or image.domain in settings.domains


def release(path: Path, size: int) -> list[Released]:
    """The first ``size`` rows of the public release, whatever kind of file it is in.

    ``path`` is that file or a folder as the Hub has it. Raises DataError for missing columns and empty cells.
    """
    table = _table(path)
    missing = [name for name in RELEASE_COLUMNS if name not in table.column_names]
    if missing:
        raise io.DataError(f"{path}: missing column(s) {', '.join(missing)}; it has {', '.join(table.column_names)}")
    rows = table.select(range(min(size, len(table)))).select_columns(list(RELEASE_COLUMNS)).to_list()
    for number, row in enumerate(rows, start=1):
        for name, value in row.items():
            if not isinstance(value, str) or not value.strip():
                raise io.DataError(f"{path}, row {number}: column {name} is empty; download it again")
    return [
        Released(row["image_coco_url"].strip(), row["caption"], Edit(row["nsfw_caption"], row["chosen_category"]))
        for row in rows
    ]


def _table(path: Path) -> Any:
    """All rows of a local data set, by `datasets`, which needs no network for it."""
    import datasets

    if not path.exists():
        raise io.DataError(f"{path}: does not exist; fetch it with `saferclip download`, or set downloads.local")
    datasets.disable_progress_bars()
    kind = TABLES.get(path.suffix.lower()) if path.is_file() else str(path)
    if kind is None:
        raise io.DataError(f"{path}: is no {' or '.join(TABLES)} file")
    given = {"data_files": str(path)} if path.is_file() else {}
    with tempfile.TemporaryDirectory() as cache:  # the converted copy is not needed again
        try:
            parts = datasets.load_dataset(kind, cache_dir=cache, **given)
        except Exception as error:  # `datasets` passes on whatever its readers raise
            raise io.DataError(f"{path}: cannot be read as a data set: {error}") from error
        whole = datasets.concatenate_datasets([parts[name] for name in sorted(parts)])
        return datasets.Dataset.from_dict(whole.to_dict())


# Images by address ------------------------------------------------------------------------------


def addresses(settings: BenchmarkImages, downloads: Mapping[str, Path]) -> list[str]:
    """Addresses of all images that the builder may need, each once. Raises as ``nocaps`` and ``release``."""
    if settings.release:
        rows = release(downloads[settings.release.table], settings.size)
        return list(dict.fromkeys(row.url for row in rows))
    assert settings.nocaps is not None  # by the configuration
    images = nocaps(settings.nocaps, downloads[settings.nocaps.captions], settings.seed)
    return list(dict.fromkeys(image.url for image in images))


def file_name(url: str) -> str:
    """A file name for an address: its own, made safe, after a hash that tells two of one name apart."""
    own = PurePosixPath(unquote(urlsplit(url).path)).name
    safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in own)[
        -80:
    ]
    ending = "" if safe.lower().endswith(SUFFIXES) else ".jpg"
    return f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{safe}{ending}"


class ImageList(BaseModel):
    """What the step benchmark_images found: files by address, and why others are missing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: dict[str, str]
    missing: dict[str, str]


@dataclass(frozen=True)
class Images:
    """The images of a manifest; files lie beside it."""

    manifest: Path
    found: ImageList

    @classmethod
    def read(cls, manifest: Path) -> Images:
        """Read a manifest; raises DataError naming it."""
        try:
            found = TypeAdapter(ImageList).validate_python(io.read_json(manifest))
        except ValidationError as error:
            raise io.DataError(f"{manifest}: not a list of images: {error.errors()[0]['msg']}") from error
        if wrong := next(filter(leads_out, found.images.values()), None):
            raise io.DataError(f"{manifest}: names the image {wrong!r}, which leads out of its folder; make it again")
        return cls(manifest, found)

    def get(self, url: str) -> bytes | None:
        """An image as it was fetched, or None if there is none."""
        name = self.found.images.get(url)
        with suppress(OSError):
            return (self.manifest.parent / name).read_bytes() if name else None
        return None


def is_image(data: bytes) -> bool:
    """Whether the bytes can be decoded to a picture, to the last one."""
    try:
        with io.open_image(data) as image:
            image.load()
    # Pillow's decoders answer damaged files with many kinds of exception.
    except Exception:
        return False
    return True


# For the builder --------------------------------------------------------------------------------


@dataclass
class NocapsCaptions:
    """One caption of each image, in the order of ``nocaps``; images that are missing are passed over."""

    images: Sequence[Captioned]
    files: Images
    counts: Counter[str] = field(default_factory=Counter)
    _waiting: Iterator[Captioned] | None = None

    def draw(self, rng: np.random.Generator) -> Source | None:  # noqa: ARG002
        self._waiting = iter(self.images) if self._waiting is None else self._waiting
        for image in self._waiting:
            data = self.files.get(image.url)
            if data is not None:
                self.counts["used"] += 1
                return Source(image.captions[0], data, image.captions[1:])
            self.counts["image missing"] += 1
        return None

    def report(self) -> dict[str, Any]:
        return {"captions": "NoCaps, validation split", "images": len(self.images), **self.counts}


@dataclass
class ReleasedCaptions:
    """The rows of the public release, as safe captions with images; ``ReleasedEdits`` has their edits."""

    rows: Sequence[Released]
    files: Images
    _next: int = 0

    def draw(self, rng: np.random.Generator) -> Source | None:  # noqa: ARG002
        if self._next == len(self.rows):
            return None
        row = self.rows[self._next]
        self._next += 1
        return Source(row.caption, self.files.get(row.url))

    def report(self) -> dict[str, Any]:
        missing = sum(row.url not in self.files.found.images for row in self.rows)
        return {"captions": "NSFW-Caps, public release", "rows": len(self.rows), "image missing": missing}


@dataclass
class ReleasedEdits:
    """The edits of the public release, in the same order."""

    rows: Sequence[Released]

    def edit(self, sources: Iterable[Source], rng: np.random.Generator) -> Iterator[Proposal]:  # noqa: ARG002
        for source, row in zip(sources, self.rows, strict=True):
            yield Proposal(source, row.edit)

    def report(self) -> dict[str, Any]:
        return {"kind": "edited by the authors of NSFW-Caps"}
