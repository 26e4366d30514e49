"""Mining nearest targets: exact, blocked, from training rows only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from saferclip import io
from saferclip.config import MiningSettings
from saferclip.mining import embedding, nearest


def unit(count: int, dim: int, seed: int) -> Tensor:
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


def brute_force(queries: Tensor, gallery: Tensor, ids: list[str]) -> list[int]:
    """Smallest id among the gallery items with the highest dot product, one by one."""
    return [
        min(range(len(ids)), key=lambda row: (-float(query.double() @ gallery[row].double()), ids[row]))
        for query in queries
    ]


@pytest.mark.parametrize("block_size", [1, 3, 7, 16, 100])
def test_nearest_equals_brute_force(block_size: int) -> None:
    queries, gallery = unit(11, 8, 1), unit(16, 8, 2)
    ids = [f"row-{name}" for name in np.random.default_rng(3).permutation(16)]
    rows, similarity = nearest.nearest(queries, gallery, ids, block_size)
    assert rows.tolist() == brute_force(queries, gallery, ids)
    expected = (queries.double() * gallery[rows].double()).sum(dim=1)
    torch.testing.assert_close(similarity, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("block_size", [1, 2, 5, 64])
def test_ties_go_to_the_smallest_id(block_size: int) -> None:
    directions = torch.eye(3)
    gallery = directions[torch.tensor([0, 1, 0, 2, 1, 0, 1])]
    ids = ["g", "f", "e", "d", "c", "b", "a"]
    rows, similarity = nearest.nearest(directions, gallery, ids, block_size)
    assert [ids[row] for row in rows] == ["b", "a", "d"]
    assert similarity.tolist() == [1, 1, 1]


def test_terciles_by_rank_of_similarity() -> None:
    similarity = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3, 0.5, 0.2])
    # From most to least similar: b d (c f: a tie, by id) e g a; seven in three parts is 3, 2, 2.
    assert nearest.terciles(similarity, list("abcdefg")).tolist() == [2, 0, 0, 0, 1, 1, 2]
    assert nearest.terciles(similarity, list("abzdefg")).tolist() == [2, 0, 1, 0, 1, 0, 2]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 31])
def test_terciles_are_as_even_as_can_be(count: int) -> None:
    sizes = nearest.terciles(torch.rand(count), [str(row) for row in range(count)]).bincount(minlength=3)
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= 1
    assert sizes[0] >= 1


@pytest.fixture
def mined(
    tiny_clip_folder: Path, tiny_quadruples: Callable[..., Path], tmp_path: Path
) -> tuple[Path, Path, MiningSettings]:
    """Training table, embeddings of it and of an identical validation table, and settings."""
    settings = MiningSettings(block_size=4, batch_size=8)
    train, validation = tiny_quadruples(10, "train"), tiny_quadruples(10, "validation")
    embedding.embed(settings, tiny_clip_folder, train, validation, tmp_path)
    return train, tmp_path / embedding.FILE, settings


def test_neighbours_and_summary(mined: tuple[Path, Path, MiningSettings], tmp_path: Path) -> None:
    train, embeddings, settings = mined
    nearest.mine(settings, train, embeddings, tmp_path / "mining")
    rows = io.read_table(tmp_path / "mining" / "neighbours.parquet").to_pylist()
    summary = io.read_json(tmp_path / "mining" / "summary.json")
    frozen = io.read_tensors(embeddings)
    safe, unsafe = frozen["train.safe_caption"], frozen["train.unsafe_caption"]
    ids = io.read_table(train)["id"].to_pylist()
    assert [row["unsafe_id"] for row in rows] == ids
    assert [row["safe_id"] for row in rows] == [ids[target] for target in brute_force(unsafe, safe, ids)]
    for number, row in enumerate(rows):
        target = ids.index(row["safe_id"])
        assert row["similarity"] == pytest.approx(float(unsafe[number] @ safe[target]), abs=1e-6)
        assert row["paired_similarity"] == pytest.approx(float(unsafe[number] @ safe[number]), abs=1e-6)
        assert row["similarity"] >= row["paired_similarity"]
    by_similarity = sorted(rows, key=lambda row: -row["similarity"])
    assert [row["difficulty"] for row in by_similarity] == [0] * 4 + [1] * 3 + [2] * 3
    assert summary["unsafe_captions"] == 10
    assert summary["different_targets"] == len({row["safe_id"] for row in rows})
    assert summary["nearest_is_pair_share"] == 10 * sum(row["safe_id"] == row["unsafe_id"] for row in rows)
    assert summary["nearest"]["mean"] == pytest.approx(np.mean([row["similarity"] for row in rows]))
    assert summary["paired"]["quantiles"]["0.5"] == pytest.approx(np.median([row["paired_similarity"] for row in rows]))
    assert [level["count"] for level in summary["difficulty"].values()] == [4, 3, 3]
    assert summary["difficulty"]["easy"]["lowest"] >= summary["difficulty"]["medium"]["highest"]


def test_other_splits_cannot_be_targets(mined: tuple[Path, Path, MiningSettings], tmp_path: Path) -> None:
    """Validation, test and benchmark captions that equal the unsafe ones would win, were they candidates."""
    train, embeddings, settings = mined
    tensors = io.read_tensors(embeddings)
    for split in ("validation", "test", "nsfw_caps"):
        tensors[f"{split}.safe_caption"] = tensors["train.unsafe_caption"].clone()
    io.write_tensors(tmp_path / "leaky.safetensors", tensors)
    for name, path in (("clean", embeddings), ("leaky", tmp_path / "leaky.safetensors")):
        nearest.mine(settings, train, path, tmp_path / name)
    clean, leaky = (io.read_table(tmp_path / name / "neighbours.parquet") for name in ("clean", "leaky"))
    assert leaky.equals(clean)
    assert set(clean["safe_id"].to_pylist()) <= set(io.read_table(train)["id"].to_pylist())


@pytest.mark.parametrize("split", ["validation", "test", "nsfw_caps"])
def test_tables_of_other_splits_are_refused(
    mined: tuple[Path, Path, MiningSettings], tiny_quadruples: Callable[..., Path], tmp_path: Path, split: str
) -> None:
    _, embeddings, settings = mined
    with pytest.raises(io.DataError, match=f"only training rows may be mined.*{split}"):
        nearest.mine(settings, tiny_quadruples(10, split), embeddings, tmp_path / "mining")
    assert not (tmp_path / "mining").exists()


def test_one_row_of_another_split_is_refused(mined: tuple[Path, Path, MiningSettings], tmp_path: Path) -> None:
    train, embeddings, settings = mined
    rows = io.read_table(train, ("id", "split")).to_pylist()
    rows[4]["split"] = "test"
    io.write_table(tmp_path / "mixed.parquet", rows)
    with pytest.raises(io.DataError, match="only training rows may be mined"):
        nearest.mine(settings, tmp_path / "mixed.parquet", embeddings, tmp_path / "mining")


def test_embeddings_of_another_table_are_refused(
    mined: tuple[Path, Path, MiningSettings], tiny_quadruples: Callable[..., Path], tmp_path: Path
) -> None:
    _, embeddings, settings = mined
    with pytest.raises(io.DataError, match=r"10 embedded rows, but .* has 9"):
        nearest.mine(settings, tiny_quadruples(9, "train"), embeddings, tmp_path / "mining")


def test_only_embedded_captions_are_read(mined: tuple[Path, Path, MiningSettings], tmp_path: Path) -> None:
    """At the paper's scale the file is four times as large as they are."""
    train, embeddings, settings = mined
    tensors = io.read_tensors(embeddings)
    captions = {name: tensors[name] for name in ("train.safe_caption", "train.unsafe_caption")}
    io.write_tensors(tmp_path / "captions.safetensors", captions)
    nearest.mine(settings, train, tmp_path / "captions.safetensors", tmp_path / "mining")
    assert len(io.read_table(tmp_path / "mining" / "neighbours.parquet")) == 10


@pytest.mark.parametrize("size", [1, 3, 9, 10])
def test_unsafe_captions_in_parts_give_what_they_give_at_once(
    mined: tuple[Path, Path, MiningSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    train, embeddings, settings = mined
    nearest.mine(settings, train, embeddings, tmp_path / "at once")
    monkeypatch.setattr(nearest, "UNSAFE_ROWS", size)
    nearest.mine(settings, train, embeddings, tmp_path / "parts")
    for name in ("neighbours.parquet", "summary.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()


@pytest.mark.parametrize("rows", [4, 12])
def test_as_many_unsafe_as_safe_captions_must_be_embedded(
    mined: tuple[Path, Path, MiningSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    train, embeddings, settings = mined
    tensors = io.read_tensors(embeddings)
    tensors["train.unsafe_caption"] = tensors["train.unsafe_caption"].repeat(2, 1)[:rows]
    io.write_tensors(tmp_path / "uneven.safetensors", tensors)
    monkeypatch.setattr(nearest, "UNSAFE_ROWS", 4)
    with pytest.raises(io.DataError, match=r"uneven\.safetensors: not as many unsafe captions as safe ones"):
        nearest.mine(settings, train, tmp_path / "uneven.safetensors", tmp_path / "mining")


@pytest.mark.parametrize("column", ["train.safe_caption", "train.unsafe_caption"])
def test_embeddings_that_are_no_numbers_are_refused(
    mined: tuple[Path, Path, MiningSettings], tmp_path: Path, column: str
) -> None:
    train, embeddings, settings = mined
    tensors = io.read_tensors(embeddings)
    tensors[column][3, 1] = torch.nan
    io.write_tensors(tmp_path / "broken.safetensors", tensors)
    with pytest.raises(io.DataError, match=rf"broken.safetensors: {column} holds values that are no numbers"):
        nearest.mine(settings, train, tmp_path / "broken.safetensors", tmp_path / "mining")


def test_repeated_ids_are_refused(mined: tuple[Path, Path, MiningSettings], tmp_path: Path) -> None:
    _, embeddings, settings = mined
    rows = [{"id": f"train-{row // 2}", "split": "train"} for row in range(10)]
    io.write_table(tmp_path / "twice.parquet", rows)
    with pytest.raises(io.DataError, match="'train-0' and 4 more occur twice"):
        nearest.mine(settings, tmp_path / "twice.parquet", embeddings, tmp_path / "mining")
