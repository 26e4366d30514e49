"""Targets by other rules, against a search one by one; drawn ones; withheld images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saferclip import io
from saferclip.config import MiningSettings, TargetRule, TargetsStep
from saferclip.mining import embedding, nearest, targets

ROWS, DIM = 23, 8
IDS = [f"row-{name:02d}" for name in np.random.default_rng(3).permutation(ROWS)]
EVERYWHERE = torch.arange(ROWS)
SAFE_GAPS, UNSAFE_GAPS = [2, 3, 17], [0, 3, 9, 21]


def rule(kind: str, **options: Any) -> TargetRule:
    return TargetRule.model_validate({"rule": kind, **options})


def frozen(safe_gaps: list[int] | None = None, unsafe_gaps: list[int] | None = None) -> dict[str, Tensor]:
    """Random unit rows, zero where an image is withheld."""
    random = torch.Generator().manual_seed(1)
    tensors = {}
    for column, gaps in (
        ("safe_caption", None),
        ("unsafe_caption", None),
        ("safe_image", safe_gaps),
        ("unsafe_image", unsafe_gaps),
    ):
        rows = torch.nn.functional.normalize(torch.randn(ROWS, DIM, generator=random), dim=-1)
        rows[gaps or []] = 0
        tensors[f"train.{column}"] = rows
        if column.endswith("image"):
            tensors[f"train.{column}.present"] = torch.tensor([row not in (gaps or []) for row in range(ROWS)])
    return tensors


def one_by_one(
    table: dict[str, Tensor], kind: str, neighbours: int, pool: list[int]
) -> tuple[list[list[int]], list[list[float]]]:
    """Nearest candidates of every unsafe input and their cosines, by sorting plain Python numbers."""
    rows, cosines = [], []
    for asking in range(ROWS):
        found = []
        for row in pool:
            text = float(table["train.unsafe_caption"][asking].double() @ table["train.safe_caption"][row].double())
            image = float(table["train.unsafe_image"][asking].double() @ table["train.safe_image"][row].double())
            without = not table["train.unsafe_image.present"][asking]
            cosine = text if kind == "text" or without else image if kind == "image" else (text + image) / 2
            found.append((-cosine, IDS[row], row))
        best = sorted(found)[:neighbours]
        rows.append([row for _, _, row in best])
        cosines.append([-cosine for cosine, _, _ in best])
    return rows, cosines


@pytest.mark.parametrize("block_size", [1, 5, 64])
@pytest.mark.parametrize("neighbours", [None, 1, 2, 5])
@pytest.mark.parametrize("kind", ["text", "image", "both"])
def test_targets_equal_a_search_one_by_one(kind: str, neighbours: int | None, block_size: int) -> None:
    table = frozen()
    chosen = targets.choose(rule(kind, neighbours=neighbours), table, EVERYWHERE, IDS, block_size)
    rows, cosines = one_by_one(table, kind, neighbours or 1, EVERYWHERE.tolist())
    assert chosen.rows.tolist() == rows
    np.testing.assert_allclose(chosen.similarity.numpy(), cosines, atol=1e-6)
    assert not chosen.by_captions_alone.any()
    # Thirds of all rows by the neighbours' mean cosine: 8, 8 and 7 of 23.
    order = sorted(range(ROWS), key=lambda row: (-np.mean(cosines[row]), IDS[row]))
    expected = {row: (0 if place < 8 else 1 if place < 16 else 2) for place, row in enumerate(order)}
    assert chosen.difficulty.tolist() == [expected[row] for row in range(ROWS)]


def test_the_three_rules_differ() -> None:
    found = [targets.choose(rule(kind), frozen(), EVERYWHERE, IDS, 8).rows for kind in ("text", "image", "both")]
    assert not any(torch.equal(one, other) for one, other in zip(found, [found[1], found[2], found[0]], strict=True))


@pytest.mark.parametrize("kind", ["text", "image", "both"])
def test_equally_near_candidates_are_taken_by_id(kind: str) -> None:
    table = frozen()
    for column in ("train.safe_caption", "train.safe_image"):
        table[column] = table[column][:1].expand(ROWS, DIM).clone()
    chosen = targets.choose(rule(kind, neighbours=3), table, EVERYWHERE, IDS, 4)
    assert [[IDS[row] for row in rows] for rows in chosen.rows.tolist()] == [["row-00", "row-01", "row-02"]] * ROWS


@pytest.mark.parametrize("kind", ["image", "both"])
def test_withheld_images(kind: str) -> None:
    """Candidates without their image are none; inputs without theirs are compared by captions, and ranked apart."""
    table = frozen(SAFE_GAPS, UNSAFE_GAPS)
    pool = targets.candidates(rule(kind), table, ROWS)
    assert pool.tolist() == [row for row in range(ROWS) if row not in SAFE_GAPS]
    chosen = targets.choose(rule(kind, neighbours=2), table, pool, IDS, 8)
    rows, cosines = one_by_one(table, kind, 2, pool.tolist())
    assert chosen.rows.tolist() == rows
    np.testing.assert_allclose(chosen.similarity.numpy(), cosines, atol=1e-6)
    assert chosen.by_captions_alone.nonzero()[:, 0].tolist() == UNSAFE_GAPS
    assert sorted(chosen.difficulty[UNSAFE_GAPS].tolist()) == [0, 0, 1, 2]
    others = chosen.difficulty[~chosen.by_captions_alone]
    assert others.bincount().tolist() == [7, 6, 6]


def test_captions_are_compared_whatever_images_are_withheld() -> None:
    plain, gaps = frozen(), frozen(SAFE_GAPS, UNSAFE_GAPS)
    assert targets.candidates(rule("text"), gaps, ROWS).tolist() == list(range(ROWS))
    found = [targets.choose(rule("text"), table, EVERYWHERE, IDS, 8) for table in (plain, gaps)]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_random_targets_are_drawn_by_their_seed() -> None:
    table = frozen()
    one, same, other = (
        targets.choose(rule("random", seed=seed), table, EVERYWHERE, IDS, block)
        for seed, block in ((1, 4), (1, 9), (2, 4))
    )
    assert torch.equal(one.rows, same.rows)
    assert not torch.equal(one.rows, other.rows)
    assert one.rows.shape == (ROWS, 1)
    safe, unsafe = table["train.safe_caption"], table["train.unsafe_caption"]
    expected = [[float(unsafe[row] @ safe[target])] for row, (target,) in enumerate(one.rows.tolist())]
    np.testing.assert_allclose(one.similarity.numpy(), expected, atol=1e-6)


def test_random_targets_are_spread_over_all_candidates() -> None:
    """Each of 10 expects 200 of 2,000 draws, with a standard deviation of 13."""
    table = {name: torch.nn.functional.normalize(torch.ones(2000, 2), dim=-1) for name in frozen()}
    rows = targets.choose(
        rule("random", seed=5), table, torch.arange(40, 50), [str(row) for row in range(2000)], 8
    ).rows
    counts = rows.flatten().bincount(minlength=50)
    assert counts[:40].sum() == 0
    assert counts[40:].min() > 130 and counts[40:].max() < 270


@pytest.mark.parametrize("kind", ["random", "text", "image", "both"])
def test_a_pool_is_a_share_drawn_once(kind: str) -> None:
    table = frozen(SAFE_GAPS)
    asked = rule(kind, pool=0.5, seed=3)
    pool = targets.candidates(asked, table, ROWS)
    drawn = targets.candidates(rule("text", pool=0.5, seed=3), table, ROWS)
    assert len(drawn) == 12  # round(11.5)
    gaps = SAFE_GAPS if kind in ("image", "both") else []
    assert pool.tolist() == [row for row in drawn.tolist() if row not in gaps]
    assert targets.candidates(rule(kind, pool=0.5, seed=4), table, ROWS).tolist() != pool.tolist()
    chosen = targets.choose(asked, table, pool, IDS, 4)
    assert set(chosen.rows.flatten().tolist()) <= set(pool.tolist())


def test_too_few_candidates_are_refused() -> None:
    with pytest.raises(io.DataError, match=r"targets 'text-3-pool-0.1-seed-1': 3 neighbours of 2 candidates"):
        targets.candidates(rule("text", neighbours=3, pool=0.1, seed=1), frozen(), ROWS)
    with pytest.raises(io.DataError, match=r"targets 'image': 1 neighbours of 0 candidates.*take the rule 'text'"):
        targets.candidates(rule("image"), frozen(list(range(ROWS))), ROWS)


@pytest.fixture
def embedded(tiny_clip_folder: Path, tiny_quadruples: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A training table, and its embeddings."""
    settings = MiningSettings(block_size=4, batch_size=8)
    train = tiny_quadruples(10, "train")
    embedding.embed(settings, tiny_clip_folder, train, tiny_quadruples(4, "validation"), tmp_path)
    return train, tmp_path / embedding.FILE


def mine(embedded: tuple[Path, Path], output: Path, kind: str, **options: Any) -> list[dict[str, Any]]:
    targets.mine(TargetsStep(block_size=4, targets=rule(kind, **options)), *embedded, output)
    return io.read_table(output / "neighbours.parquet").to_pylist()


def test_the_nearest_by_captions_are_the_papers(embedded: tuple[Path, Path], tmp_path: Path) -> None:
    nearest.mine(MiningSettings(block_size=4, batch_size=8), *embedded, tmp_path / "mining")
    papers = io.read_table(tmp_path / "mining/neighbours.parquet").drop_columns("paired_similarity").to_pylist()
    assert mine(embedded, tmp_path / "targets", "text") == papers


def test_the_table_has_a_row_for_each_neighbour(embedded: tuple[Path, Path], tmp_path: Path) -> None:
    rows = mine(embedded, tmp_path / "targets", "both", neighbours=3)
    ids = io.read_table(embedded[0])["id"].to_pylist()
    assert [row["unsafe_id"] for row in rows] == [name for name in ids for _ in range(3)]
    for place in range(0, 30, 3):
        three = rows[place : place + 3]
        assert len({row["safe_id"] for row in three}) == 3
        assert three[0]["similarity"] >= three[1]["similarity"] >= three[2]["similarity"]
        assert len({row["difficulty"] for row in three}) == 1
    summary = io.read_json(tmp_path / "targets/summary.json")
    assert summary["unsafe_inputs"] == summary["candidates"] == 10
    assert summary["mean_similarity"] == pytest.approx(np.mean([row["similarity"] for row in rows]))
    own = {row["unsafe_id"] for row in rows if row["safe_id"] == row["unsafe_id"]}
    assert summary["own_pair_share"] == 10 * len(own)
    assert summary["different_targets"] == len({row["safe_id"] for row in rows})
    assert summary["by_captions_alone"] == 0


def test_only_what_a_rule_compares_is_read(embedded: tuple[Path, Path], tmp_path: Path) -> None:
    train, file = embedded
    captions = {name: rows for name, rows in io.read_tensors(file).items() if name.endswith("caption")}
    io.write_tensors(tmp_path / "captions.safetensors", captions)
    assert mine((train, tmp_path / "captions.safetensors"), tmp_path / "targets", "text", neighbours=2)
    with pytest.raises(io.DataError, match=r"tensor 'train\.safe_image' is missing"):
        mine((train, tmp_path / "captions.safetensors"), tmp_path / "targets", "image")


def test_embeddings_that_do_not_fit_are_refused(
    embedded: tuple[Path, Path], tiny_quadruples: Callable[..., Path], tmp_path: Path
) -> None:
    train, file = embedded
    with pytest.raises(io.DataError, match=r"10 rows of train\.safe_caption, but .* has 9; embed it again"):
        mine((tiny_quadruples(9, "train"), file), tmp_path / "targets", "text")
    tensors = io.read_tensors(file)
    tensors["train.unsafe_image"][2, 1] = torch.nan
    io.write_tensors(tmp_path / "broken.safetensors", tensors)
    with pytest.raises(io.DataError, match=r"train\.unsafe_image holds values that are no numbers"):
        mine((train, tmp_path / "broken.safetensors"), tmp_path / "targets", "both")
    assert not (tmp_path / "targets").exists()
