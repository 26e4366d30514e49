"""Embedding quadruples with the frozen model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saferclip import io, models
from saferclip.config import ConfigError, MiningSettings
from saferclip.mining import embedding, pixels

SETTINGS = MiningSettings(block_size=4, batch_size=3)


@pytest.fixture(params=["tiny_clip_folder", "tiny_resnet_clip_folder"])
def base_model(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def test_every_input_of_both_splits_is_embedded_in_order(
    base_model: Path, tiny_quadruples: Callable[..., Path], tmp_path: Path
) -> None:
    tables = {"train": tiny_quadruples(7, "train", 1), "validation": tiny_quadruples(4, "validation", 2)}
    embedding.embed(SETTINGS, base_model, tables["train"], tables["validation"], tmp_path / "out")
    tensors = io.read_tensors(tmp_path / "out" / embedding.FILE)
    clip = models.load(base_model)
    columns = ("safe_caption", "unsafe_caption", "safe_image", "unsafe_image")
    masks = {f"{split}.{column}.present" for split in tables for column in columns[2:]}
    assert tensors.keys() == {f"{split}.{column}" for split in tables for column in columns} | masks
    assert all(tensors[mask].dtype == torch.bool and tensors[mask].all() for mask in masks)
    for split, path in tables.items():
        for row, quadruple in enumerate(io.read_table(path).to_pylist()):
            for column in columns:
                if column.endswith("image"):
                    expected = models.encode_images(clip, [io.decode_image(quadruple[column])], 1)
                else:
                    expected = models.encode_texts(clip, [quadruple[column]], 1)
                found = tensors[f"{split}.{column}"][row]
                assert found.dtype == torch.float32
                torch.testing.assert_close(found, expected[0], atol=1e-6, rtol=0)


def test_equal_captions_have_equal_embeddings(tiny_clip_folder: Path) -> None:
    clip = models.load(tiny_clip_folder)
    captions = ["a cat", "a red bus", "a cat", "two trees by the house of a clock", "a cat"]
    embedded = embedding.embed_captions(clip, captions, batch_size=2)
    assert torch.equal(embedded[0], embedded[2]) and torch.equal(embedded[0], embedded[4])
    for row, caption in enumerate(captions):
        torch.testing.assert_close(embedded[row], models.encode_texts(clip, [caption], 1)[0], atol=1e-6, rtol=0)


@pytest.fixture
def with_gaps(tiny_quadruples: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A function (split, safe rows, unsafe rows) -> table of 7 quadruples that lack the images of those rows."""

    def write(split: str, safe: set[int], unsafe: set[int]) -> Path:
        rows = io.read_table(tiny_quadruples(7, split)).to_pylist()
        for number, row in enumerate(rows):
            row["safe_image"] = None if number in safe else row["safe_image"]["bytes"]
            row["unsafe_image"] = None if number in unsafe else row["unsafe_image"]["bytes"]
        io.write_table(tmp_path / split / f"{split}.parquet", rows)
        return tmp_path / split / f"{split}.parquet"

    return write


def test_withheld_images_are_zero_rows_with_a_mask_and_are_counted(
    base_model: Path, with_gaps: Callable[..., Path], tmp_path: Path
) -> None:
    train, validation = with_gaps("train", {1}, {0, 3, 6}), with_gaps("validation", set(), set(range(7)))
    embedding.embed(SETTINGS, base_model, train, validation, tmp_path / "out")
    tensors = io.read_tensors(tmp_path / "out" / embedding.FILE)
    clip = models.load(base_model)
    for name, table in (("train", train), ("validation", validation)):
        for column in ("safe_image", "unsafe_image"):
            there, embedded = tensors[f"{name}.{column}.present"], tensors[f"{name}.{column}"]
            assert embedded.shape == (7, 16)
            for row, cell in enumerate(io.read_table(table)[column].to_pylist()):
                assert bool(there[row]) == (cell is not None)
                expected = models.encode_images(clip, [io.decode_image(cell)], 1)[0] if cell else torch.zeros(16)
                torch.testing.assert_close(embedded[row], expected, atol=1e-6, rtol=0)
    assert io.read_json(tmp_path / "out" / embedding.SUMMARY) == {
        "train": {"rows": 7, "safe_image": 6, "unsafe_image": 4, "without_safe_image": 1, "without_unsafe_image": 3},
        "validation": {
            "rows": 7,
            "safe_image": 7,
            "unsafe_image": 0,
            "without_safe_image": 0,
            "without_unsafe_image": 7,
        },
    }


def test_spread_rows_carry_gradients() -> None:
    rows = torch.randn(2, 3, requires_grad=True)
    there = torch.tensor([False, True, False, True])
    result = embedding.spread(rows, there, 3)
    assert torch.equal(result[there], rows) and not result[~there].any()
    (result * torch.arange(12.0).view(4, 3)).sum().backward()
    assert torch.equal(rows.grad, torch.tensor([[3.0, 4, 5], [9, 10, 11]]))
    assert embedding.spread(rows, torch.ones(2, dtype=torch.bool), 3) is rows, "complete rows are left alone"


def test_pixels_are_kept_on_the_way_and_change_no_embedding(
    base_model: Path, with_gaps: Callable[..., Path], tmp_path: Path
) -> None:
    train, validation = with_gaps("train", {1}, {0, 3, 6}), with_gaps("validation", set(), set(range(7)))
    keeping = SETTINGS.model_copy(update={"pixels": "file"})
    embedding.embed(SETTINGS, base_model, train, validation, tmp_path / "without")
    embedding.embed(keeping, base_model, train, validation, tmp_path / "with")
    first, second = ((tmp_path / name / embedding.FILE).read_bytes() for name in ("without", "with"))
    assert first == second
    files = {"train_pixels.safetensors", "validation_pixels.safetensors"}
    assert {path.name for path in (tmp_path / "without").iterdir()} == {embedding.FILE, embedding.SUMMARY}
    assert {path.name for path in (tmp_path / "with").iterdir()} == {embedding.FILE, embedding.SUMMARY, *files}
    to_pixels, _ = pixels.split_preprocess(models.load(base_model).preprocess)
    for name, table in (("train", train), ("validation", validation)):
        kept = io.read_tensors(tmp_path / "with" / f"{name}_pixels.safetensors")
        for column in pixels.IMAGES:
            cells = [cell for cell in io.read_table(table)[column].to_pylist() if cell]
            expected = [to_pixels(io.decode_image(cell)) for cell in cells]
            assert kept[column].shape == (len(cells), *pixels.shape_of(to_pixels))
            assert all(torch.equal(one, other) for one, other in zip(kept[column], expected, strict=True))


def test_pixels_of_earlier_settings_do_not_stay(
    tiny_clip_folder: Path, with_gaps: Callable[..., Path], tmp_path: Path
) -> None:
    train = with_gaps("train", {1}, {0, 3, 6})
    for settings in (SETTINGS.model_copy(update={"pixels": "file"}), SETTINGS):
        embedding.embed(settings, tiny_clip_folder, train, train, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {embedding.FILE, embedding.SUMMARY}


def test_what_training_could_not_keep_in_memory_is_refused_before_anything_is_embedded(
    tiny_clip_folder: Path, with_gaps: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = with_gaps("train", {1}, {0, 3, 6})
    monkeypatch.setattr(pixels, "MEMORY_BYTES", 10 * 32 * 32 * 3 - 1)
    with pytest.raises(ConfigError, match=r"train\.parquet: decoded images take .* set mining\.pixels to 'file'"):
        embedding.embed(SETTINGS, tiny_clip_folder, train, train, tmp_path / "out")
    assert not (tmp_path / "out").exists()
