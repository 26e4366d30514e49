"""Embedding quadruples with the frozen model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saferclip import io, models
from saferclip.config import MiningSettings
from saferclip.mining import embedding

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
    assert tensors.keys() == {f"{split}.{column}" for split in tables for column in columns}
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


def test_images_are_read_in_order_across_blocks(
    tiny_quadruples: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_quadruples(7, "train")
    monkeypatch.setattr(embedding, "READ_ROWS", 3)
    expected = [io.decode_image(cell) for cell in io.read_table(path)["unsafe_image"].to_pylist()]
    found = list(embedding.read_images(path, "unsafe_image"))
    assert [image.tobytes() for image in found] == [image.tobytes() for image in expected]


def test_withheld_image_is_named(tiny_quadruples: Callable[..., Path], tmp_path: Path) -> None:
    rows = io.read_table(tiny_quadruples(3, "train")).to_pylist()
    for number, row in enumerate(rows):
        row["safe_image"] = row["safe_image"]["bytes"]
        row["unsafe_image"] = None if number == 2 else row["unsafe_image"]["bytes"]
    io.write_table(tmp_path / "train.parquet", rows)
    with pytest.raises(io.DataError, match=r"train\.parquet: row 2, unsafe_image: the image is withheld"):
        list(embedding.read_images(tmp_path / "train.parquet", "unsafe_image"))


def test_broken_image_is_named() -> None:
    with pytest.raises(io.DataError, match=r"^table: row 5: the image cannot be decoded"):
        embedding.decode({"bytes": b"not a picture", "path": None}, "table: row 5")
