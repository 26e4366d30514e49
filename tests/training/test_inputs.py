"""What training feeds to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose, Resize

from saferclip import io, models
from saferclip.mining import nearest
from saferclip.training import inputs


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (45, 70), (90, 31)])
def test_pixels_equal_the_models_own_preprocessing(tiny_clip_folder: Path, size: tuple[int, int]) -> None:
    preprocess = models.load(tiny_clip_folder).preprocess
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for image in (Image.fromarray(noise), Image.fromarray(noise).convert("L").convert("RGB")):
        to_pixels, normalise = inputs.split_preprocess(preprocess)
        pixels = to_pixels(image)
        assert pixels.dtype == torch.uint8 and pixels.shape == (32, 32, 3)
        found = normalise(pixels.permute(2, 0, 1).unsqueeze(0).float() / 255)[0]
        torch.testing.assert_close(found, preprocess(image), atol=1e-6, rtol=0)


def test_preprocessing_without_normalisation_is_refused() -> None:
    with pytest.raises(io.DataError, match="does not end in a normalisation"):
        inputs.split_preprocess(Compose([Resize(8)]))


ALL = inputs.Images(torch.ones(13, dtype=torch.bool), torch.ones(13, dtype=torch.bool))
PLAN = [torch.tensor([5, 0, 3]), torch.tensor([1]), torch.tensor([12, 4])]


@pytest.fixture
def streamed(vit_material: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pictures that do not fit into memory, decoded by ``workers`` processes."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(inputs, "DECODED_BYTES", 0)

    def make(workers: int) -> inputs.Pictures:
        return inputs.read_split(vit_material.train, models.load(vit_material.base_model), workers).pictures

    return make


@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_pictures_equal_decoded_ones(vit_material: Any, streamed: Any, workers: int) -> None:
    clip = models.load(vit_material.base_model)
    to_pixels, _ = inputs.split_preprocess(clip.preprocess)
    decoded = inputs.DecodedPictures(vit_material.train, to_pixels, ALL)
    stream = streamed(workers)
    assert isinstance(stream, inputs.StreamedPictures)
    rows = io.read_table(vit_material.train).to_pylist()
    for part, first, second in zip(PLAN, decoded.batches(PLAN), stream.batches(PLAN), strict=True):
        cells = [rows[row][column] for column in ("safe_image", "unsafe_image") for row in part]
        expected = torch.stack([to_pixels(io.decode_image(cell)) for cell in cells]).permute(0, 3, 1, 2)
        assert torch.equal(first, expected) and torch.equal(second, expected)


def test_pictures_that_fit_are_kept_decoded(vit_material: Any) -> None:
    split = inputs.read_split(vit_material.train, models.load(vit_material.base_model), 1)
    assert isinstance(split.pictures, inputs.DecodedPictures)


def test_captions_are_tokenised_in_order(vit_material: Any) -> None:
    clip = models.load(vit_material.base_model)
    split = inputs.read_split(vit_material.train, clip, 1)
    rows = io.read_table(vit_material.train).to_pylist()
    assert len(split) == len(rows)
    assert torch.equal(split.safe_tokens, clip.tokenize([row["safe_caption"] for row in rows]))
    assert torch.equal(split.unsafe_tokens, clip.tokenize([row["unsafe_caption"] for row in rows]))


def test_nearest_targets_and_their_frozen_embeddings(vit_material: Any) -> None:
    method = vit_material.settings().method
    targets = inputs.read_targets(method, vit_material.train, vit_material.neighbours)
    frozen = inputs.read_frozen(vit_material.embeddings, targets, ALL)
    tensors = io.read_tensors(vit_material.embeddings)
    ids = io.read_table(vit_material.train)["id"].to_pylist()
    mined = {row["unsafe_id"]: row for row in io.read_table(vit_material.neighbours).to_pylist()}
    assert any(row["safe_id"] != row["unsafe_id"] for row in mined.values())
    for row, name in enumerate(ids):
        target = ids.index(mined[name]["safe_id"])
        assert int(targets.rows[row]) == target
        assert int(targets.difficulty[row]) == mined[name]["difficulty"]
        for column, source, place in (
            ("safe_text", "safe_caption", row),
            ("unsafe_text", "unsafe_caption", row),
            ("safe_image", "safe_image", row),
            ("unsafe_image", "unsafe_image", row),
            ("target_text", "safe_caption", target),
            ("target_image", "safe_image", target),
        ):
            assert torch.equal(getattr(frozen, column)[row], tensors[f"train.{source}"][place])


def test_order_of_the_neighbour_table_does_not_matter(vit_material: Any, tmp_path: Path) -> None:
    method = vit_material.settings().method
    rows = io.read_table(vit_material.neighbours).to_pylist()
    io.write_table(tmp_path / "reversed.parquet", rows[::-1])
    first = inputs.read_targets(method, vit_material.train, vit_material.neighbours)
    second = inputs.read_targets(method, vit_material.train, tmp_path / "reversed.parquet")
    assert torch.equal(first.rows, second.rows) and torch.equal(first.difficulty, second.difficulty)


def test_paired_targets_are_ranked_by_their_own_similarity(vit_material: Any) -> None:
    method = vit_material.settings(targets="paired").method
    targets = inputs.read_targets(method, vit_material.train, vit_material.neighbours)
    ids = io.read_table(vit_material.train)["id"].to_pylist()
    paired = {row["unsafe_id"]: row["paired_similarity"] for row in io.read_table(vit_material.neighbours).to_pylist()}
    assert targets.rows.tolist() == list(range(len(ids)))
    expected = nearest.terciles(torch.tensor([paired[name] for name in ids]), ids)
    assert torch.equal(targets.difficulty, expected)
    nearest_targets = inputs.read_targets(vit_material.settings().method, vit_material.train, vit_material.neighbours)
    assert not torch.equal(targets.difficulty, nearest_targets.difficulty)


@pytest.mark.parametrize("change", ["fewer", "unknown target", "unknown unsafe"])
def test_neighbours_of_another_table_are_refused(vit_material: Any, tmp_path: Path, change: str) -> None:
    rows = io.read_table(vit_material.neighbours).to_pylist()
    if change == "fewer":
        rows = rows[1:]
    else:
        rows[0]["safe_id" if change == "unknown target" else "unsafe_id"] = "validation-00000"
    io.write_table(tmp_path / "other.parquet", rows)
    with pytest.raises(io.DataError, match=r"other\.parquet: its ids are not those of .*train\.parquet; mine again"):
        inputs.read_targets(vit_material.settings().method, vit_material.train, tmp_path / "other.parquet")


@pytest.mark.parametrize("column", ["safe_caption", "unsafe_image"])
def test_embeddings_of_another_table_are_refused(vit_material: Any, tmp_path: Path, column: str) -> None:
    targets = inputs.read_targets(vit_material.settings().method, vit_material.train, vit_material.neighbours)
    tensors = io.read_tensors(vit_material.embeddings)
    tensors[f"train.{column}"] = tensors[f"train.{column}"][1:]
    io.write_tensors(tmp_path / "short.safetensors", tensors)
    with pytest.raises(io.DataError, match=rf"12 rows of train\.{column}, not 13"):
        inputs.read_frozen(tmp_path / "short.safetensors", targets, ALL)
