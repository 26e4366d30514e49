"""Own pairs for real: photographs from scikit-image's wheel in all their forms, through the whole workflow.

``config/own-pairs.yaml`` is run as it stands but for the sizes: its paths are where the tables are put.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from numpy.typing import NDArray
from PIL import ExifTags, Image

from saferclip import io
from saferclip.config import LocalData
from saferclip.data import local

SUBJECTS = {
    "astronaut.png": "an astronaut in an orange suit",
    "chelsea.png": "a ginger cat looking up",
    "coffee.png": "a cup of coffee on a saucer",
    "camera.png": "a man with a camera on a tripod",
    "coins.png": "old coins in rows",
    "brick.png": "a brick wall",
    "gravel.png": "gravel on the ground",
    "hubble_deep_field.jpg": "galaxies in the night sky",
    "clock_motion.png": "a clock that was moved",
    "motorcycle_left.png": "a motorcycle in a workshop",
    "moon.png": "the surface of the moon",
    "page.png": "a page of a book",
}
COUNTS = {"train": 12, "validation": 6, "test": 6}
RESULTS = "results/own-photographs"
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Form:
    """A way of keeping a photograph: how it is written, what it then shows, and how exactly."""

    suffix: str
    write: Callable[[Image.Image], bytes]
    shows: Callable[[Image.Image], Image.Image] = lambda photograph: photograph
    tolerance: float = 0.0  # mean absolute difference of 256 levels
    kept: bool = False  # byte by byte


def _bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _grey(photograph: Image.Image) -> Image.Image:
    return photograph.convert("L").convert("RGB")


def _faded(photograph: Image.Image) -> Image.Image:
    """With an alpha channel that grows from left to right."""
    width, height = photograph.size
    alpha = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    photograph = photograph.copy()
    photograph.putalpha(Image.fromarray(alpha))
    return photograph


def _on_white(photograph: Image.Image) -> Image.Image:
    """Alpha compositing by its definition."""
    pixels = np.asarray(_faded(photograph), float)
    share = pixels[:, :, 3:] / 255
    return Image.fromarray((pixels[:, :, :3] * share + 255 * (1 - share)).round().astype(np.uint8))


def _grey16(photograph: Image.Image) -> bytes:
    return _bytes(Image.fromarray(np.asarray(photograph.convert("L")).astype(np.uint16) * 257), "PNG")


def _on_its_side(photograph: Image.Image) -> bytes:
    """As a camera held upright stores it: turned to the left, with the note 'turn to the right'."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return _bytes(photograph.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90, exif=exif)


FORMS = {
    "jpeg": Form("jpg", lambda image: _bytes(image, "JPEG", quality=90), tolerance=8, kept=True),
    "progressive jpeg": Form(
        "jpeg", lambda image: _bytes(image, "JPEG", quality=90, progressive=True), tolerance=8, kept=True
    ),
    "png": Form("png", lambda image: _bytes(image, "PNG"), kept=True),
    "grey jpeg": Form("JPG", lambda image: _bytes(image.convert("L"), "JPEG", quality=90), _grey, 8),
    "grey png": Form("png", lambda image: _bytes(image.convert("L"), "PNG"), _grey),
    "grey png of 16 bits": Form("png", _grey16, _grey),
    "rgba png": Form("png", lambda image: _bytes(_faded(image), "PNG"), _on_white, 0.6),
    "palette png": Form("png", lambda image: _bytes(image.quantize(256), "PNG"), tolerance=10),
    "palette gif": Form("gif", lambda image: _bytes(image.quantize(256), "GIF"), tolerance=10),
    "cmyk jpeg": Form("jpg", lambda image: _bytes(image.convert("CMYK"), "JPEG", quality=95), tolerance=8),
    "rotated jpeg": Form("jpg", _on_its_side, tolerance=8),
    "webp": Form("webp", lambda image: _bytes(image, "WEBP", quality=90), tolerance=8),
    "tiff": Form("tif", lambda image: _bytes(image, "TIFF", compression="tiff_lzw")),
}


@dataclass(frozen=True)
class Photograph:
    """A photograph as it was taken, and the form it was put into."""

    truth: Image.Image
    form: Form


class Pairs:
    """Tables of 24 quadruples in ``folder``; ``photographs`` by split, row and column."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photographs: dict[tuple[str, int, str], Photograph] = {}
        rows = {split: [self._row(split, number) for number in range(count)] for split, count in COUNTS.items()}
        self._write_csv("train", rows["train"])
        self._write_parquet("validation", rows["validation"])
        self._write_csv("test", rows["test"])

    @property
    def settings(self) -> LocalData:
        return LocalData(
            train=self.folder / "train.csv",
            validation=self.folder / "validation.parquet",
            test=self.folder / "test.csv",
            image_root=self.folder / "images",
        )

    def _row(self, split: str, number: int) -> dict[str, Any]:
        name, caption = list(SUBJECTS.items())[number % len(SUBJECTS)]
        place = list(COUNTS).index(split)
        # Another part of the photograph in each split, and other sizes.
        safe = _photograph(name, 40 * place, size=(150 + 10 * number, 140))
        rocket = _photograph("rocket.jpg", 20 * number, size=safe.size)
        unsafe = Image.blend(safe, rocket, 0.6)
        return {
            "id": f"{split}-{number}",
            "category": "weapons",
            "safe_caption": f"{caption}, part {place}",
            "unsafe_caption": f"{caption} and a missile, part {place}",
            "safe_image": self._keep(split, number, "safe_image", safe),
            "unsafe_image": self._keep(split, number, "unsafe_image", unsafe),
        }

    def _keep(self, split: str, number: int, column: str, truth: Image.Image) -> str:
        """Write a photograph in the next form; return its path below the images' folder."""
        form = list(FORMS.values())[len(self.photographs) % len(FORMS)]
        self.photographs[split, number, column] = Photograph(truth, form)
        path = Path(split, f"{column} {number}.{form.suffix}")
        (self.folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (self.folder / "images" / path).write_bytes(form.write(truth))
        return str(path)

    def _write_csv(self, split: str, rows: list[dict[str, Any]]) -> None:
        with (self.folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def _write_parquet(self, split: str, rows: list[dict[str, Any]]) -> None:
        """With the images inside, as `datasets` does it."""
        kinds: dict[str, Any] = {name: Value("string") for name in rows[0]}
        features = Features(kinds | {"safe_image": ImageFeature(), "unsafe_image": ImageFeature()})
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        for name in ("safe_image", "unsafe_image"):
            contents = [(self.folder / "images" / path).read_bytes() for path in columns[name]]
            columns[name] = [{"bytes": content, "path": None} for content in contents]
        Dataset.from_dict(columns, features=features).to_parquet(str(self.folder / f"{split}.parquet"))


def _photograph(name: str, offset: int, size: tuple[int, int]) -> Image.Image:
    with Image.open(BytesIO((files("skimage.data") / name).read_bytes())) as image:
        return image.convert("RGB").crop((offset, offset, offset + size[0], offset + size[1]))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def run(pairs: Pairs, project_copy: Any, tiny_clip_folder: Path) -> Any:
    """The project after config/own-pairs.yaml was run on the photographs, in little."""
    project = project_copy("own-photographs")
    (project.folder / "my-pairs").symlink_to(pairs.folder)
    (project.folder / "models").mkdir()
    (project.folder / "models/vit-b-32").symlink_to(tiny_clip_folder)
    project.variant("own-photographs", SMALL, config="own-pairs")
    project.snakemake(config="own-photographs")
    return project


SMALL = {
    "name": "own-photographs",
    "seeds": [0],
    "data.local.validation": "my-pairs/validation.parquet",
    "optimisation.epochs": 2,
    "methods.safe-clip.learning_rate": 0.01,
    "methods.safer-clip.learning_rate": 0.01,
    "optimisation.batch_size": 4,
    "optimisation.precision": "fp32",
    "evaluation.bootstrap": 50,
    "figures.dpi": 50,
    "figures.examples": 2,
}


def test_every_form_occurs_in_every_role(pairs: Pairs) -> None:
    forms = {
        column: {id(photograph.form) for (_, _, name), photograph in pairs.photographs.items() if name == column}
        for column in ("safe_image", "unsafe_image")
    }
    assert all(len(found) == len(FORMS) for found in forms.values())
    sizes = {photograph.truth.size for photograph in pairs.photographs.values()}
    assert len(sizes) == max(COUNTS.values())


def test_every_photograph_looks_as_it_was_taken(pairs: Pairs) -> None:
    tables = {split: list(rows) for split, rows in local.quadruples(pairs.settings).items()}
    assert {split: len(rows) for split, rows in tables.items()} == COUNTS
    for (split, number, column), photograph in pairs.photographs.items():
        data = tables[split][number][column]
        expected = np.asarray(photograph.form.shows(photograph.truth), int)
        with Image.open(BytesIO(data)) as image:
            assert image.mode == "RGB"
            found = np.asarray(image, int)
        assert found.shape == expected.shape, f"{split} {number} {column}: other size"
        assert np.abs(found - expected).mean() <= photograph.form.tolerance, f"{split} {number} {column}"
        assert (data == photograph.form.write(photograph.truth)) == photograph.form.kept


def test_the_workflow_reads_the_same_rows(run: Any, pairs: Pairs) -> None:
    for split, rows in local.quadruples(pairs.settings).items():
        found = io.read_table(run.folder / RESULTS / "data" / f"{split}.parquet").to_pylist()
        expected = list(rows)
        assert [row["safe_image"]["bytes"] for row in found] == [row["safe_image"] for row in expected]
        assert [row["unsafe_caption"] for row in found] == [row["unsafe_caption"] for row in expected]


def test_every_method_is_trained_and_evaluated(run: Any) -> None:
    for method in ("clip", "safe-clip", "safer-clip"):
        for benchmark in ("test", "drift", "geometry", "robustness"):
            record = io.read_evaluation(run.folder / RESULTS / f"evaluation/{method}/seed-0/{benchmark}.json")
            assert record.provenance["settings"]["benchmarks"] == ["test", "drift", "geometry", "robustness"]
            assert COUNTS["test"] in record.counts.values()
        drift = io.read_evaluation(run.folder / RESULTS / f"evaluation/{method}/seed-0/drift.json")
        cosines = [drift.metrics[f"safe_{modality}/cosine"].value for modality in ("text", "image")]
        assert cosines == pytest.approx([1, 1], abs=1e-6) if method == "clip" else max(cosines) < 0.9999
    record = json.loads((run.folder / RESULTS / "training/safer-clip/seed-0/record.json").read_text())
    assert record["provenance"]["seed"] == 0
    with (run.folder / RESULTS / "training/safer-clip/seed-0/epochs.csv").open() as file:
        quadruples = [int(float(row["quadruples"])) for row in csv.DictReader(file)]
    # The easiest third, then the easier two thirds.
    assert quadruples == [4, 8]


def test_tables_figures_and_report_are_made(run: Any) -> None:
    results = run.folder / RESULTS
    assert (results / "report.html").stat().st_size > 100_000
    with (results / "tables/main.csv").open() as file:
        text = file.read()
    assert all(name in text for name in ("CLIP", "Safe-CLIP", "SaFeR-CLIP"))
    assert {path.suffix for path in (results / "figures").iterdir()} == {".pdf", ".png"}
    assert (results / "figures/retrieval_grid.png").is_file()
    # The embedded world's base model was calibrated, this one was not.
    assert not list((results / "tables").glob("calibration*"))


def test_problems_stop_the_run_with_file_row_and_remedy(run: Any, pairs: Pairs) -> None:
    rows = (pairs.folder / "train.csv").read_text().splitlines()
    rows[3] = rows[3].replace(".", "-absent.")
    rows[5] = rows[5].replace("train-4", "train-0")
    (pairs.folder / "broken.csv").write_text("\n".join(rows))
    config = run.variant("broken", SMALL | {"name": "broken", "data.local.train": "my-pairs/broken.csv"}, "own-pairs")
    said = run.snakemake(config=config, check=False)
    assert "3 problems in the data; nothing was written" in said
    assert "my-pairs/broken.csv: line 4: safe_image: " in said
    assert "does not exist; correct the path, or set data.local.image_root" in said
    assert "my-pairs/broken.csv: line 6: id: 'train-0' is the id of my-pairs/broken.csv, line 2 too" in said
    assert not list((run.folder / "results/broken").rglob("*.parquet"))
    assert "Traceback" not in said
