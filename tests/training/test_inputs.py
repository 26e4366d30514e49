"""What training feeds to the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from saferclip import io, models
from saferclip.config import ConfigError
from saferclip.mining import nearest, pixels
from saferclip.mining.pixels import split_preprocess
from saferclip.training import inputs, train

ALL = inputs.Images(torch.ones(13, dtype=torch.bool), torch.ones(13, dtype=torch.bool))
PLAN = [torch.tensor([5, 0, 3]), torch.tensor([1]), torch.tensor([12, 4]), torch.tensor([], dtype=torch.long)]


def test_batches_hold_the_pixels_of_their_rows(vit_material: Any, stored: Any) -> None:
    """Decoded at the beginning, or read from the file; the safe images first."""
    clip = models.load(vit_material.base_model)
    to_pixels, _ = split_preprocess(clip.preprocess)
    memory = inputs.read_split(vit_material.train, clip).pictures
    file = inputs.read_split(vit_material.train, clip, stored(vit_material)).pictures
    rows = io.read_table(vit_material.train).to_pylist()
    for part, first, second in zip(PLAN, memory.batches(PLAN), file.batches(PLAN), strict=True):
        cells = [rows[row][column] for column in ("safe_image", "unsafe_image") for row in part]
        expected = [to_pixels(io.decode_image(cell)).permute(2, 0, 1) for cell in cells]
        assert first.dtype == torch.uint8 and first.shape == (len(cells), 3, 32, 32)
        assert torch.equal(first, second)
        assert not cells or torch.equal(first, torch.stack(expected))


def test_training_from_a_file_of_pixels_decodes_nothing_and_ends_the_same(
    material: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_run: Any
) -> None:
    def run(name: str) -> Path:
        state = tmp_path / f"{name}.state"
        train.train(material.settings(), 0, output=tmp_path / name, state=state, **material.files())
        return tmp_path / name

    decoding = run("decoding")
    material.store_pixels()
    monkeypatch.setattr(pixels, "decode", lambda *_: pytest.fail("an image was decoded"))
    assert same_run(decoding, run("reading"))


def test_pixels_of_another_table_are_refused(vit_material: Any, stored: Any) -> None:
    clip, file = models.load(vit_material.base_model), stored(vit_material)
    with pytest.raises(io.DataError, match=r"train_pixels\.safetensors: made of another table.* embed again"):
        inputs.read_split(vit_material.train, clip, dataclasses.replace(file, table_sha256="0"))


def test_images_that_do_not_fit_into_memory_are_refused(vit_material: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """26 images of 3,072 bytes, in each of two processes."""
    clip = models.load(vit_material.base_model)
    monkeypatch.setattr(pixels, "MEMORY_BYTES", 26 * 3072)
    assert len(inputs.read_split(vit_material.train, clip)) == 13
    with pytest.raises(ConfigError, match=r"train\.parquet: decoded images take .* set mining\.pixels to 'file'"):
        inputs.read_split(vit_material.train, clip, readers=2)


def test_captions_are_tokenised_in_order(vit_material: Any) -> None:
    clip = models.load(vit_material.base_model)
    split = inputs.read_split(vit_material.train, clip)
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
    assert targets.rows.tolist() == [[row] for row in range(len(ids))]
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
    with pytest.raises(io.DataError, match=r"other\.parquet: its ids are not those of .*train\.parquet.*; mine again"):
        inputs.read_targets(vit_material.settings().method, vit_material.train, tmp_path / "other.parquet")


@pytest.mark.parametrize("column", ["safe_caption", "unsafe_image"])
def test_embeddings_of_another_table_are_refused(vit_material: Any, tmp_path: Path, column: str) -> None:
    targets = inputs.read_targets(vit_material.settings().method, vit_material.train, vit_material.neighbours)
    tensors = io.read_tensors(vit_material.embeddings)
    tensors[f"train.{column}"] = tensors[f"train.{column}"][1:]
    io.write_tensors(tmp_path / "short.safetensors", tensors)
    with pytest.raises(io.DataError, match=rf"12 rows of train\.{column}, not 13"):
        inputs.read_frozen(tmp_path / "short.safetensors", targets, ALL)


@pytest.mark.parametrize("rule", [{"rule": "both"}, {"rule": "text", "neighbours": 3}, {"rule": "random", "seed": 2}])
def test_targets_of_a_rule_are_looked_up(vit_material: Any, with_targets: Any, rule: dict[str, Any]) -> None:
    material = with_targets(vit_material, rule)
    targets = inputs.read_targets(material.settings(targets=rule).method, material.train, material.neighbours)
    ids = io.read_table(material.train)["id"].to_pylist()
    mined = io.read_table(material.neighbours).to_pylist()
    for number, name in enumerate(ids):
        rows = [row for row in mined if row["unsafe_id"] == name]
        assert [ids[place] for place in targets.rows[number].tolist()] == [row["safe_id"] for row in rows]
        assert {row["difficulty"] for row in rows} == {targets.difficulty[number].item()}
    frozen = inputs.read_frozen(material.embeddings, targets, ALL)
    table = io.read_tensors(material.embeddings)
    for column, found in (("safe_caption", frozen.target_text), ("safe_image", frozen.target_image)):
        for number, rows in enumerate(targets.rows.tolist()):
            mean = sum(table[f"train.{column}"][row].double() for row in rows)
            torch.testing.assert_close(found[number].double(), mean / mean.norm(), atol=1e-6, rtol=0)


def test_a_withheld_image_has_no_part_in_a_mean() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])  # two of them withheld
    targets = inputs.Targets(torch.tensor([[0, 1], [2, 0], [1, 3]]), torch.zeros(3, dtype=torch.long))
    half = 0.5**0.5
    torch.testing.assert_close(targets.of(images), torch.tensor([[1.0, 0.0], [half, half], [0.0, 0.0]]))


def test_a_row_takes_part_if_one_of_its_target_images_is_there(incomplete: Any, with_targets: Any) -> None:
    material = incomplete([0, 4, 11], [1])
    rule = {"rule": "text", "neighbours": 2}
    material = with_targets(material, rule)
    targets = inputs.read_targets(material.settings(targets=rule).method, material.train, material.neighbours)
    images = inputs.read_split(material.train, models.load(material.base_model)).images
    present = inputs.read_frozen(material.embeddings, targets, images).present
    expected = [any(row not in (0, 4, 11) for row in rows) for rows in targets.rows.tolist()]
    assert present.target_image.tolist() == expected


@pytest.mark.parametrize("asked", ["nearest", {"rule": "text", "neighbours": 2}])
def test_another_number_of_neighbours_is_refused(vit_material: Any, with_targets: Any, asked: Any) -> None:
    material = with_targets(vit_material, {"rule": "text", "neighbours": 3})
    with pytest.raises(io.DataError, match=r"or not [12] for each unsafe input; mine again"):
        inputs.read_targets(material.settings(targets=asked).method, material.train, material.neighbours)
