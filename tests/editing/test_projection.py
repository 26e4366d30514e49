"""Projection: directions against a full singular value decomposition, folding against embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from saferclip import io, models
from saferclip.config import ConfigError, MiningSettings
from saferclip.editing import edit, projection
from saferclip.io import DataError
from saferclip.mining import embedding


def by_svd(differences: Tensor, rank: int) -> Tensor:
    """The projector onto the first right singular vectors: (dim, dim)."""
    vectors = torch.linalg.svd(differences.double()).Vh[:rank]
    return vectors.T @ vectors


def test_directions_are_the_first_right_singular_vectors() -> None:
    torch.manual_seed(0)
    differences = torch.randn(20, 7) @ torch.diag(torch.arange(1.0, 8.0))
    for rank in (1, 3, 6):
        found = projection.directions(differences, rank)
        torch.testing.assert_close(found.T @ found, torch.eye(rank, dtype=torch.float64))
        torch.testing.assert_close(found @ found.T, by_svd(differences, rank))
    singular = torch.linalg.svdvals(differences.double()).square()
    share = projection.explained(differences, projection.directions(differences, 2))
    assert share == pytest.approx((singular[:2].sum() / singular.sum()).item())


def test_a_rank_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"edit\.rank: 7 directions of 7 would leave none"):
        projection.directions(torch.randn(9, 7), 7)


def differences(inputs: Any) -> dict[str, Tensor]:
    tensors = io.read_tensors(inputs.embeddings)
    return {
        "text": tensors["train.unsafe_caption"] - tensors["train.safe_caption"],
        "image": tensors["train.unsafe_image"] - tensors["train.safe_image"],
    }


@torch.no_grad()
@pytest.mark.parametrize("subspace", ["own", "shared"])
def test_the_edited_model_embeds_what_is_left(inputs: Any, tmp_path: Any, subspace: str) -> None:
    edit.edit(inputs.projection(subspace=subspace), **inputs.files(), output=tmp_path / "edited")
    base, edited = models.load(inputs.base_model), models.load(tmp_path / "edited")
    found = differences(inputs)
    spaces = found if subspace == "own" else dict.fromkeys(found, torch.cat([found["text"], found["image"]]))
    tokens = base.tokenize(["a cat", "a red pistol by the house"])
    images = torch.randn(3, *base.preprocess(Image.new("RGB", (8, 8))).shape)
    for encoder, embed in (
        ("text", lambda clip: models.text_features(clip.model, tokens)),
        ("image", lambda clip: models.image_features(clip.model, images)),
    ):
        before, after = embed(base), embed(edited)
        left = before.double() @ (torch.eye(before.shape[1]) - by_svd(spaces[encoder], 3))
        torch.testing.assert_close(after.double(), functional.normalize(left, dim=-1), atol=1e-5, rtol=0)
        assert (before - after).abs().max() > 0.01, "too little is removed to test anything"
    record = io.read_json(tmp_path / "edited" / edit.RECORD)
    assert len(record["changed_weights"]) in (2, 3)  # both projections, and a bias if there is one
    assert record["pairs"] == {"text": 11, "image": 11}
    assert 0 < record["removed_share"]["text"] < 1


@torch.no_grad()
def test_a_linear_projection_loses_the_directions_in_its_bias_too() -> None:
    torch.manual_seed(0)
    model = nn.Module()
    model.text_projection = nn.Linear(5, 4)
    removed = projection.directions(torch.randn(9, 4), 2)
    inputs = torch.randn(6, 5)
    before = model.text_projection(inputs).double()
    projection.fold_text(model, removed)
    expected = before - before @ removed @ removed.T
    torch.testing.assert_close(model.text_projection(inputs).double(), expected, atol=1e-6, rtol=0)


def test_models_without_output_projections_are_refused() -> None:
    model = nn.Module()
    model.visual = nn.Identity()
    removed = projection.directions(torch.randn(9, 4), 2)
    with pytest.raises(ConfigError, match="no text_projection in a Module"):
        projection.fold_text(model, removed)
    with pytest.raises(ConfigError, match=r"neither visual.proj nor visual.attnpool.c_proj in a Identity"):
        projection.fold_image(model, removed)


def test_withheld_images_leave_the_directions_of_captions(inputs: Any, tmp_path: Any) -> None:
    rows = io.read_table(inputs.train).to_pylist()
    table = tmp_path / "train.parquet"
    io.write_table(table, [row | {"safe_image": row["safe_image"]["bytes"], "unsafe_image": None} for row in rows])
    embedding.embed(
        MiningSettings(block_size=8, batch_size=8), inputs.base_model, table, inputs.validation, tmp_path / "embedding"
    )
    files = inputs.files() | {"train": table, "embeddings": tmp_path / "embedding" / embedding.FILE}
    edit.edit(inputs.projection(subspace="shared"), **files, output=tmp_path / "edited")
    record = io.read_json(tmp_path / "edited" / edit.RECORD)
    assert record["pairs"] == {"text": 11, "image": 0}
    with pytest.raises(DataError, match=r"no row has both images; set edit\.subspace to 'shared'"):
        edit.edit(inputs.projection(), **files, output=tmp_path / "other")
